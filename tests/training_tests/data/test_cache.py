from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.config import ModelTrainingConfig
from training.data import (
    DataSource,
    PreprocessedDataset,
    cache_root,
    generate_phantom,
    prepare_dataset,
    read_layout,
    resolve_data_dir,
)
from training.data.prepared import preparation
from training.data.raw import case_threads
from training.errors import DatasetError


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
        expected = dataset.preprocessing.apply(entry.images, entry.label)
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
    before = stamps(PreprocessedDataset.load(first))
    told.clear()
    again = prepare_dataset(
        phantom,
        ModelTrainingConfig(learning_rate=1.0, patch_size=(8, 8, 8)),
        cache_dir=tmp_path,
        on_progress=told.append,
    )
    assert again == first
    assert not told
    assert stamps(PreprocessedDataset.load(first)) == before


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


def test_a_damaged_case_is_prepared_again(phantom: Path, tmp_path: Path) -> None:
    dataset = prepare(phantom, tmp_path)
    before = stamps(dataset)
    damaged = dataset.array_folder / "liver_002.image.npy"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    repaired = prepare(phantom, tmp_path)
    assert repaired.is_complete()
    assert repaired == dataset
    changed = {path.name for path, stamp in stamps(repaired).items() if before[path] != stamp}
    assert all(name.startswith("liver_002.") for name in changed if name.endswith((".npy", "z")))


def stamps(dataset: PreprocessedDataset) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in dataset.array_folder.glob("*.*")}


KILLED = """
import os, sys
from pathlib import Path
from training.config import ModelTrainingConfig
from training.data import prepare_dataset

def die(step, done, total):
    if (step, done) == (sys.argv[2], 3):
        os._exit(9)

prepare_dataset(Path(sys.argv[1]), ModelTrainingConfig(), on_case=die)
"""


@pytest.mark.parametrize("step", ["reading", "preprocessing"])
def test_a_preparation_that_was_killed_goes_on(phantom: Path, tmp_path: Path, step: str) -> None:
    environment = {**os.environ, "SEGTUNE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", KILLED, str(phantom), step]
    assert subprocess.run(command, env=environment).returncode == 9
    assert not list(tmp_path.glob("**/dataset.json"))
    pattern = "*.scan.json" if step == "reading" else "liver_00?.json"
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"phantom-*/{pattern}")}
    assert 3 <= len(done) < 6
    told: list[str] = []
    counts: list[tuple[str, int]] = []
    resumed = PreprocessedDataset.load(
        prepare_dataset(
            phantom,
            ModelTrainingConfig(),
            cache_dir=tmp_path,
            on_progress=told.append,
            on_case=lambda name, cases, total: counts.append((name, cases)),
        )
    )
    assert f"({len(done)} of them are done)" in told[0]
    assert [cases for name, cases in counts if name == step] == list(range(len(done), 7))
    if step == "preprocessing":
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    whole = prepare(phantom, tmp_path / "other")
    for case in whole.cases:
        np.testing.assert_array_equal(resumed.image(case), whole.image(case))
        np.testing.assert_array_equal(resumed.label(case), whole.label(case))
    assert resumed.cases == whole.cases
    assert resumed.preprocessing == whole.preprocessing
    leftover = {path.name for path in resumed.array_folder.iterdir() if "scan" in path.name}
    assert not leftover


def test_another_fold_takes_the_same_arrays(phantom: Path, tmp_path: Path) -> None:
    first = prepare(phantom, tmp_path, fold=0, num_folds=3)
    before = stamps(first)
    others = [
        prepare(phantom, tmp_path, fold=1, num_folds=3),
        prepare(phantom, tmp_path, fold=4),
        prepare(phantom, tmp_path, test_fraction=0, val_fraction=0.5),
    ]
    for other in others:
        assert other.preprocessing == first.preprocessing
        assert stamps(other) == before
        assert other.splits != first.splits
        assert other.splits["test"] == []
    # test cases are kept out of the statistics, so they ask for arrays of their own
    apart = prepare(phantom, tmp_path, fold=0, num_folds=3, test_fraction=0.2)
    assert apart.array_folder.resolve() != first.array_folder.resolve()
    assert len(apart.splits["test"]) == 1
    assert sorted(chain(*apart.splits.values())) == sorted(first.cases)


def test_test_cases_do_not_change_the_preprocessing(phantom: Path, tmp_path: Path) -> None:
    plain = prepare(phantom, tmp_path)
    changed = tmp_path / "phantom"
    shutil.copytree(phantom, changed)
    path = changed / "imagesTr" / f"{plain.splits['test'][0]}.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(300), image.affine), path)
    other = prepare(changed, tmp_path)
    assert other.splits == plain.splits
    assert other.preprocessing == plain.preprocessing


def test_ct_statistics_are_those_of_the_foreground(phantom: Path, tmp_path: Path) -> None:
    dataset = prepare(phantom, tmp_path)
    voxels = []
    for case in (*dataset.splits["train"], *dataset.splits["val"]):
        (image,), label = dataset.cases[case].images, dataset.cases[case].label
        inside = np.asarray(nib.load(label).dataobj) > 0
        found = np.asarray(nib.load(image).dataobj)[inside].astype(float)
        # every case counts the same
        voxels.append(np.quantile(found, np.linspace(0, 1, 20_001)))
    (channel,) = dataset.preprocessing.channels
    low, high = np.percentile(voxels, (0.5, 99.5))
    assert channel.low == pytest.approx(low, abs=3)
    assert channel.high == pytest.approx(high, abs=3)
    assert channel.mean == pytest.approx(np.mean(voxels), abs=1)
    assert channel.std == pytest.approx(np.std(voxels), abs=1)
    assert not channel.body_only


def test_a_node_without_the_cache_prepares_its_own(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelTrainingConfig(fold=1, num_folds=3)
    shared = prepare_dataset(phantom, config, cache_dir=tmp_path / "driver")
    fingerprint = PreprocessedDataset.load(shared).fingerprint
    assert DataSource(shared, phantom, fingerprint).on_this_node(config) == shared
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "node"))
    unseen = tmp_path / "driver, on another machine"
    local = DataSource(unseen, phantom, fingerprint).on_this_node(config)
    assert tmp_path / "node" in local.parents
    assert PreprocessedDataset.load(local).splits == PreprocessedDataset.load(shared).splits
    with pytest.raises(DatasetError, match=r"neither the preprocessed data .*SEGTUNE_CACHE"):
        DataSource(unseen, tmp_path / "nowhere", fingerprint).on_this_node(config)
    with pytest.raises(DatasetError, match="are not those of the study"):
        DataSource(unseen, phantom, "0123456789abcdef").on_this_node(config)


def test_large_cases_are_preprocessed_fewer_at_once(
    phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = read_layout(phantom).cases
    voxels = max(np.prod(nib.load(case.images[0]).shape) for case in cases)
    monkeypatch.setattr(case_threads, "_cores", lambda: 64)
    assert case_threads.case_threads(cases, preparation.BYTES_PER_VOXEL) == 64
    # a machine with room for 3 and a half of these cases in half of its memory
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(7 * voxels * preparation.BYTES_PER_VOXEL)}
    monkeypatch.setattr(case_threads.os, "sysconf", pages.__getitem__)
    assert 3 <= case_threads.case_threads(cases, preparation.BYTES_PER_VOXEL) <= 4
    pages["SC_PHYS_PAGES"] = 1
    assert case_threads.case_threads(cases, preparation.BYTES_PER_VOXEL) == 1


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
