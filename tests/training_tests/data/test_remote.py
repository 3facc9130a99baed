"""Data at an address."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import s3_server

from training.config import ModelTrainingConfig
from training.data import generate_phantom, prepared_fingerprint, read_layout, resolve_data_dir
from training.errors import DatasetError
from training.storage import Store

ADDRESS = "s3://studies/data/Task03"


def upload(folder: Path) -> Store:
    store = Store(ADDRESS)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                store.upload(file, path.relative_to(folder).as_posix())
    return store


def test_data_are_fetched_once_and_what_changed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "cache"))
    raw = generate_phantom(tmp_path / "raw", num_cases=2, seed=1)
    with s3_server(monkeypatch):
        store = upload(raw)
        store.write(".DS_Store", b"")
        # as a config has it: a path
        folder = resolve_data_dir(Path(ADDRESS))
        names = [case.case_id for case in read_layout(raw).cases]
        assert [case.case_id for case in read_layout(folder).cases] == names
        config = ModelTrainingConfig()
        assert prepared_fingerprint(folder, config) == prepared_fingerprint(raw, config)
        first = next(folder.rglob("*.nii.gz"))
        file = first.stat().st_ino
        assert resolve_data_dir(ADDRESS) == folder
        assert first.stat().st_ino == file
        store.write(first.relative_to(folder).as_posix(), b"another")
        store.remove("dataset.json")
        resolve_data_dir(ADDRESS)
        assert first.read_bytes() == b"another"
        assert not (folder / "dataset.json").exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (ADDRESS, f"the data folder {ADDRESS} has no files, or is not there"),
        ("nothing://bucket/a", "the data folder nothing://bucket/a: nothing here reaches"),
    ],
)
def test_an_address_without_data_is_named(
    address: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path))
    with s3_server(monkeypatch), pytest.raises(DatasetError) as error:
        resolve_data_dir(address)
    assert told in str(error.value)
