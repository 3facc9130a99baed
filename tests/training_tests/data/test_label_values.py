"""Label files with gaps (0, 1, 4) or 0 and 255: classes inside, the files' values outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raw_data import boxes, make_data, save

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_scores import files_of, on_file_grid
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.prediction import predict_images
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloaders, prepare_dataset, read_layout
from training.data.raw.label_values import label_dtype, to_classes, to_values
from training.errors import DatasetError, FieldsError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

DECATHLON = {"0": "background", "1": "organ", "4": "lesion"}
NNUNET = {"background": 0, "lesion": 4, "organ": 1}


def cases(*labels: int) -> dict[str, Any]:
    return {f"case_{index}": boxes(*labels) for index in range(4)}


def prepare(folder: Path, config: ModelTrainingConfig | None = None) -> PreprocessedDataset:
    config = config or ModelTrainingConfig()
    return PreprocessedDataset.load(prepare_dataset(folder, config, cache_dir=folder / "cache"))


def config_of(**settings: Any) -> ModelTrainingConfig:
    return ModelTrainingConfig(
        model_name="unet3d",
        model_params={"channels": [4, 8], "strides": [2], "num_res_units": 0},
        patch_size=(8, 8, 8),
        gpus=0,
        **settings,
    )


def write_untrained(
    folder: Path, config: ModelTrainingConfig, data: PreprocessedDataset
) -> SegmentationLightningModule:
    torch.manual_seed(0)
    module = SegmentationLightningModule(build_model(config), config, spacing=(1, 1, 1)).eval()
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    write_bundle(
        folder,
        members=[Member(config, module)],
        preprocessing=data.preprocessing,
        manifest=Manifest(labels=data.labels, channels=["MRI"], metrics={}, provenance={}),
    )
    return module


@pytest.mark.parametrize("labels", [DECATHLON, NNUNET])
def test_labels_with_gaps_are_prepared_as_those_without(
    tmp_path: Path, labels: dict[str, Any]
) -> None:
    plain = prepare(make_data(tmp_path / "plain", cases(1, 2)))
    gaps = prepare(make_data(tmp_path / "gaps", cases(1, 4), labels=labels))
    assert gaps.labels == plain.labels == ["background", "organ", "lesion"]
    assert gaps.preprocessing.label_values == (0, 1, 4)
    assert plain.preprocessing.label_values is None
    assert gaps.splits == plain.splits
    for case in plain.cases:
        np.testing.assert_array_equal(gaps.label(case), plain.label(case))
        np.testing.assert_array_equal(gaps.image(case), plain.image(case))
        assert gaps.label(case).dtype == np.uint8
        assert gaps.cases[case].voxel_counts == plain.cases[case].voxel_counts
        assert gaps.foreground(case).keys() == {1, 2}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_a_mask_of_0_and_255_has_two_classes(tmp_path: Path, kind: Any) -> None:
    masks = {case: label.astype(kind) for case, label in cases(255).items()}
    data = prepare(make_data(tmp_path / "d", masks, labels={"background": 0, "tumour": 255}))
    assert (data.num_classes, data.preprocessing.values) == (2, (0, 255))
    assert set(np.unique(data.label("case_0"))) == {0, 1}


def test_a_value_in_a_gap_is_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", {**cases(1, 4), "bad": boxes(1, 3)}, labels=NNUNET)
    with pytest.raises(DatasetError, match=r"bad\.nii\.gz: unknown label 3; .* declares 0, 1, 4"):
        prepare(folder)


@given(
    st.lists(st.integers(1, 65535), min_size=1, max_size=40, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_values_come_back_from_their_classes(found: list[int], seed: int) -> None:
    values = [0, *sorted(found)]
    rng = np.random.default_rng(seed)
    voxels = rng.choice(values, size=(3, 4, 5)).astype(rng.choice(["u2", "i4", "f8"]))
    classes = to_classes(voxels, values)
    assert classes.dtype == label_dtype(len(values))
    np.testing.assert_array_equal(classes, np.searchsorted(values, voxels))
    back = to_values(classes, values)
    np.testing.assert_array_equal(back, voxels)
    assert back.dtype == np.min_scalar_type(values[-1])


def test_numbers_in_a_config_are_values_in_the_files() -> None:
    config = ModelTrainingConfig.from_flat(
        {"num_classes": 3, "label_values": [0, 1, 4], "class_weights.4": 3.0, "target_label": 4}
    )
    assert config.class_weights == [1.0, 1.0, 3.0]
    assert (config.target_class, config.foreground_labels, config.task_classes) == (2, (4,), 2)
    whole = config_of(label_values=[0, 1, 4])
    assert whole.foreground_labels == (1, 4)
    module = SegmentationLightningModule(build_model(whole), whole)
    metrics = module.metrics["val_metrics"]
    metrics.update(torch.ones(1, 2, 2, 2).long(), torch.ones(1, 2, 2, 2).long())
    assert {"dice_1", "dice_4"} < metrics.compute().keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_label": 2}, "target_label=2 must be one of the values in the label files: 1, 4"),
        ({"class_weights.2": 1.0}, r"names no class: classes are 0, 1, 4 \(the values in the lab"),
        ({"num_classes": 4}, "label_values has 3 entries .* but num_classes=4"),
        ({"label_values": [1, 2, 4]}, "must ascend from 0"),
        ({"label_values": [0, 4, 1]}, "must ascend from 0"),
        (
            {"label_values": None, "target_label": 4},
            "have gaps, leave out num_classes, or give lab",
        ),
    ],
)
def test_numbers_that_are_no_value_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises((FieldsError, ValueError), match=message):
        ModelTrainingConfig.from_flat({"num_classes": 3, "label_values": [0, 1, 4], **values})


def test_a_config_must_know_the_values_of_the_data(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", cases(1, 4), labels=NNUNET)
    data = prepare(folder)
    with pytest.raises(DatasetError, match=r"set label_values=\[0, 1, 4\]"):
        get_dataloaders(config_of(data_dir=data.folder))
    get_dataloaders(config_of(data_dir=data.folder, label_values=[0, 1, 4]))
    for wrong in ({"target_label": 2}, {"label_values": [0, 1, 5]}):
        with pytest.raises(DatasetError, match=r"the data in .* are 0, 1, 4"):
            prepare(folder, ModelTrainingConfig(**wrong))
    with pytest.raises(DatasetError, match=r"no training case has a voxel of label 4 \(lesion\)"):
        prepare(
            make_data(tmp_path / "without", cases(1), labels=NNUNET),
            ModelTrainingConfig(num_classes=3, label_values=[0, 1, 4], target_label=4),
        )


@pytest.mark.parametrize("target", [None, 4])
def test_a_prediction_has_the_values_of_the_files(tmp_path: Path, target: int | None) -> None:
    """The same network on the same images, with labels 0, 1, 4 and with 0, 1, 2."""
    images, predictions = [], []
    for name, values in (("plain", (1, 2)), ("gaps", (1, 4))):
        labels = {"background": 0, "organ": values[0], "lesion": values[1]}
        folder = make_data(tmp_path / name, cases(*values), labels=labels)
        data = prepare(folder)
        given = data.preprocessing.label_values
        config = config_of(
            label_values=None if given is None else list(given),
            target_label=None if target is None else values[1],
        )
        module = write_untrained(tmp_path / f"{name}-bundle", config, data)
        image = folder / "imagesTr" / "case_0.nii.gz"
        predict_images(
            tmp_path / f"{name}-bundle", [image], tmp_path / name / "out", on_case=lambda line: None
        )
        written = np.asarray(nib.load(tmp_path / name / "out" / "case_0.nii.gz").dataobj)
        bundle = Bundle.load(tmp_path / f"{name}-bundle")
        np.testing.assert_array_equal(written, bundle.predict(image))
        found = json.loads((tmp_path / f"{name}-bundle" / "bundle.json").read_text())
        assert found["format_version"] == (2 if given is None else 3)
        assert found["label_values"] == (None if given is None else [0, 1, 4])
        scored = next(on_file_grid(bundle.members, data.preprocessing, files_of(data, "test")[:1]))
        assert scored.target.max() == (2 if target is None else 1)
        batch = {"image": torch.from_numpy(np.array(data.image("case_0")))[None], "label": None}
        assert set(module.predict_step(batch, 0).unique().tolist()) <= {
            0,
            *config.foreground_labels,
        }
        images.append(np.asarray(nib.load(image).dataobj))
        predictions.append(written)
    np.testing.assert_array_equal(images[0], images[1])
    plain, gaps = predictions
    assert (plain == 2).any()
    assert target is not None or (plain == 1).any()
    np.testing.assert_array_equal(gaps, np.where(plain == 2, 4, plain))


def test_values_above_255_are_written_as_uint16(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": 1, "lesion": 1000}
    data = prepare(make_data(tmp_path / "d", cases(1, 1000), labels=labels))
    assert data.label("case_0").dtype == np.uint8
    write_untrained(tmp_path / "bundle", config_of(label_values=[0, 1, 1000]), data)
    image = tmp_path / "d" / "imagesTr" / "case_0.nii.gz"
    label = Bundle.load(tmp_path / "bundle").predict(image)
    assert label.dtype == np.uint16
    assert {1000} <= set(np.unique(label)) <= {0, 1, 1000}


def test_the_names_of_labels_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "d", cases(1, 4), labels=NNUNET)
    save(folder / "labelsTr" / "case_0.nii.gz", boxes(4))
    dataset = read_layout(folder)
    assert (dataset.labels, dataset.label_values) == (("background", "organ", "lesion"), (0, 1, 4))
