"""Channels at prediction: those that a case lacks, and those that cannot be right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_scores import on_file_grid
from training.bundle.channel_check import declared_channels_lines
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.prediction import predict_images
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, Preprocessing, RawCase, prepare_dataset
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError, DatasetError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main

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


def write_ct(path: Path, **changes: Any) -> Path:
    """A CT as scanners make it: air around the patient, bone in it, whole numbers."""
    rng = np.random.default_rng(0)
    voxels = np.full((14, 14, 14), -1000.0)
    voxels[3:11, 3:11, 3:11] = rng.normal(50, 30, size=(8, 8, 8))
    voxels[6:8, 6:8, 6:8] = 900
    return write(path, voxels.round(), **changes)


def write_mr(path: Path, **changes: Any) -> Path:
    """An MR image: nothing below 0."""
    voxels = np.abs(np.random.default_rng(1).normal(300, 90, size=(14, 14, 14)))
    return write(path, voxels.round(), **changes)


def write(path: Path, voxels: Any, *, sidecar: str = "", description: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), np.eye(4))
    image.header["descrip"] = description
    nib.save(image, path)
    if sidecar:
        stem = path.name.removesuffix(".nii.gz")
        path.with_name(f"{stem}.json").write_text(json.dumps({"Modality": sidecar}))
    return path


def trained_on(folder: Path, write_image: Callable[[Path], Path], channel: str) -> Bundle:
    """A bundle with the preprocessing that data of one channel are given."""
    for case in range(5):
        write_image(folder / "data" / "imagesTr" / f"c{case}.nii.gz")
        label = np.zeros((14, 14, 14), dtype=np.uint8)
        label[4:6, 4:6, 4:6], label[8:10, 8:10, 8:10] = 1, 2
        path = folder / "data" / "labelsTr" / f"c{case}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, np.eye(4)), path)
    description = {"modality": {"0": channel}, "labels": {"background": 0, "a": 1, "b": 2}}
    (folder / "data" / "dataset.json").write_text(json.dumps(description))
    prepared = prepare_dataset(folder / "data", ModelTrainingConfig(), cache_dir=folder / "cache")
    bundle = make_bundle(folder / "bundle", (channel,))
    settings = PreprocessedDataset.load(prepared).preprocessing
    (folder / "bundle" / "preprocessing.json").write_text(settings.model_dump_json())
    return Bundle.load(bundle.folder, "cpu")


@pytest.mark.parametrize("trained", ["CT", "T1"])
def test_a_ct_is_no_mr_image_and_the_other_way_round(tmp_path: Path, trained: str) -> None:
    bundle = trained_on(tmp_path, write_ct if trained == "CT" else write_mr, trained)
    ct, mr = write_ct(tmp_path / "ct.nii.gz"), write_mr(tmp_path / "mr.nii.gz")
    right, wrong = (ct, mr) if trained == "CT" else (mr, ct)
    message = {
        "CT": r"mr.nii.gz: channel 0 of the model is CT, but no voxel is below 0 .*, and every",
        "T1": r"ct.nii.gz: channel 0 of the model is T1, but voxels of -1000 to 900 look like a CT",
    }[trained]
    with pytest.raises(BundleError, match=rf"{message}.*--no-channel-check"):
        bundle.predict(wrong, tmp_path / "out" / "x.nii.gz")
    assert not (tmp_path / "out" / "x.nii.gz").exists()
    assert bundle.label_map(right).shape == (14, 14, 14)
    unchecked = Bundle.load(bundle.folder, "cpu", check_channels=False)
    assert unchecked.label_map(wrong).shape == (14, 14, 14)
    # a bundle of an earlier version does not know, and only tells
    old = json.loads((bundle.folder / "preprocessing.json").read_text())
    for channel in old["channels"]:
        del channel["minima"], channel["scheme"]
        channel["low"] = -100.0
    (bundle.folder / "preprocessing.json").write_text(json.dumps(old))
    told: list[str] = []
    replace(Bundle.load(bundle.folder, "cpu"), tell=told.append).label_map(wrong)
    assert [line for line in told if line.startswith(f"warning: {wrong}: is it {trained}?")]


def test_what_is_doubtful_is_not_refused(tmp_path: Path) -> None:
    """Shifted CTs that a model was trained on, a CT under another name, MR images below 0."""
    shifted = trained_on(
        tmp_path / "shifted", lambda path: write(path, ct_voxels(tmp_path) + 1024), "CT"
    )
    told: list[str] = []
    telling = replace(shifted, tell=told.append)
    telling.label_map(write(tmp_path / "s.nii.gz", ct_voxels(tmp_path) + 1024))
    named = trained_on(tmp_path / "named", write_ct, "scan")
    replace(named, tell=told.append).label_map(write_ct(tmp_path / "c.nii.gz"))
    values = np.random.default_rng(3).normal(size=(14, 14, 14))
    below = trained_on(tmp_path / "z", lambda path: write(path, values), "T1")
    replace(below, tell=told.append).label_map(write_mr(tmp_path / "m.nii.gz"))
    assert told == []


def ct_voxels(folder: Path) -> Any:
    return np.asarray(nib.load(write_ct(folder / "voxels.nii.gz")).dataobj)


def test_the_file_beside_an_image_and_its_name_are_heeded(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", ("T1",))
    told: list[str] = []
    bundle = replace(bundle, tell=told.append)
    bundle.label_map(write_mr(tmp_path / "sub-01_T1w.nii.gz", sidecar="MR"))
    bundle.label_map(write_mr(tmp_path / "sub-01.nii.gz", sidecar="of no kind"))
    assert told == []
    bundle.label_map(write_mr(tmp_path / "sub-01_FLAIR_0000.nii.gz"))
    (line,) = told
    assert "its name stands for FLAIR, but channel 0 of the model is T1" in line
    for modality, kind in (("CT", "CT"), ("PT", "PET")):
        image = write_mr(tmp_path / f"{modality}_sub-02.nii.gz", sidecar=modality)
        with pytest.raises(BundleError, match=rf"a {kind} image by {modality}_sub-02.json, but"):
            bundle.label_map(image)
    # a channel that is missing shifts the others
    told.clear()
    both = replace(
        make_bundle(tmp_path / "both", ("T1", "T2"), missing_channels=True), tell=told.append
    )
    both.label_map(write_mr(tmp_path / "sub-03_T2_0001.nii.gz"))
    assert len(told) == 1
    assert "predicted without T1" in told[0]
    told.clear()
    ct = replace(make_bundle(tmp_path / "ct", ("CT",)), tell=told.append)
    ct.label_map(write_ct(tmp_path / "te.nii.gz", description="TE=2.9;Time=115958.000"))
    ct.label_map(write_ct(tmp_path / "no.nii.gz", description="TE=0;Time=115958.000"))
    (line,) = told
    assert "te.nii.gz: its header has an echo time, as MR images have, but channel 0" in line


def images_of(folder: Path, names: dict[str, str], beside: bool) -> Path:
    images = folder / "imagesTs"
    for number in range(len(names)):
        write_mr(images / f"a_{number:04}.nii.gz")
    place = images if beside else folder
    (place / "dataset.json").write_text(json.dumps({"channel_names": names}))
    return images


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("T2", "T1"), r"channels T2, T1, but the model was trained on T1, T2, in this order"),
        (("T1", "FLAIR"), r"channels T1, FLAIR, but the model was trained on T1, T2: give"),
        (("T1", "CT"), r"channels T1, CT, but the model was trained on T1, T2"),
        (("T1", "T2", "ADC"), r"channels T1, T2, ADC, but the model was trained on T1, T2"),
    ],
)
def test_other_channels_by_dataset_json_are_refused_before_anything_is_predicted(
    tmp_path: Path, beside: bool, names: tuple[str, ...], message: str
) -> None:
    make_bundle(tmp_path / "bundle", ("T1", "T2"))
    numbered = {str(index): name for index, name in enumerate(names)}
    images = images_of(tmp_path / "data", numbered, beside)
    command = ["predict", str(tmp_path / "bundle"), str(images), "-o", str(tmp_path / "out")]
    with pytest.raises(BundleError, match=message):
        predict_images(
            tmp_path / "bundle", [images], tmp_path / "out", device="cpu", on_case=lambda line: None
        )
    assert not (tmp_path / "out").exists()
    if len(names) == 2:
        assert main([*command, "--device", "cpu", "--no-channel-check"]) == 0
        assert (tmp_path / "out" / "a.nii.gz").is_file()


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (("t1", "T2"), False),
        (("T1w", "T2"), True),
        (("MR", "MRI"), True),
        (("first", "second"), True),
    ],
)
def test_names_that_may_be_the_same_channels_are_predicted(
    tmp_path: Path, names: tuple[str, ...], warned: bool
) -> None:
    make_bundle(tmp_path / "bundle", ("T1", "T2"))
    images = images_of(tmp_path / "data", dict(zip("01", names, strict=True)), beside=False)
    told: list[str] = []
    assert not predict_images(
        tmp_path / "bundle", [images], tmp_path / "out", device="cpu", on_case=told.append
    )
    assert any("are they the same?" in line for line in told) is warned


@pytest.mark.parametrize("content", ["{", "[]", '{"channel_names": 3}', '{"other": "file"}'])
def test_a_dataset_json_that_says_nothing_is_passed_over(tmp_path: Path, content: str) -> None:
    make_bundle(tmp_path / "bundle", ("T1", "T2"))
    images = images_of(tmp_path / "data", {"0": "T2", "1": "T1"}, beside=True)
    (images / "dataset.json").write_text(content)
    assert declared_channels_lines(["T1", "T2"], [images]) == []
    # that of a folder above other images is not theirs
    (images / "dataset.json").unlink()
    (tmp_path / "data" / "dataset.json").write_text('{"channel_names": {"0": "CT"}}')
    images.rename(tmp_path / "data" / "scans")
    assert declared_channels_lines(["T1", "T2"], [tmp_path / "data" / "scans"]) == []
