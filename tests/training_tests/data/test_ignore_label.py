"""Data with nnU-Net's `ignore` label: read, counted, cached, sampled and trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_data import SHAPE, boxes, make_data, save

from training.bundle.postprocessing import choose_postprocessing
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloader, prepare_dataset
from training.data.patches.spatial import Region
from training.data.prepared.preprocessing import Preprocessing
from training.data.raw.dataset_labels import read_labels
from training.data.raw.volume import read_label
from training.errors import DatasetError
from training.ignored_voxels import IGNORE_INDEX
from training.lightning_module import build_module
from training.models import build_model

JSON = Path("dataset.json")
NNUNET = {"background": 0, "organ": 1, "lesion": 2}


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        ({**NNUNET, "ignore": 3}, (3,)),
        ({**NNUNET, "ignore": 255}, (255,)),
        ({**NNUNET, "Ignore ": [255, 254]}, (254, 255)),
        ({"0": "background", "1": "organ", "2": "lesion", "3": "ignore"}, (3,)),
        ({"0": "background", "1": "organ", "2": "lesion", "3": "ignore", "9": "ignore"}, (3, 9)),
        ({"background": 0, "organ": 2, "lesion": 4, "ignore": 1}, (1,)),
    ],
)
def test_the_ignore_label_is_no_class(labels: dict[str, Any], ignore: tuple[int, ...]) -> None:
    found = read_labels({"labels": labels}, JSON)
    assert found.names == ("background", "organ", "lesion")
    assert found.ignore == ignore


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "ignore": 1}, "at least one structure beside `ignore`"),
        ({**NNUNET, "ignore": 2}, "value 2 to 'lesion' and to 'ignore': .* another value"),
        ({**NNUNET, "ignore": 0}, "value 0 to 'background' and to 'ignore'"),
        ({**NNUNET, "ignore": []}, "gives 'ignore' no value"),
        ({**NNUNET, "ignore": [255, -1]}, "gives 'ignore' the value -1"),
        ({**NNUNET, "ignore": 70000}, "the value 70000, but it must be .* 1 to 65535"),
        ({**NNUNET, "ignore": 2.5}, r"gives 'ignore' the value 2\.5"),
    ],
)
def test_an_ignore_label_that_makes_no_sense_is_refused(
    labels: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_labels({"labels": labels}, JSON)


def test_ignored_values_have_one_value_in_an_array(tmp_path: Path) -> None:
    voxels = boxes(1, 2).astype(np.int16)
    voxels[5:7], voxels[7:9] = 254, 300
    path = save(tmp_path / "l.nii.gz", voxels)
    found = read_label(path, range(3), (254, 300)).data
    assert found.dtype == np.uint8
    assert np.array_equal(found[:5], boxes(1, 2)[:5])
    assert np.unique(found[5:9]).tolist() == [255]
    # 256 classes leave no value in uint8
    assert read_label(path, range(256), (300,)).data.dtype == np.uint16
    with pytest.raises(DatasetError, match=r"unknown label 300; .* 0 to 2, and 254 to ignore"):
        read_label(path, range(3), (254,))


def scribbles(seed: int = 0) -> np.ndarray:
    """A label map of which one line in each class and in the background is labelled."""
    label = np.full(SHAPE, 255, dtype=np.uint8)
    label[2, 2, 1:4], label[2, 2, 5:8], label[9, 9, 1:9] = 1, 2, 0
    return label


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreprocessedDataset, list[str]]:
    folder = tmp_path_factory.mktemp("scribbles")
    cases: dict[str, Any] = {f"case_{index}": scribbles() for index in range(6)}
    cases["unlabelled"] = np.full(SHAPE, 255, dtype=np.uint8)
    data = make_data(folder / "data", cases, labels={**NNUNET, "ignore": 255}, modality="CT")
    # a foreground statistic that took ignored voxels would see them
    for case in cases:
        path = data / "imagesTr" / f"{case}.nii.gz"
        image = np.full(SHAPE, 900, dtype=np.float32)
        image[2, 2, 1:8] = np.linspace(0, 60, 7)
        save(path, image)
    warnings: list[str] = []
    config = ModelTrainingConfig(num_classes=3)
    split = prepare_dataset(data, config, cache_dir=folder / "cache", on_warning=warnings.append)
    return PreprocessedDataset.load(split), warnings


def test_statistics_count_labelled_voxels_alone(
    prepared: tuple[PreprocessedDataset, list[str]],
) -> None:
    dataset, _ = prepared
    assert dataset.labels == ["background", "organ", "lesion"]
    assert dataset.voxel_counts("train") == [8 * 4, 3 * 4, 3 * 4]
    assert dataset.preprocessing.channels[0].high <= 60
    stored = dataset.label("case_0")
    assert np.unique(stored).tolist() == [0, 1, 2, 255]
    # ignored voxels are no foreground that a crop would have to keep
    assert len(dataset.labelled("case_0")) == 14
    assert sorted(dataset.foreground("case_0")) == [1, 2]


def test_a_case_without_labelled_voxels_is_named_and_left_out(
    prepared: tuple[PreprocessedDataset, list[str]],
) -> None:
    dataset, warnings = prepared
    assert not any("unlabelled" in cases for cases in dataset.splits.values())
    assert any("unlabelled.nii.gz: every voxel is to ignore" in line for line in warnings)


@pytest.mark.parametrize("augmentation", ["none", "nnunet"])
@pytest.mark.parametrize("size", [(4, 4, 4), (14, 6, 30)])
def test_every_patch_has_a_labelled_voxel(
    prepared: tuple[PreprocessedDataset, list[str]], augmentation: str, size: tuple[int, int, int]
) -> None:
    loader = get_dataloader(
        prepared[0].folder,
        "train",
        4,
        0,
        shuffle=True,
        patch_size=size,
        foreground_fraction=0.2,
        augmentation=augmentation,
        steps_per_epoch=10,
    )
    for batch in loader:
        values = batch["label"].unique().tolist()
        assert IGNORE_INDEX in values
        assert set(values) <= {IGNORE_INDEX, 0, 1, 2}
        for label in batch["label"] if augmentation == "none" else ():
            assert (label >= 0).any()


def test_around_a_case_nothing_is_known(prepared: tuple[PreprocessedDataset, list[str]]) -> None:
    label = np.ones((4, 4, 4), dtype=np.int64)
    turned = np.eye(3)[[0, 2, 1]] * 2
    region = Region.of(np.array([-2, -2, -2]), np.array([8, 8, 8]), turned, label.shape)
    image = np.ones((1, 4, 4, 4), dtype=np.float32)
    _, known = region.sample(image, label)
    _, unknown = region.sample(image, label, IGNORE_INDEX)
    assert known.unique().tolist() == [0, 1]
    assert unknown.unique().tolist() == [IGNORE_INDEX, 1]
    assert torch.equal(known == 1, unknown == 1)
    assert prepared[0].has_ignored


def test_a_case_predicts_no_ignored_voxel_and_is_scored_without(
    prepared: tuple[PreprocessedDataset, list[str]],
) -> None:
    dataset, _ = prepared
    config = ModelTrainingConfig(
        data_dir=dataset.folder,
        model_name="basic_unet",
        model_params={"features": [4, 4, 4, 4, 4, 4]},
        num_classes=3,
        patch_size=(16, 16, 16),
    )
    module = build_module(build_model(config), config)
    case = get_dataloader(dataset.folder, "val", 1, 0, shuffle=False).dataset[0]
    module.validation_step([case], 0)
    scores = module.metrics["val_metrics"].compute()
    with torch.no_grad():
        predicted = module.to_labels(module.predict_logits(case["image"]))
    known = case["label"] != IGNORE_INDEX
    assert int(known.sum()) == 14
    right = (predicted == case["label"])[known].double().mean()
    assert scores["accuracy"] == pytest.approx(float(right))
    assert set(predicted.unique().tolist()) <= {0, 1, 2}


def test_with_a_target_label_ignored_voxels_stay_ignored(tmp_path: Path) -> None:
    config = ModelTrainingConfig(
        model_name="basic_unet",
        model_params={"features": [4, 4, 4, 4, 4, 4]},
        num_classes=3,
        target_label=2,
    )
    module = build_module(build_model(config), config)
    label = torch.tensor([[0, 1, 2, IGNORE_INDEX]])
    assert module._task_target(label).tolist() == [[0, 0, 1, IGNORE_INDEX]]
    assert module._task_target(label[:, :3].byte()).tolist() == [[0, 0, 1]]


def test_postprocessing_is_chosen_by_labelled_voxels() -> None:
    """A false component is removed where the reference says so, not where it says nothing."""
    reference = np.zeros((10, 10, 10), dtype=np.int16)
    reference[1:5, 1:5, 1:5] = 1
    prediction = (reference == 1).astype(np.uint8)
    prediction[8:10, 8:10, 8:10] = 1
    hidden = reference.copy()
    hidden[7:, 7:, 7:] = IGNORE_INDEX
    chosen = choose_postprocessing(lambda: [(prediction, reference, (1, 1, 1))], 2)
    unknown = choose_postprocessing(lambda: [(prediction, hidden, (1, 1, 1))], 2)
    assert chosen.postprocessing.steps
    assert not unknown.postprocessing.steps
    assert unknown.before == (1.0,)


def test_settings_without_an_ignore_label_read_as_before() -> None:
    old = {"spacing": [1, 1, 1], "channels": [], "num_classes": 3}
    assert Preprocessing.model_validate(old).ignore == ()
