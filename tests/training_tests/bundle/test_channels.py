"""Channels at prediction: those that a case lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_scores import on_file_grid
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.prediction import predict_images
from training.config import ModelTrainingConfig
from training.data import Preprocessing, RawCase
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError, DatasetError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

SHAPE = (9, 8, 10)


def make_bundle(folder: Path, channels: tuple[str, ...] = ("T1", "T2"), **settings: Any) -> Bundle:
    torch.manual_seed(0)
    config = ModelTrainingConfig(
        model_name="unet3d",
        model_params={"channels": [4, 8], "strides": [2], "num_res_units": 0},
        patch_size=(8, 8, 8),
        input_channels=len(channels),
    )
    module = SegmentationLightningModule(build_model(config), config).eval()
    kinds = [
        ChannelNormalisation(modality="CT", low=-100, high=200, mean=40, std=60)
        if name == "CT"
        else ChannelNormalisation(modality="MR")
        for name in channels
    ]
    write_bundle(
        folder,
        members=[Member(config, module)],
        preprocessing=Preprocessing(
            spacing=(1.0, 1.0, 1.0), channels=kinds, num_classes=3, **settings
        ),
        manifest=Manifest(
            labels=["background", "a", "b"], channels=list(channels), metrics={}, provenance={}
        ),
    )
    return Bundle.load(folder, "cpu")


def save(path: Path, seed: int = 0, mean: float = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(mean, 10, size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def test_a_case_that_lacks_a_channel_is_predicted_with_zeros(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", missing_channels=True)
    images = [save(tmp_path / "in" / f"a_{index:04}.nii.gz", index) for index in range(2)]
    second = save(tmp_path / "in" / "b_0001.nii.gz", 5)
    told: list[str] = []
    assert not predict_images(
        tmp_path / "bundle", [tmp_path / "in"], tmp_path / "out", device="cpu", on_case=told.append
    )
    assert f"{second}: predicted without T1" in told
    assert not any(str(images[0]) in line for line in told)
    # the network gets the same as for a channel of zeros
    alone = bundle.preprocessing.apply([second], channels=[1])
    assert (alone.image[0] == 0).all()
    image = torch.from_numpy(alone.image)
    expected = bundle.preprocessing.invert(bundle.probabilities(image).numpy(), alone.info)
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "b.nii.gz").dataobj, expected)
    first = bundle.preprocessing.apply([second], channels=[0])
    assert not np.array_equal(first.image, alone.image)
    # test cases are scored in the same way
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, dtype=np.uint8), np.eye(4)), label)
    case = RawCase("b", (second,), label, (1,))
    (scored,) = on_file_grid(bundle.members, bundle.preprocessing, [case])
    np.testing.assert_array_equal(scored.prediction, expected)
    # naming the file is enough, and all channels of one file are no missing ones
    np.testing.assert_array_equal(bundle.label_map(second), expected)
    both = tmp_path / "c_0001.nii.gz"
    stacked = np.stack([np.asarray(nib.load(image).dataobj) for image in images], axis=3)
    nib.save(nib.Nifti1Image(stacked, np.eye(4)), both)
    np.testing.assert_array_equal(bundle.label_map(both), bundle.label_map(images))


@pytest.mark.parametrize("name", ["b.nii.gz", "b_0002.nii.gz", "b_1.nii.gz"])
def test_a_channel_that_nothing_names_is_refused(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", missing_channels=True)
    image = save(tmp_path / name)
    with pytest.raises(BundleError, match=r"1 of 2 channels \(T1, T2\), .* _0000 for T1, _0001 f"):
        bundle.label_map(image)


def test_a_model_that_needs_all_channels_refuses_a_case_that_lacks_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    image = save(tmp_path / "in" / "b_0001.nii.gz")
    with pytest.raises(BundleError, match=r"b lacks .*b_0000.nii.gz, and the model was not train"):
        predict_images(
            tmp_path / "bundle", [image], tmp_path / "out", device="cpu", on_case=lambda line: None
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match="1 channels, but 2 are needed"):
        bundle.label_map(image)
