from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from training.config import ModelTrainingConfig
from training.data import (
    DatasetError,
    PreprocessedDataset,
    cache_root,
    generate_phantom,
    prepare_dataset,
    resolve_data_dir,
)
from training.data.split import stratified_split


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_cases=6, seed=3)


def prepare(phantom: Path, cache: Path, **settings: object) -> PreprocessedDataset:
    config = ModelTrainingConfig(**settings)  # type: ignore[arg-type]
    return PreprocessedDataset.load(prepare_dataset(phantom, config, cache_dir=cache))


def test_the_cache_holds_what_was_read(phantom: Path, tmp_path: Path) -> None:
    dataset = prepare(phantom, tmp_path)
    assert dataset.labels == ["background", "liver", "tumour"]
    assert dataset.modality == "CT"
    assert sorted(chain(*dataset.splits.values())) == [f"liver_{i:03d}" for i in range(6)]
    for case, entry in dataset.cases.items():
        image, label = dataset.image(case), dataset.label(case)
        assert isinstance(image, np.memmap)
        assert image.dtype == np.float32
        assert image.shape == entry.shape == (1, *label.shape)
        assert np.bincount(label.ravel(), minlength=3).tolist() == entry.voxel_counts
        expected = dataset.preprocessing.apply(dataset.image_paths(case), entry.label)
        np.testing.assert_array_equal(image, expected.image)
        for value, voxels in dataset.foreground(case).items():
            assert (np.asarray(label)[tuple(voxels.T)] == value).all()
    train = np.sum([dataset.cases[case].voxel_counts for case in dataset.splits["train"]], axis=0)
    assert dataset.voxel_counts("train") == train.tolist()


def test_a_second_study_reuses_the_cache(phantom: Path, tmp_path: Path) -> None:
    config = ModelTrainingConfig()
    told: list[str] = []
    first = prepare_dataset(phantom, config, cache_dir=tmp_path, on_progress=told.append)
    assert told
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    told.clear()
    again = prepare_dataset(
        phantom,
        ModelTrainingConfig(learning_rate=1.0, patch_size=(8, 8, 8)),
        cache_dir=tmp_path,
        on_progress=told.append,
    )
    assert again == first
    assert not told
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_other_settings_or_other_data_are_another_entry(phantom: Path, tmp_path: Path) -> None:
    fingerprints = {
        prepare(phantom, tmp_path).fingerprint,
        prepare(phantom, tmp_path, target_spacing=(8, 6, 6)).fingerprint,
        prepare(phantom, tmp_path, split_seed=1).fingerprint,
        prepare(phantom, tmp_path, intensity_window=(-100, 200)).fingerprint,
    }
    changed = tmp_path / "changed"
    shutil.copytree(phantom, changed)
    shutil.copy(changed / "labelsTr" / "liver_000.nii.gz", changed / "labelsTr/liver_005.nii.gz")
    shutil.copy(changed / "imagesTr" / "liver_000.nii.gz", changed / "imagesTr/liver_005.nii.gz")
    fingerprints.add(prepare(changed, tmp_path).fingerprint)
    assert len(fingerprints) == 5


def test_a_damaged_entry_is_prepared_again(phantom: Path, tmp_path: Path) -> None:
    dataset = prepare(phantom, tmp_path)
    image = dataset.folder / "liver_002.image.npy"
    image.write_bytes(image.read_bytes()[:1000])
    repaired = prepare(phantom, tmp_path)
    assert repaired.is_complete()
    assert repaired == dataset


def test_two_processes_prepare_the_same_data_once(phantom: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from training.config import ModelTrainingConfig;"
        "from training.data import prepare_dataset;"
        "prepare_dataset(Path(sys.argv[1]), ModelTrainingConfig(), on_progress=print)"
    )
    environment = {**os.environ, "SEGTUNE_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(phantom)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(output.count("preprocessing 6 cases") for output in outputs) == [0, 1]
    assert prepare(phantom, tmp_path).is_complete()


def test_a_cache_that_cannot_be_written_says_so(phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetError, match="SEGTUNE_CACHE"):
        prepare_dataset(phantom, ModelTrainingConfig(), cache_dir=tmp_path / "file" / "cache")


def test_raw_data_are_not_taken_for_a_preprocessed_folder(phantom: Path, tmp_path: Path) -> None:
    for folder in (phantom, tmp_path):
        with pytest.raises(DatasetError, match="prepare_dataset"):
            PreprocessedDataset.load(folder)


def test_split_is_stratified_seeded_and_disjoint() -> None:
    counts = {f"case_{i:02d}": [1000, 100 + i, 10 * (i % 4 == 0)] for i in range(40)}
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    splits = stratified_split(counts, **options, seed=0)
    assert splits == stratified_split(dict(reversed(counts.items())), **options, seed=0)
    assert splits != stratified_split(counts, **options, seed=1)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [24, 8, 8]
    assert sorted(chain(*splits.values())) == sorted(counts)
    for cases in splits.values():
        share = np.mean([counts[case][2] > 0 for case in cases])
        assert share == pytest.approx(0.25, abs=0.05)


def test_tiny_datasets_are_split_or_refused() -> None:
    three = {name: [1, 1] for name in "abc"}
    splits = stratified_split(three, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert [len(cases) for cases in splits.values()] == [1, 1, 1]
    two = {name: [1, 1] for name in "ab"}
    assert stratified_split(two, val_fraction=0.2, test_fraction=0, seed=0)["test"] == []
    with pytest.raises(DatasetError, match="2 cases are too few"):
        stratified_split(two, val_fraction=0.2, test_fraction=0.2, seed=0)


def test_the_phantom_is_deterministic_and_like_a_ct(phantom: Path, tmp_path: Path) -> None:
    again = generate_phantom(tmp_path / "again", num_cases=6, seed=3)
    other = generate_phantom(tmp_path / "other", num_cases=2, seed=4)
    for folder in ("imagesTr", "labelsTr"):
        for path in (phantom / folder).iterdir():
            assert path.read_bytes()[10:] == (again / folder / path.name).read_bytes()[10:]
    assert (other / "imagesTr" / "liver_000.nii.gz").read_bytes() != (
        phantom / "imagesTr" / "liver_000.nii.gz"
    ).read_bytes()
    dataset = prepare(phantom, tmp_path / "cache")
    assert dataset.spacing[0] > 1.2 * dataset.spacing[1]
    assert min(count for entry in dataset.cases.values() for count in entry.voxel_counts[:2]) > 0
    with_tumour = [entry.voxel_counts[2] > 0 for entry in dataset.cases.values()]
    assert any(with_tumour)
    assert not all(with_tumour)


def test_the_embedded_data_are_generated_once_into_the_cache() -> None:
    folder = resolve_data_dir("phantom")
    assert cache_root() in folder.parents
    stamp = (folder / "dataset.json").stat().st_mtime_ns
    assert resolve_data_dir("phantom") == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == stamp
    assert resolve_data_dir("elsewhere") == Path("elsewhere")
