"""Bundles of several networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_prediction import case_probabilities
from training.bundle.case_scores import NOTHING
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.network_export import FORMATS, export_network
from training.bundle.postprocessing import Postprocessing, RemoveSmall
from training.bundle.verify import verify_bundle, verify_network
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main

NETWORKS: list[dict[str, Any]] = [
    {
        "model_name": "unet3d",
        "model_params": {"channels": [4, 8], "strides": [2], "num_res_units": 0},
        "patch_size": (8, 8, 8),
    },
    {
        "model_name": "dformer3d",
        "model_params": {
            "embed_dim": 4,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_size": [2, 2, 2],
        },
        "patch_size": (8, 12, 8),
    },
]
WEIGHTS = (0.75, 0.25)


def make_members(**settings: Any) -> list[Member]:
    torch.manual_seed(0)
    members = []
    for network, weight in zip(NETWORKS, WEIGHTS, strict=True):
        config = ModelTrainingConfig(**network, **settings)
        module = SegmentationLightningModule(build_model(config), config).eval()
        # an untrained network predicts one class nearly everywhere; spread its logits
        with torch.no_grad():
            for parameter in module.model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        members.append(Member(config, module, weight))
    return members


def save_image(path: Path) -> Path:
    voxels = np.random.default_rng(0).normal(100, 20, size=(13, 12, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def write(folder: Path, members: list[Member], postprocessing: Postprocessing = NOTHING) -> None:
    write_bundle(
        folder,
        members=members,
        preprocessing=Preprocessing(
            spacing=(3.0, 2.0, 2.0),
            channels=[ChannelNormalisation(modality="MR")],
            num_classes=3,
        ),
        manifest=Manifest(
            labels=["background", "liver", "tumour"],
            channels=["MR"],
            metrics={},
            provenance={},
            postprocessing=postprocessing,
        ),
    )


def test_it_predicts_the_weighted_mean_of_its_networks_probabilities(tmp_path: Path) -> None:
    members = make_members()
    write(tmp_path / "bundle", members)
    assert sorted(path.name for path in (tmp_path / "bundle" / "members").iterdir()) == ["0", "1"]
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert [member.weight for member in bundle.members] == list(WEIGHTS)
    case = torch.from_numpy(
        bundle.preprocessing.apply([save_image(tmp_path / "case.nii.gz")]).image
    )
    each = [case_probabilities(member.module, case) for member in members]
    assert (each[0] - each[1]).abs().max() > 0.1
    torch.testing.assert_close(bundle.probabilities(case), 0.75 * each[0] + 0.25 * each[1])
    with pytest.raises(BundleError, match="has 2 networks"):
        _ = bundle.module


def test_its_label_map_is_that_of_the_mean(tmp_path: Path) -> None:
    members = make_members()
    write(tmp_path / "bundle", members)
    image = save_image(tmp_path / "case.nii.gz")
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    case = bundle.preprocessing.apply([image])
    tensor = torch.from_numpy(case.image)
    mean = sum(
        weight * case_probabilities(member.module, tensor)
        for member, weight in zip(members, WEIGHTS, strict=True)
    )
    assert isinstance(mean, torch.Tensor)
    expected = bundle.preprocessing.invert(mean.numpy(), case.info)
    assert (bundle.label_map(image) == expected).all()
    assert set(expected.flat) > {0}


def test_each_network_mirrors_along_its_own_axes(tmp_path: Path) -> None:
    members = make_members()
    mirrored = [replace(members[0], mirror_axes=(0, 2)), members[1]]
    write(tmp_path / "bundle", mirrored)
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert [member.mirror_axes for member in bundle.members] == [(0, 2), ()]
    case = torch.randn(1, 11, 9, 10)
    each = [
        case_probabilities(members[0].module, case, mirror_axes=(0, 2)),
        case_probabilities(members[1].module, case),
    ]
    expected = 0.75 * each[0] + 0.25 * each[1]
    torch.testing.assert_close(bundle.probabilities(case), expected)
    plain = case_probabilities(members[0].module, case)
    assert (each[0] - plain).abs().max() > 0.01
    verify_network(tmp_path / "bundle", mirrored, case, "random")
    with pytest.raises(BundleError, match="network 0 of"):
        verify_network(tmp_path / "bundle", members, case, "random")


def test_its_label_maps_are_postprocessed_in_the_grid_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def islands(module: object, image: Tensor, **_: object) -> Iterator[Tensor]:
        torch.manual_seed(0)
        foreground = (torch.rand(image.shape[1:]) > 0.93).float()
        yield torch.stack([1 - foreground, foreground])

    monkeypatch.setattr("training.bundle.member.probability_slabs", islands)
    members = make_members(target_label=2)
    image = save_image(tmp_path / "case.nii.gz")
    # by the network's classes: what it predicts is 0 and 1, and becomes 2 afterwards
    steps = Postprocessing(steps=(RemoveSmall(label=1, min_volume=60.0),))
    write(tmp_path / "plain", members)
    write(tmp_path / "cleaned", members, steps)
    plain = Bundle.load(tmp_path / "plain", "cpu").label_map(image)
    cleaned = Bundle.load(tmp_path / "cleaned", "cpu").label_map(image)
    assert set(np.unique(cleaned)) == {0, 2}
    components, count = ndimage.label(plain == 2, structure=np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(plain == 2, components, range(1, count + 1))
    # a voxel has 2 x 2 x 3 mm
    large = [number for number, size in enumerate(sizes, 1) if size * 12 >= 60]
    assert 0 < len(large) < count
    np.testing.assert_array_equal(cleaned == 2, np.isin(components, large))


def test_every_network_of_it_is_verified(tmp_path: Path) -> None:
    members = make_members()
    image = save_image(tmp_path / "case.nii.gz")
    write(tmp_path / "bundle", members)
    verify_bundle(tmp_path / "bundle", members, [image])
    with torch.no_grad():
        next(members[1].module.model.parameters()).mul_(2)
    with pytest.raises(BundleError, match=r"network 1 of .* does not predict what its trial"):
        verify_bundle(tmp_path / "bundle", members, [image])
    members = make_members()
    swapped = [Member(m.config, m.module, w) for m, w in zip(members, WEIGHTS[::-1], strict=True)]
    with pytest.raises(BundleError, match=r"the exported model .* does not predict"):
        verify_bundle(tmp_path / "bundle", swapped, [image])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("target", [None, 2])
@pytest.mark.parametrize("suffix", [".pt2", ".ts", ".onnx"])
def test_one_file_gives_the_mean_of_all_networks(
    tmp_path: Path, suffix: str, target: int | None
) -> None:
    write(tmp_path / "bundle", make_members(target_label=target))
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    path = tmp_path / f"network{suffix}"
    with pytest.raises(BundleError, match=r"\[8, 8, 8\] and \[8, 12, 8\]: choose one size"):
        export_network(bundle, path)
    assert export_network(bundle, path, (8, 12, 8)) < 1e-4
    # one window of each network: only of the second is it a patch of training
    patch = torch.randn(1, 1, 8, 12, 8)
    networks = [member.module for member in bundle.members]
    with torch.no_grad():
        each = [module._task_logits(module.model(patch)).softmax(dim=1) for module in networks]
        logits = FORMATS[suffix][1](path)(patch)
    torch.testing.assert_close(
        logits.softmax(dim=1), 0.75 * each[0] + 0.25 * each[1], rtol=0, atol=1e-5
    )


def test_its_file_predicts_a_patch_as_the_bundle_does(tmp_path: Path) -> None:
    members = make_members()
    for member in members:
        member.config.patch_size = (8, 12, 8)
    write(tmp_path / "bundle", members)
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    export_network(bundle, tmp_path / "mean.pt2")
    patch = torch.randn(1, 8, 12, 8)
    with torch.no_grad():
        logits = FORMATS[".pt2"][1](tmp_path / "mean.pt2")(patch[None])[0]
    torch.testing.assert_close(
        logits.softmax(dim=0), bundle.probabilities(patch), rtol=0, atol=1e-5
    )


def test_one_network_of_it_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "bundle", [replace(m, mirror_axes=(0,)) for m in make_members()])
    path = tmp_path / "one.pt2"
    convert = ["convert", str(tmp_path / "bundle"), "-o", str(path), "--member"]
    assert main([*convert, "2"]) == 2
    assert "has no network 2: they are 0 to 1" in capsys.readouterr().err
    assert main([*convert, "1"]) == 0
    shown = capsys.readouterr().out
    assert "8 x 12 x 8" in shown
    assert "mirroring is no part" in " ".join(shown.split())
    patch = torch.randn(1, 1, 8, 12, 8)
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    with torch.no_grad():
        logits = FORMATS[".pt2"][1](path)(patch)
        torch.testing.assert_close(logits, bundle.members[1].module.model(patch))


def test_networks_of_other_classes_or_channels_make_no_ensemble(tmp_path: Path) -> None:
    one, other = make_members()[0], make_members(num_classes=4)[1]
    with pytest.raises(BundleError, match="need one num_classes, but they have 3 and 4"):
        write(tmp_path / "bundle", [one, other])
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_without_one_of_its_networks_is_none(tmp_path: Path) -> None:
    write(tmp_path / "bundle", make_members())
    (tmp_path / "bundle" / "members" / "1" / "weights.pt").unlink()
    with pytest.raises(BundleError, match=r"lacks members/1/weights\.pt"):
        Bundle.load(tmp_path / "bundle")


@pytest.mark.parametrize(
    "members",
    [
        [{"folder": "members/0", "weight": 0.5}],
        [{"folder": "../elsewhere", "weight": 1.0}],
        [],
    ],
)
def test_members_that_cannot_be(tmp_path: Path, members: list[dict[str, Any]]) -> None:
    write(tmp_path / "bundle", make_members())
    path = tmp_path / "bundle" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "members": members}))
    with pytest.raises(BundleError, match="damaged"):
        Bundle.load(tmp_path / "bundle")


def test_a_bundle_of_an_older_version_is_read(tmp_path: Path) -> None:
    member = make_members()[0]
    write(tmp_path / "bundle", [Member(member.config, member.module)])
    path = tmp_path / "bundle" / "bundle.json"
    content = json.loads(path.read_text())
    old = {name: content[name] for name in ("labels", "channels", "metrics", "provenance")}
    path.write_text(json.dumps({"format_version": 1, **old}))
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    case = torch.randn(1, 9, 9, 9)
    assert torch.equal(bundle.probabilities(case), case_probabilities(member.module, case))
    path.write_text(json.dumps({"format_version": 4, **old, "new_field": 1}))
    with pytest.raises(BundleError, match="has format 4, this version reads 1, 2 and 3"):
        Bundle.load(tmp_path / "bundle")
