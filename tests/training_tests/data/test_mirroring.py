from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_data import make_data

from training.config import ModelTrainingConfig
from training.data import get_dataloaders, prepare_dataset
from training.data.patches.augmentation import AUGMENTATIONS, Augmentation, preset_of
from training.data.patches.mirroring import mirror_axes, sided_labels, trained_mirror_axes
from training.errors import DatasetError


@pytest.mark.parametrize(
    ("labels", "sided"),
    [
        (["background", "kidney_left", "kidney_right"], ["kidney_left", "kidney_right"]),
        (["background", "Left Hippocampus", "tumour"], ["Left Hippocampus"]),
        (["background", "lung_l", "lung_r"], ["lung_l", "lung_r"]),
        (["background", "Femur-R", "Femur-L"], ["Femur-R", "Femur-L"]),
        (["background", "LeftAtrium", "RightAtrium"], ["LeftAtrium", "RightAtrium"]),
        (["background", "rt lung", "lt lung"], ["rt lung", "lt lung"]),
        (["background", "leftkidney", "rightkidney"], ["leftkidney", "rightkidney"]),
        (["background", "RV", "MYO", "LV"], ["RV", "LV"]),
        (["background", "l kidney"], ["l kidney"]),
        (["background", "Kidney (L)", "Lung R", "spleen"], ["Kidney (L)", "Lung R"]),
        (["background", "L", "vertebra L 1", "vertebra L-2", "lkidney"], []),
        (["background", "vertebra_L1", "vertebra_R1x", "T12"], []),
        (["background", "liver", "bright lesion", "cleft", "oral cavity"], []),
        (["background", "anterior", "posterior"], []),
    ],
)
def test_labels_that_name_sides(labels: list[str], sided: list[str]) -> None:
    assert sided_labels(labels) == sided
    expected = ["depth", "height"] if sided else ["depth", "height", "width"]
    assert mirror_axes(ModelTrainingConfig(), labels) == expected


@pytest.mark.parametrize(
    ("given", "axes"), [([2, 0], ["width", "depth"]), (["height"], ["height"]), ([], [])]
)
def test_axes_that_are_given_are_taken(given: list[Any], axes: list[str]) -> None:
    config = ModelTrainingConfig(mirror_axes=given)
    assert mirror_axes(config, ["background", "left kidney"]) == axes
    assert ModelTrainingConfig.from_flat(config.flat()) == config


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (2,)])
def test_only_the_given_axes_are_mirrored(name: Any, axes: tuple[int, ...]) -> None:
    augmentation = Augmentation(name, (2, 2, 2), mirror_axes=axes)
    label = torch.arange(8).reshape(2, 2, 2)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(100):
        _, turned = augmentation.change(torch.zeros(1, 2, 2, 2), label.clone(), rng)
        corners.add(int(turned[0, 0, 0]))
    moved = {axis for axis in range(3) if any(corner >> (2 - axis) & 1 for corner in corners)}
    assert moved == (set(axes) if preset_of(name).mirroring else set())


def sided_data(folder: Path, names: tuple[str, ...]) -> Path:
    labels = {}
    for index in range(5):
        label = np.zeros((12, 11, 10), dtype=np.uint8)
        # files grow to the right along their first axis, patches along their last
        label[:3, 4:7, 4:7] = 1
        label[9:, 4:7, 4:7] = 2
        labels[f"c{index}"] = label
    return make_data(folder, labels, names=names)


@pytest.mark.parametrize(
    ("names", "axes", "swaps"),
    [
        (("background", "left kidney", "right kidney"), "auto", False),
        (("background", "kidney", "spleen"), "auto", True),
        (("background", "left kidney", "right kidney"), ["width"], True),
    ],
)
def test_left_and_right_keep_their_sides_in_training(
    tmp_path: Path, names: tuple[str, ...], axes: Any, swaps: bool
) -> None:
    config = ModelTrainingConfig(
        patch_size=(10, 11, 12),
        augmentation="flip",
        steps_per_epoch=10,
        mirror_axes=axes,
        foreground_fraction=0,
    )
    config.data_dir = prepare_dataset(
        sided_data(tmp_path / "data", names), config, cache_dir=tmp_path / "cache"
    )
    train, _, _ = get_dataloaders(config)
    patches = torch.cat([batch["label"] for batch in train])
    assert len(patches) == 20
    on_the_left = patches[..., :6]
    assert bool((on_the_left == 2).any()) is swaps


@pytest.mark.parametrize(
    ("values", "labels", "axes"),
    [
        ({}, ["background", "liver"], (0, 1, 2)),
        ({}, ["background", "left kidney"], (0, 1)),
        ({"augmentation": "none"}, ["background", "liver"], ()),
        ({"augmentation": "flip"}, ["background", "liver"], (0, 1, 2)),
        ({"augmentation": "my_package.changes:turn"}, ["background", "liver"], ()),
        ({"mirror_axes": ["width", "depth"]}, ["background", "left kidney"], (0, 2)),
        ({"mirror_axes": []}, ["background", "liver"], ()),
        # it says how much else is changed
        ({"augmentation_strength": 0}, ["background", "liver"], (0, 1, 2)),
    ],
)
def test_prediction_may_mirror_what_training_mirrored(
    values: dict[str, Any], labels: list[str], axes: tuple[int, ...]
) -> None:
    assert trained_mirror_axes(ModelTrainingConfig(**values), labels) == axes


def test_without_labels_those_of_the_preprocessed_folder_decide(tmp_path: Path) -> None:
    config = ModelTrainingConfig(data_dir=tmp_path / "none")
    with pytest.raises(DatasetError, match="none"):
        trained_mirror_axes(config)
    config.mirror_axes = ["height"]
    assert trained_mirror_axes(config) == (1,)
    config = ModelTrainingConfig()
    sided = sided_data(tmp_path / "data", ("background", "left kidney", "right kidney"))
    config.data_dir = prepare_dataset(sided, config, cache_dir=tmp_path / "cache")
    assert trained_mirror_axes(config) == (0, 1)
