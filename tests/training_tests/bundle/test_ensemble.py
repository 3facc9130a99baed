"""Bundles of several networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_prediction import case_probabilities
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.verify import verify_bundle
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.preprocessing import ChannelNormalisation
from training.errors import BundleError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

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


def write(folder: Path, members: list[Member]) -> None:
    write_bundle(
        folder,
        members=members,
        preprocessing=Preprocessing(
            spacing=(3.0, 2.0, 2.0),
            channels=[ChannelNormalisation(modality="MR")],
            num_classes=3,
        ),
        manifest=Manifest(
            labels=["background", "liver", "tumour"], channels=["MR"], metrics={}, provenance={}
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
    path.write_text(json.dumps({"format_version": 3, **old, "new_field": 1}))
    with pytest.raises(BundleError, match="has format 3, this version reads 1 and 2"):
        Bundle.load(tmp_path / "bundle")
