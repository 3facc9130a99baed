"""Data whose cases are labelled for some classes only: read, split, cached, and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from raw_data import SHAPE, boxes, make_data
from torch import nn

from training.bundle.case_scores import mean_scores, on_preprocessed_grid
from training.bundle.member import Member
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloaders, prepare_dataset, read_layout
from training.data.prepared.fingerprint import dataset_fingerprint
from training.errors import DatasetError
from training.trainer import SegmentationTrainer

CASES = [f"case_{number}" for number in range(8)]
HALF = {name: ["organ"] for name in CASES[::2]}


def half_labelled(folder: Path, labelled: Any = HALF, **description: Any) -> Path:
    """Cases of an organ and a lesion; every second one is labelled for the organ alone."""
    labels = {name: boxes(1) if name in HALF else boxes(1, 2) for name in CASES}
    given = {} if labelled is None else {"labelled": labelled}
    return make_data(folder, labels, **given, **description)


def write_csv(folder: Path, text: str) -> Path:
    (folder / "labelled.csv").write_text(text)
    return folder


def test_dataset_json_says_what_cases_are_labelled_for(tmp_path: Path) -> None:
    dataset = read_layout(half_labelled(tmp_path, {**HALF, "case_1": ["lesion", "organ"]}))
    found = {case.case_id: case.labelled for case in dataset.cases}
    assert found == {name: (1,) if name in HALF else None for name in CASES}
    assert dataset.is_partly_labelled
    assert not read_layout(half_labelled(tmp_path / "full", None)).is_partly_labelled


@pytest.mark.parametrize(
    "text",
    [
        "case,classes\ncase_0,organ\ncase_1,organ;lesion\n",
        "\ufeffCase;Classes\ncase_0;organ\n\ncase_1;organ, lesion\n",
        "case\tcomment\tclasses\ncase_0\tby X\torgan\ncase_1\t\torgan|lesion\n",
    ],
)
def test_a_csv_file_says_it_as_well(tmp_path: Path, text: str) -> None:
    folder = write_csv(half_labelled(tmp_path, "labelled.csv"), text)
    found = {case.case_id: case.labelled for case in read_layout(folder).cases}
    assert found["case_0"] == (1,)
    assert {found[name] for name in CASES[1:]} == {None}


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ({"case_9": ["organ"]}, r"`labelled` names 'case_9', which is no case; did you mean"),
        ({"patient": ["organ"]}, r"names 'patient', which is no case$"),
        ({"case_0": ["organs"]}, r"case_0: 'organs' is no class; did you mean 'organ'"),
        ({"case_0": "organ"}, r"case_0: `labelled` must map cases .*, but it has 'organ'"),
        ({"case_0": []}, "case_0: it is labelled for no structure: leave the case out"),
        ({"case_0": ["background"]}, "labelled for no structure"),
        (["case_0"], r"`labelled` must map cases .*, but is \['case_0'\]"),
        ({name: ["organ"] for name in CASES}, "no case is labelled for lesion, so it cannot be"),
        ("none.csv", r"labelled: .*none\.csv: is missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, labelled: Any, message: str) -> None:
    folder = half_labelled(tmp_path, labelled)
    with pytest.raises(DatasetError, match=message):
        read_layout(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,classes\n", "must name the columns `case` and `classes`, but is 'name,classes'"),
        ("", "must name the columns"),
        ("case,classes\ncase_0,liver\n", r"line 2: case_0: 'liver' is no class"),
        ("case,classes\ncase_0,organ\ncase_0,lesion\n", "line 3 names the case case_0 twice"),
        ("case,classes\ncase_0,\n", "line 2: case_0: it is labelled for no structure"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write_csv(half_labelled(tmp_path, "labelled.csv"), text)
    with pytest.raises(DatasetError, match=message):
        read_layout(folder)


def test_a_voxel_of_a_class_that_a_case_is_not_labelled_for_is_refused(tmp_path: Path) -> None:
    folder = half_labelled(tmp_path / "data", {"case_1": ["organ"]})
    with pytest.raises(DatasetError, match=r"case_1\.nii\.gz: 27 voxels of lesion, but `labelled`"):
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")


def test_the_fingerprint_goes_by_the_file(tmp_path: Path) -> None:
    folder = write_csv(half_labelled(tmp_path, "labelled.csv"), "case,classes\ncase_0,organ\n")
    one = dataset_fingerprint(read_layout(folder), {}, tmp_path)
    write_csv(folder, "case,classes\ncase_0,organ\ncase_2,organ\n")
    assert dataset_fingerprint(read_layout(folder), {}, tmp_path) != one


def test_a_partly_labelled_folder_is_prepared(tmp_path: Path) -> None:
    lines: list[str] = []
    split = prepare_dataset(
        half_labelled(tmp_path / "data"),
        ModelTrainingConfig(class_weights="inverse_frequency"),
        cache_dir=tmp_path / "cache",
        on_progress=lines.append,
    )
    dataset = PreprocessedDataset.load(split)
    assert dataset.is_partly_labelled
    assert [line for line in lines if line.startswith("lesion is labelled in 4 of 8 cases (")]
    # both classes are in training and in validation, in cases that are labelled for them
    for part in ("train", "val"):
        assert any(dataset.cases[case].labelled is None for case in dataset.splits[part])
    counts = np.array(dataset.known_counts("train"))
    lacking = [case in HALF for case in dataset.splits["train"]]
    assert np.isnan(counts[:, 2]).tolist() == lacking
    assert not np.isnan(counts[:, :2]).any()


def test_with_a_target_label_cases_that_lack_it_are_left_out(tmp_path: Path) -> None:
    folder, lines = half_labelled(tmp_path / "data"), []
    found = {}
    for target in (None, 1, 2):
        split = prepare_dataset(
            folder,
            ModelTrainingConfig(target_label=target),
            cache_dir=tmp_path / "cache",
            on_progress=lines.append,
        )
        splits = PreprocessedDataset.load(split).splits
        found[target] = {case for cases in splits.values() for case in cases}
    assert found[None] == found[1] == set(CASES)
    assert found[2] == set(CASES) - set(HALF)
    named = ", ".join(sorted(HALF))
    assert f"left out, as not labelled for lesion: {named}" in lines
    # a fold that has no other case
    (tmp_path / "splits.json").write_text(
        json.dumps([{"train": [*CASES[1::2], *CASES[2::2]], "val": ["case_0"]}])
    )
    config = ModelTrainingConfig(
        target_label=2, fold=0, splits_file=tmp_path / "splits.json", test_fraction=0
    )
    with pytest.raises(DatasetError, match=r"no case in the part val .* has labels of lesion"):
        prepare_dataset(folder, config, cache_dir=tmp_path / "cache")


def spots(folder: Path, labelled: Any) -> Path:
    """An organ of intensity 1 and in it a lesion of -1, which three quarters of the cases lack."""
    names = [f"case_{number:02}" for number in range(10)]
    lacking = [name for number, name in enumerate(names) if number % 4]
    labels, images = {}, {}
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        label = np.zeros(SHAPE, dtype=np.uint8)
        i, j, k = rng.integers(0, 3, 3)
        label[i + 1 : i + 9, j + 1 : j + 8, k + 1 : k + 7] = 1
        label[i + 3 : i + 7, j + 3 : j + 6, k + 3 : k + 6] = 2
        image = np.array([0, 1, -1])[label] + rng.normal(0, 0.15, SHAPE)
        images[name] = image.astype(np.float32)
        # who did not look for lesions drew the organ around them, and left them out
        labels[name] = np.where(label == 2, 0, label) if name in lacking else label
    given = {"labelled": {name: ["organ"] for name in lacking}} if labelled else {}
    make_data(folder, labels, **given)
    for name, image in images.items():
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"{name}.nii.gz")
    (folder / "splits.json").write_text(
        # a case that is labelled in full judges both
        json.dumps([{"train": names[:8], "val": [names[8]], "test": [names[9]]}])
    )
    return folder


def trained(folder: Path, tmp_path: Path) -> tuple[dict[str, float], SegmentationTrainer]:
    config = ModelTrainingConfig(
        num_classes=3,
        loss="cross_entropy",
        patch_size=(12, 12, 12),
        train_batch_size=2,
        max_epochs=1,
        steps_per_epoch=60,
        learning_rate=0.03,
        scheduler="one_cycle",
        augmentation="none",
        early_stopping_patience=None,
        monitor="val_loss",
        monitor_mode="min",
        fold=0,
        splits_file=folder / "splits.json",
        gpus=0,
        log_dir=tmp_path / "logs",
        checkpoint_dir=tmp_path / "checkpoints",
    )
    config.data_dir = prepare_dataset(folder, config, cache_dir=tmp_path / "cache")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(8, 3, 3, padding=1)
    )
    trainer = SegmentationTrainer(config, model, *get_dataloaders(config))
    return trainer.fit(), trainer


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny convolutions are slow on many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_class_that_most_cases_lack_is_learnt(tmp_path: Path) -> None:
    """As background its voxels teach against it; left out, it is learnt from the others."""
    partly, trainer = trained(spots(tmp_path / "partly", labelled=True), tmp_path / "one")
    background, _ = trained(spots(tmp_path / "plain", labelled=False), tmp_path / "two")
    assert partly["val_dice_2"] > 0.8
    assert partly["val_dice_2"] > background["val_dice_2"] + 0.3
    # the test case lacks the lesion: it has no score, and what is predicted of it is no fault
    tested = trainer.test()
    assert np.isnan(tested["test_dice_2"])
    assert tested["test_hd95_2_missing"] == 0
    assert tested["test_dice_1"] > 0.8
    dataset = PreprocessedDataset.load(trainer.config.data_dir)
    member = Member(trainer.config, trainer.module)
    scores = mean_scores(trainer.module, on_preprocessed_grid([member], dataset))
    assert np.isnan(scores["dice_2"])
    assert scores["dice_1"] == pytest.approx(tested["test_dice_1"], abs=1e-4)
