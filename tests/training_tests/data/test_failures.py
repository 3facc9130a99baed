"""One case that fails leaves the others alone, and an error names what really is wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_data import boxes, make_data, save

from training.config import ModelTrainingConfig
from training.data import prepare_dataset, read_layout, resolve_data_dir
from training.data.prepared import case_files, preparation, preprocessing
from training.data.raw.volume import read_image
from training.errors import DatasetError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", {f"c{index}": boxes(1, 2) for index in range(6)})


def prepare(folder: Path, cache: Path) -> None:
    prepare_dataset(folder, ModelTrainingConfig(), cache_dir=cache)


def damage_header(path: Path) -> None:
    plain = path.with_name("plain.nii")
    save(plain, np.ones((12, 11, 10), np.float32))
    content = bytearray(plain.read_bytes())
    content[70:72] = np.int16(9999).tobytes()  # the data type
    plain.unlink()
    path.unlink()
    path.with_suffix("").write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def spoil_compression(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40
    path.write_bytes(content)


def test_every_damaged_file_is_named_and_the_others_are_read(data: Path, tmp_path: Path) -> None:
    images = data / "imagesTr"
    damage_header(images / "c0.nii.gz")
    cut_off(images / "c1.nii.gz")
    spoil_compression(images / "c2.nii.gz")
    (images / "c3.nii.gz").write_bytes(b"")
    save(data / "labelsTr" / "c4.nii.gz", np.zeros((12, 11, 10), [(c, "u1") for c in "RGB"]))
    steps: list[tuple[str, int]] = []
    with pytest.raises(DatasetError, match="5 problems") as error:
        prepare_dataset(
            data,
            ModelTrainingConfig(),
            cache_dir=tmp_path / "cache",
            on_case=lambda step, done, total: steps.append((step, done)),
        )
    text = str(error.value)
    for name, reason in (
        ("imagesTr/c0.nii", "data code 9999 not recognized"),
        ("imagesTr/c1.nii.gz", "Compressed file ended"),
        ("imagesTr/c2.nii.gz", "not a readable NIfTI file"),
        ("imagesTr/c3.nii.gz", "it is empty"),
        ("labelsTr/c4.nii.gz", "colours"),
    ):
        (line,) = [line for line in text.splitlines() if name + ":" in line]
        assert reason in line
    assert steps[-1] == ("reading", 6)
    # the sound case was read, and is not read again
    assert list((tmp_path / "cache").glob("data-*/c5.scan.json"))


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError, TypeError, ZeroDivisionError])
@pytest.mark.parametrize("step", ["reading", "preprocessing"])
def test_a_failure_of_any_type_is_one_case_s(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    step: str,
) -> None:
    done = []
    module, name = (preparation, "scan_case") if step == "reading" else (preparation, "store_case")
    original: Callable[..., Any] = getattr(module, name)

    def failing(case: Any, *arguments: Any, **options: Any) -> Any:
        if case.case_id == "c2":
            raise kind("in the middle")
        done.append(case.case_id)
        return original(case, *arguments, **options)

    monkeypatch.setattr(module, name, failing)
    with pytest.raises(DatasetError, match="1 problem:") as error:
        prepare(data, tmp_path / "cache")
    reason = "out of memory" if kind is MemoryError else "in the middle"
    assert f"imagesTr/c2.nii.gz: {step} it failed ({kind.__name__}: {reason})" in str(error.value)
    assert sorted(done) == ["c0", "c1", "c3", "c4", "c5"]
    monkeypatch.undo()
    prepare(data, tmp_path / "cache")


def test_want_of_memory_names_the_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resample(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(preprocessing, "resample_image", resample)
    with pytest.raises(DatasetError, match=r"c5\.nii\.gz: preprocessing it does not fit into mem"):
        prepare(data, tmp_path / "cache")


def test_a_full_disk_is_no_case_s_fault(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(case_files, "write_durably", full)
    with pytest.raises(DatasetError, match=r"the cache .* cannot be used \(No space .*make room"):
        prepare(data, tmp_path / "cache")


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("moved_away.nii.gz")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CULPRITS = {
    "a broken link": (link_to_nothing, "is a broken link to moved_away.nii.gz"),
    "a folder": (make_folder, "is a folder, but must be a file"),
    "a pipe": (make_pipe, "is not a regular file"),
}


@pytest.mark.parametrize("name", CULPRITS)
@pytest.mark.parametrize("file", ["imagesTr/c1.nii.gz", "labelsTr/c1.nii.gz", "dataset.json"])
def test_what_stands_in_place_of_a_file_is_said(
    data: Path, tmp_path: Path, name: str, file: str
) -> None:
    spoil, message = CULPRITS[name]
    spoil(data / file)
    with pytest.raises(DatasetError) as error:
        prepare(data, tmp_path / "cache")
    assert f"{data / file}: {message}" in str(error.value)
    assert "SEGTUNE_CACHE" not in str(error.value)
    if file.startswith("images"):
        with pytest.raises(DatasetError, match=message):
            read_image([data / file])


def test_a_file_without_permission_is_said_to_be_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, who may read everything
    locked = data / "labelsTr" / "c4.nii.gz"
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and allowed(path, mode))
    with pytest.raises(DatasetError, match=r"labelsTr/c4\.nii\.gz: cannot be read: permission den"):
        prepare(data, tmp_path / "cache")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (".", r"the data .*data is a file, but must be a folder"),
        ("imagesTr", "imagesTr: is a file, but must be a folder"),
    ],
)
def test_a_file_in_place_of_a_folder(data: Path, place: str, message: str) -> None:
    data.joinpath(place).rename(data.parent / "aside")
    data.joinpath(place).write_text("no folder")
    with pytest.raises(DatasetError, match=message):
        read_layout(data)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_as_cache_is_the_culprit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file")
    cache = blocker / "cache" if inside else blocker
    message = r"blocker is a file, but must be a folder; choose another folder .*SEGTUNE_CACHE"
    with pytest.raises(DatasetError, match=message) as error:
        prepare(data, cache)
    assert "make room" not in str(error.value)
    monkeypatch.setenv("SEGTUNE_CACHE", str(cache))
    with pytest.raises(DatasetError, match=message):
        resolve_data_dir("phantom")
    assert blocker.read_text() == "a file"
