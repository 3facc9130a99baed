"""Files on storage that is reached by an address."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server, s3_server

from training.errors import AddressError
from training.storage import Store, StoreError, address_of


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(monkeypatch) as started:
        yield started


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest, server: S3Server, tmp_path: Path) -> Store:
    """One that pyarrow reaches, and one of fsspec."""
    return Store(server.address if request.param == "s3" else f"memory://b{tmp_path}")


def test_files_are_written_found_read_and_removed(store: Store, tmp_path: Path) -> None:
    assert store.listing() == {}
    assert store.read("liver/spec.yaml") is None
    store.write("liver/spec.yaml", b"metric: val_dice")
    store.upload(io.BytesIO(b"1234"), "liver/trials/0000/last.ckpt")
    store.write("spleen/spec.yaml", b"")
    assert {name: stored.size for name, stored in store.listing().items()} == {
        "liver/spec.yaml": 16,
        "liver/trials/0000/last.ckpt": 4,
        "spleen/spec.yaml": 0,
    }
    assert list(store.listing("liver/trials")) == ["liver/trials/0000/last.ckpt"]
    assert store.folders() == ["liver", "spleen"]
    assert store.find("liver/spec.yaml") == store.listing()["liver/spec.yaml"]
    assert store.find("liver") is None
    assert store.read("liver/spec.yaml") == b"metric: val_dice"
    store.download("liver/trials/0000/last.ckpt", tmp_path / "a" / "last.ckpt")
    assert (tmp_path / "a" / "last.ckpt").read_bytes() == b"1234"
    # a name tells nothing of how the content is to be changed
    store.write("a.nii.gz", b"not gzip")
    assert store.read("a.nii.gz") == b"not gzip"
    store.download("a.nii.gz", tmp_path / "a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == b"not gzip"
    store.remove("liver/spec.yaml")
    store.remove("liver/spec.yaml")
    assert "liver/spec.yaml" not in store.listing()


def test_a_file_that_is_not_there_is_not_downloaded(store: Store, tmp_path: Path) -> None:
    with pytest.raises((StoreError, FileNotFoundError)):
        store.download("nothing", tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(server.address)
    store.write("optuna.db", b"old" * 10)
    versions = [b"new" * 20, b"newest" * 30]

    class Files:
        """Replaces the file between its size and its content, as another machine may."""

        def __getattr__(self, name: str) -> Any:
            return getattr(files, name)

        def open_input_stream(self, *arguments: Any, **settings: Any) -> Any:
            stream = files.open_input_stream(*arguments, **settings)
            if versions:
                Store(server.address).write("optuna.db", versions.pop(0))
            return stream

    files = store._files
    monkeypatch.setattr(store, "_files", Files())
    store.download("optuna.db", tmp_path / "optuna.db")
    assert (tmp_path / "optuna.db").read_bytes() == b"newest" * 30
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.db"]


def test_storage_that_refuses_is_named(server: S3Server) -> None:
    store = Store(server.address)
    store.check_writable()
    assert store.listing() == {}
    server.full = True
    with pytest.raises(StoreError, match=r"^s3://studies/lab cannot be written \(.+\)$"):
        store.check_writable()
    server.full = False
    with pytest.raises(StoreError, match=r"NO_SUCH_BUCKET"):
        Store("s3://nobody/lab").write("a", b"1")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nothing://bucket/a", "nothing here reaches nothing://"),
        ("az://container/a", "Install adlfs"),
        ("s3:///", "names no bucket: s3://BUCKET/FOLDER"),
        ("file:///data", "a folder of this machine has a path"),
    ],
)
def test_addresses_that_nothing_reaches(address: str, told: str) -> None:
    with pytest.raises(AddressError) as error:
        Store(address)
    assert told in str(error.value)


def test_an_address_that_path_has_spoiled_is_whole_again() -> None:
    assert address_of(Path("s3://bucket/studies/")) == "s3://bucket/studies"
    assert address_of("GS://bucket") == "gs://bucket"
