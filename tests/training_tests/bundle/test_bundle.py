from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_prediction import case_probabilities
from training.bundle.manifest import Manifest
from training.bundle.member import Member, load_checkpoint
from training.bundle.prediction import collect_cases, predict_images
from training.bundle.verify import verify_bundle
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

NETWORK = {"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "patch_size": [2, 2, 2]}


def make_bundle(folder: Path, **settings: Any) -> SegmentationLightningModule:
    config = ModelTrainingConfig(
        model_params=NETWORK, patch_size=(8, 8, 8), **{"window_overlap": 0.25, **settings}
    )
    module = SegmentationLightningModule(build_model(config), config).eval()
    # an untrained network predicts one class nearly everywhere; spread its logits
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    preprocessing = Preprocessing(
        spacing=(3.0, 2.0, 2.0),
        channels=[ChannelNormalisation(modality="MR")] * config.input_channels,
        num_classes=3,
    )
    manifest = Manifest(
        labels=["background", "liver", "tumour"],
        channels=["MRI"] * config.input_channels,
        metrics={"val_dice": 0.5, "test_dice": None},
        provenance={"seed": 0},
    )
    write_bundle(
        folder, members=[Member(config, module)], preprocessing=preprocessing, manifest=manifest
    )
    return module


def save_image(path: Path, orientation: str = "RAS", *, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    voxels = rng.normal(100, 20, size=(13, 12, 11)).astype(np.float32)
    affine = np.array([[2.0, 0.1, 0, 5], [-0.1, 2.0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    image = nib.Nifti1Image(voxels, affine)
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(transform), path)
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_bundle_predicts_what_its_model_predicts(tmp_path: Path) -> None:
    module = make_bundle(tmp_path / "bundle")
    image = save_image(tmp_path / "case.nii.gz")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.manifest.labels == ["background", "liver", "tumour"]
    assert bundle.manifest.metrics == {"val_dice": 0.5, "test_dice": None}
    case = bundle.preprocessing.apply([image])
    tensor = torch.from_numpy(case.image)
    assert torch.equal(bundle.probabilities(tensor), case_probabilities(module, tensor))
    verify_bundle(tmp_path / "bundle", [Member(module.config, module)], [image], tensor)
    with torch.no_grad():
        next(module.model.parameters()).mul_(2)
    with pytest.raises(BundleError, match="does not predict what its trial predicted"):
        verify_bundle(tmp_path / "bundle", [Member(module.config, module)], [image], tensor)


def test_a_case_whose_label_leaves_the_body_is_verified_as_it_was_cached(tmp_path: Path) -> None:
    module = make_bundle(tmp_path / "bundle")
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    voxels = np.zeros((16, 16, 16), dtype=np.float32)
    voxels[4:12, 4:12, 4:12] = np.random.default_rng(0).normal(100, 20, size=(8, 8, 8))
    outside = np.zeros((16, 16, 16), dtype=np.uint8)
    outside[2:8, 4:8, 4:15] = 1
    for path, data in ((image, voxels), (label, outside)):
        nib.save(nib.Nifti1Image(data, np.diag([2, 2, 3, 1])), path)
    settings = Bundle.load(tmp_path / "bundle").preprocessing
    cached = torch.from_numpy(settings.apply([image], label).image)
    verify_bundle(tmp_path / "bundle", [Member(module.config, module)], [image], cached, label)
    with pytest.raises(BundleError, match="predicts a grid of"):
        verify_bundle(tmp_path / "bundle", [Member(module.config, module)], [image], cached)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIR"])
def test_label_maps_come_in_the_geometry_of_the_image(tmp_path: Path, orientation: str) -> None:
    make_bundle(tmp_path / "bundle")
    reference = save_image(tmp_path / "reference.nii.gz")
    image = save_image(tmp_path / "case.nii.gz", orientation)
    bundle = Bundle.load(tmp_path / "bundle")
    output = nib.load(bundle.predict([image], tmp_path / "out" / "case.nii.gz"))
    source = nib.load(image)
    assert output.shape == source.shape
    np.testing.assert_allclose(output.affine, source.affine)
    assert output.get_data_dtype() == np.uint8
    assert output.header.get_zooms() == source.header.get_zooms()
    # the same body in another orientation is segmented the same
    labels = np.asarray(nib.as_closest_canonical(output).dataobj)
    expected = bundle.label_map([reference])
    assert set(np.unique(labels)) > {0}
    assert np.mean(labels == expected) > 0.99


def test_a_target_label_keeps_its_value(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", target_label=2)
    image = save_image(tmp_path / "case.nii.gz")
    labels = Bundle.load(tmp_path / "bundle").label_map([image])
    assert set(np.unique(labels)) == {0, 2}


def test_weights_load_without_pickle_and_predicting_needs_no_ray(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    state = torch.load(tmp_path / "bundle" / "weights.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    image = save_image(tmp_path / "case.nii.gz")
    code = (
        "import sys; sys.modules.update(ray=None, optuna=None);"  # as if not installed
        "from tuner.cli.main import main; sys.exit(main(['predict', *sys.argv[1:]]))"
    )
    arguments = [str(tmp_path / "bundle"), str(image), "-o", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "case.nii.gz").is_file()


def test_channels_by_file_or_by_axis(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", input_channels=2)
    for channel in range(2):
        save_image(tmp_path / "in" / f"case_{channel:04}.nii.gz", seed=channel)
    told: list[str] = []
    failed = predict_images(
        tmp_path / "bundle", [tmp_path / "in"], tmp_path / "out", on_case=told.append
    )
    assert failed == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case.nii.gz"]
    single = save_image(tmp_path / "single.nii.gz")
    failed = predict_images(tmp_path / "bundle", [single], tmp_path / "out", on_case=told.append)
    assert failed == ["single"]
    assert "1 channels, but 2 are needed" in told[-1]


def test_one_bad_image_does_not_stop_the_others(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    good = save_image(tmp_path / "in" / "good.nii.gz")
    bad = tmp_path / "in" / "bad.nii.gz"
    bad.write_bytes(b"no image")
    told: list[str] = []
    failed = predict_images(tmp_path / "bundle", [bad, good], tmp_path / "out", on_case=told.append)
    assert failed == ["bad"]
    assert "bad.nii.gz: not a readable NIfTI file" in told[0]
    assert (tmp_path / "out" / "good.nii.gz").is_file()


def spoil(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("weights.pt", None, r"lacks weights\.pt; make one with `tune export"),
        ("weights.pt", "cut off", "is damaged"),
        ("config.yaml", "learning_rate: fast", "is damaged"),
        ("preprocessing.json", "{}", "is damaged"),
        ("bundle.json", "{", "is damaged"),
    ],
)
def test_damaged_bundles_are_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    make_bundle(tmp_path / "bundle")
    spoil(tmp_path / "bundle", name, text)
    with pytest.raises(BundleError, match=message):
        Bundle.load(tmp_path / "bundle")


def test_another_format_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(BundleError, match="has format 99"):
        Bundle.load(tmp_path / "bundle")


def test_only_a_bundle_is_replaced(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    make_bundle(tmp_path / "bundle")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(BundleError, match="holds files that are not an exported model"):
        make_bundle(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [folder / "none.nii.gz"], "there is no image"),
        (lambda folder: [folder], r"has no image"),
        (lambda folder: [_touch(folder / "scan.xyz")], r"must end in one of \.nii\.gz, \.nii"),
        (
            lambda folder: [_touch(folder / "a" / "c.nii.gz"), _touch(folder / "b" / "c.nii.gz")],
            r"would both be written as c: ",
        ),
        (lambda folder: [_touch(folder / "c_0001.nii.gz")], r"lacks .*c_0000\.nii\.gz"),
    ],
)
def test_wrong_images_are_named(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        collect_cases(make(tmp_path), 2)


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_wrong_targets_are_named(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    one, two = (save_image(tmp_path / "in" / f"{name}.nii.gz") for name in "ab")
    with pytest.raises(BundleError, match="is one file, but there are 2 cases"):
        predict_images(
            tmp_path / "bundle", [one, two], tmp_path / "x.nii.gz", on_case=lambda line: None
        )
    with pytest.raises(BundleError, match="would replace its image"):
        predict_images(tmp_path / "bundle", [one], tmp_path / "in", on_case=lambda line: None)
    with pytest.raises(BundleError, match="--device cuda:99 cannot be used here"):
        predict_images(
            tmp_path / "bundle",
            [one],
            tmp_path / "x.nii.gz",
            device="cuda:99",
            on_case=lambda line: None,
        )


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    config = ModelTrainingConfig(model_params=NETWORK)
    module = SegmentationLightningModule(build_model(config), config)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "best.ckpt")
    assert not load_checkpoint(tmp_path / "best.ckpt", config).training
    wider = ModelTrainingConfig(model_params={**NETWORK, "embed_dim": 8})
    with pytest.raises(BundleError, match=r"best\.ckpt cannot be read"):
        load_checkpoint(tmp_path / "best.ckpt", wider)
    with pytest.raises(BundleError, match=r"none\.ckpt cannot be read"):
        load_checkpoint(tmp_path / "none.ckpt", config)
