from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from raw_data import SHAPE, boxes, make_data, save

from training.config import ModelTrainingConfig
from training.data import (
    PreprocessedDataset,
    Preprocessing,
    get_dataloader,
    get_dataloaders,
    prepare_dataset,
    read_layout,
)
from training.data.prepared.label_loss import lost_by_resampling
from training.data.prepared.normalisation import ChannelNormalisation
from training.data.prepared.resampling import resample_label
from training.data.raw.volume import read_image, read_label
from training.errors import DatasetError

CT = ChannelNormalisation(modality="CT", low=-1000, high=500, std=100)
MR = ChannelNormalisation(modality="MR")


def in_colour(code: str = "u1") -> np.ndarray:
    return np.zeros(SHAPE, np.dtype([(name, code) for name in "RGB"]))


@pytest.mark.parametrize("off", [1e-3, 5e-4, -9e-4])
def test_labels_that_are_whole_but_for_rounding_are_rounded(tmp_path: Path, off: float) -> None:
    path = save(tmp_path / "l.nii.gz", boxes(1, 2) + off * 0.999)
    label = read_label(path, range(3)).data
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, boxes(1, 2))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0011, "1.0011"),
        (2.4999999, "2.4999999"),
        (0.5, "0.5"),
        (np.nan, "nan"),
        (np.inf, "inf"),
    ],
)
def test_labels_between_whole_numbers_are_refused_in_full(
    tmp_path: Path, value: float, shown: str
) -> None:
    voxels = boxes(1, 2).astype(np.float64)
    voxels[0, 0, 0] = value
    path = save(tmp_path / "l.nii.gz", voxels)
    with pytest.raises(DatasetError, match=rf"l\.nii\.gz: .*, but 1 voxels have {shown}:"):
        read_label(path, range(3))


@pytest.mark.parametrize(("value", "dtype"), [(1_000_001, np.int32), (-1, np.int16), (256, "<u2")])
def test_unknown_labels_are_refused_in_full(tmp_path: Path, value: int, dtype: Any) -> None:
    voxels = boxes(1).astype(dtype)
    voxels[0, 0, 0] = value
    with pytest.raises(DatasetError, match=rf"unknown label {value}; dataset\.json decl"):
        read_label(save(tmp_path / "l.nii.gz", voxels), range(2))


@pytest.mark.parametrize("voxels", [in_colour(), np.zeros(SHAPE, np.complex64)])
def test_colours_and_complex_numbers_are_refused_by_name(tmp_path: Path, voxels: Any) -> None:
    path = save(tmp_path / "x.nii.gz", voxels)
    for read in (lambda: read_label(path, range(3)), lambda: read_image([path])):
        with pytest.raises(DatasetError, match=r"x\.nii\.gz: (its voxels are col|voxels of ty)"):
            read()


def test_300_labels_stay_apart_from_file_to_patch_and_back(tmp_path: Path) -> None:
    names = ("background", *(f"part {value}" for value in range(1, 300)))
    labels = {f"c{index}": boxes(1, 257, 299) for index in range(5)}
    folder = make_data(tmp_path / "data", labels, names=names, affine=np.diag([2, 2, 2, 1]))
    config = ModelTrainingConfig(target_spacing=(1, 1, 1))
    told: list[str] = []
    split = prepare_dataset(folder, config, cache_dir=tmp_path / "cache", on_warning=told.append)
    dataset = PreprocessedDataset.load(split)
    label = dataset.label("c0")
    assert label.dtype == np.uint16
    assert np.unique(label).tolist() == [0, 1, 257, 299]
    assert dataset.is_complete()
    assert sorted(dataset.foreground("c0")) == [1, 257, 299]
    one_hot = (label[None] == np.arange(300)[:, None, None, None]).astype(np.float32)
    case = dataset.preprocessing.apply(dataset.cases["c0"].images, dataset.cases["c0"].label)
    back = dataset.preprocessing.invert(one_hot, case.info)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, labels["c0"])
    for augmentation in ("flip", "nnunet"):
        loader = get_dataloader(
            split, "train", 2, 0, False, patch_size=(16, 16, 16), augmentation=augmentation
        )
        seen = np.unique(np.concatenate([batch["label"].numpy().ravel() for batch in loader]))
        assert set(seen) <= {0, 1, 257, 299}
        assert {257, 299} & set(seen)
    # half an array is found out, also where a label takes two bytes
    whole = (dataset.array_folder / "c0.label.npy").read_bytes()
    (dataset.array_folder / "c0.label.npy").write_bytes(whole[: len(whole) * 2 // 3])
    assert not dataset.is_complete()


def test_labels_that_the_header_scales_are_not_said_to_be_interpolated(tmp_path: Path) -> None:
    for name, stored in (("half", boxes(1, 2)), ("whole", 2 * boxes(1, 2))):
        image = nib.Nifti1Image(stored, np.eye(4))
        image.header.set_slope_inter(0.5, 0)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    with pytest.raises(DatasetError, match=r"have 0\.5: its header scales .* by scl_slope 0\.5"):
        read_label(tmp_path / "half.nii.gz", range(3))
    assert np.array_equal(read_label(tmp_path / "whole.nii.gz", range(3)).data, boxes(1, 2))


def test_a_network_without_a_place_for_a_label_or_channel_is_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes(1, 2) for i in range(5)})
    split = prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    get_dataloaders(ModelTrainingConfig(data_dir=split))
    get_dataloaders(ModelTrainingConfig(data_dir=split, num_classes=2, target_label=1))
    wrong = ModelTrainingConfig(data_dir=split, num_classes=2, input_channels=2)
    with pytest.raises(DatasetError) as error:
        get_dataloaders(wrong)
    assert "num_classes=2, but the data in" in str(error.value)
    assert "have 3 (background, organ, lesion): set num_classes=3" in str(error.value)
    assert "have 1 (MRI): set input_channels=1" in str(error.value)


def test_two_names_of_one_label_value_are_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path, {"c": boxes(1)}, labels={"background": 0, "left": 1, "right": 1})
    with pytest.raises(DatasetError, match="gives the value 1 to 'left' and to 'right'"):
        read_layout(folder)


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_labels_that_are_all_empty_are_refused(tmp_path: Path, modality: str) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes() for i in range(5)}, modality=modality)
    with pytest.raises(DatasetError, match="no foreground voxel: there is nothing to learn"):
        prepare_dataset(folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_a_label_that_no_case_has_is_said(tmp_path: Path, modality: str) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes(1) for i in range(5)}, modality=modality)
    told: list[str] = []
    for _ in range(2):
        prepare_dataset(
            folder, ModelTrainingConfig(), cache_dir=tmp_path / "cache", on_warning=told.append
        )
    assert len(told) == 2
    assert all("no case has label 2 (lesion): it cannot be learnt" in line for line in told)
    with pytest.raises(DatasetError, match=r"no training case has a voxel of label 2 \(lesion\)"):
        prepare_dataset(folder, ModelTrainingConfig(target_label=2), cache_dir=tmp_path / "cache")


def test_a_label_that_resampling_leaves_nothing_of_is_said_to_have_been_there(
    tmp_path: Path,
) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes(1, 2) for i in range(5)})
    for index in range(5):
        label = boxes(1)
        label[10, 9, 8] = 2
        save(folder / "labelsTr" / f"c{index}.nii.gz", label)
    config = ModelTrainingConfig(target_spacing=(2, 2, 2))
    told: list[str] = []
    prepare_dataset(folder, config, cache_dir=tmp_path / "cache", on_warning=told.append)
    assert told[0] == (
        "no case has label 2 (lesion), though 5 had before resampling: it cannot be learnt, and "
        "its scores mean nothing"
    )
    assert sum("1 voxels of label 2 are lost by resampling" in line for line in told) == 5
    only = config.model_copy(update={"target_label": 2})
    with pytest.raises(DatasetError, match=r"label 2 \(lesion\) after resampling: nothing can"):
        prepare_dataset(folder, only, cache_dir=tmp_path / "cache")


def body_and_label(modality: str) -> tuple[np.ndarray, np.ndarray]:
    """A bright block in air, and a label that reaches out of it on every side."""
    rng = np.random.default_rng(0)
    image = np.full((20, 20, 20), -900 if modality == "CT" else 0, dtype=np.float32)
    image[6:14, 6:14, 6:14] = rng.uniform(20, 200, size=(8, 8, 8))
    label = np.zeros(image.shape, dtype=np.uint8)
    label[3:15, 4:16, 2:8] = 1
    return image, label


@pytest.mark.parametrize(
    "channel", [CT, MR, ChannelNormalisation(modality="MR", body_only=True)], ids=str
)
def test_no_label_is_cropped_away_and_none_changes_the_intensities(
    tmp_path: Path, channel: ChannelNormalisation
) -> None:
    image, label = body_and_label(channel.modality)
    paths = save(tmp_path / "i.nii.gz", image), save(tmp_path / "l.nii.gz", label)
    settings = Preprocessing(spacing=(1, 1, 1), channels=[channel], num_classes=2)
    trained, predicted = settings.apply([paths[0]], paths[1]), settings.apply([paths[0]])
    assert trained.label is not None
    assert (trained.label == 1).sum() == label.sum()
    back = settings.invert(np.stack([trained.label == 0, trained.label == 1]) * 1.0, trained.info)
    np.testing.assert_array_equal(back, label)
    inner = tuple(
        slice(small[0] - large[0], small[1] - large[0])
        for small, large in zip(predicted.info.crop, trained.info.crop, strict=True)
    )
    np.testing.assert_array_equal(trained.image[:, *inner], predicted.image)
    assert predicted.image.shape == (1, 8, 8, 8)
    (warning,) = trained.warnings
    lost = int(label.sum() - label[6:14, 6:14, 6:14].sum())
    assert f"l.nii.gz: {lost} voxels of label 1 lie outside the body" in warning


def test_what_resampling_loses_is_counted_by_case(tmp_path: Path) -> None:
    labels = {f"c{index}": np.zeros((24, 24, 24), dtype=np.uint8) for index in range(5)}
    for label in labels.values():
        label[2:14, 2:14, 2:14] = 1
    # beside the organ, lesions that fall between the voxels of a grid 4 times as coarse
    labels["c1"][20, 20, 20] = 2
    labels["c3"][16, 16, 20:22] = 2
    folder = make_data(tmp_path / "data", labels)
    told: list[str] = []
    split = prepare_dataset(
        folder,
        ModelTrainingConfig(target_spacing=(4, 4, 4)),
        cache_dir=tmp_path / "cache",
        on_warning=told.append,
    )
    stored = PreprocessedDataset.load(split)
    assert all(2 not in np.unique(stored.label(case)) for case in ("c1", "c3"))
    lost = [line for line in told if "lost by resampling from 1 x 1 x 1 to 4 x 4 x 4 mm" in line]
    assert len(lost) == 2
    assert "labelsTr/c1.nii.gz: 1 voxels of label 2" in lost[0]
    assert "labelsTr/c3.nii.gz: 2 voxels of label 2" in lost[1]


def test_only_what_is_wholly_gone_counts_as_lost() -> None:
    before = np.zeros((16, 16, 16), dtype=np.uint8)
    before[1:7, 1:7, 1:7] = 1
    before[12, 12, 12] = 1
    before[9:15, 1:7, 1:7] = 3
    after = resample_label(before, (5, 5, 5))
    assert lost_by_resampling(before, after) == {1: 1}
    assert lost_by_resampling(before, before) == {}
    before[12, 12, 12] = 0
    for shape in ((5, 5, 5), (32, 32, 32), (16, 20, 13)):
        assert lost_by_resampling(before, resample_label(before, shape)) == {}


def test_a_window_without_a_ct_is_said_to_have_no_effect(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", {f"c{i}": boxes(1, 2) for i in range(5)})
    told: list[str] = []
    prepare_dataset(
        folder,
        ModelTrainingConfig(intensity_window=(-100, 200)),
        cache_dir=tmp_path / "cache",
        on_warning=told.append,
    )
    assert told == ["intensity_window=[-100.0, 200.0] has no effect: no channel is CT (MRI)"]


def test_a_scaled_label_file_is_read_by_its_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(boxes(1, 2).astype(np.float32), np.eye(4))
    # 1 and 2 are stored as shares of 32767
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(read_label(tmp_path / "l.nii.gz", range(3)).data, boxes(1, 2))
