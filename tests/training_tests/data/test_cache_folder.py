"""A cache folder in which a user keeps other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data import generate_phantom, resolve_data_dir
from training.data.prepared.fingerprint import dataset_fingerprint
from training.data.raw import phantom as phantom_module
from training.data.raw.layouts import read_layout
from training.errors import DatasetError
from training.local_path import is_url


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGTUNE_CACHE", str(folder))
    monkeypatch.setattr(phantom_module, "CASES", 1)
    return folder


def test_a_folder_in_the_place_of_the_phantom_is_left_alone(cache: Path) -> None:
    place = cache / f"liver_phantom-v{phantom_module.VERSION}"
    beside = cache / f".liver_phantom-v{phantom_module.VERSION}.partial" / "mine.txt"
    for path in (place / "mine.txt", beside):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    with pytest.raises(DatasetError, match=r"is something else .* move it away"):
        resolve_data_dir("phantom")
    assert (place / "mine.txt").read_text() == "mine"
    place.rename(cache / "mine")
    assert resolve_data_dir("phantom") == place
    assert (place / "dataset.json").is_file()
    assert beside.read_text() == "mine"
    assert {path.name for path in cache.iterdir()} == {
        *(place.name, f"{place.name}.lock", "mine", beside.parent.name),
    }


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": "b"}', "no json", '{"a": {}}'])
def test_a_memo_of_another_program_is_left_alone(tmp_path: Path, content: str) -> None:
    dataset = read_layout(generate_phantom(tmp_path / "data", num_cases=1))
    cache = tmp_path / "cache"
    cache.mkdir()
    memo = cache / "fingerprints.json"
    memo.write_text(content)
    found = dataset_fingerprint(dataset, {}, cache)
    assert memo.read_text() == content
    memo.unlink()
    assert dataset_fingerprint(dataset, {}, cache) == found
    assert len(json.loads(memo.read_text())) == 3
    assert dataset_fingerprint(dataset, {}, cache) == found
    assert [path.name for path in cache.iterdir()] == [memo.name]


def test_addresses_are_no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("file:///data", Path("file:///data")):
        with pytest.raises(DatasetError, match="is an address, not a folder or file"):
            resolve_data_dir(address)
    monkeypatch.setenv("SEGTUNE_CACHE", "s3://bucket/cache")
    with pytest.raises(DatasetError, match="SEGTUNE_CACHE: s3://bucket/cache is an address"):
        resolve_data_dir("phantom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["data", "/data/s3", "./s3:/x", "C:/data", "a:b/c", "~/data"])
def test_plain_paths_are_no_addresses(path: str) -> None:
    assert not is_url(path)


def test_phantom_cases_are_written_to_an_empty_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(DatasetError, match="is not empty"):
        generate_phantom(tmp_path, num_cases=1)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
