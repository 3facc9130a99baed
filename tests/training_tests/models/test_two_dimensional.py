"""2D networks: every network sees slices, as images of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_networks import SMALL, SUPERVISED
from torch import nn

from training.config import ModelName, ModelTrainingConfig
from training.losses import DeepSupervisionLoss, SegmentationCrossEntropyLoss
from training.models import MODELS, build_model
from training.models.dynunet import UNetPlan
from training.models.footprint import training_bytes
from training.models.patch_plan import LIBRARIES, plan_patch


def build(name: ModelName, **fields: Any) -> nn.Module:
    values = {"patch_size": (9, 32, 48), "model_params": SMALL[name], "spatial_dims": 2, **fields}
    return build_model(ModelTrainingConfig(model_name=name, **values))


@pytest.mark.parametrize("name", MODELS)
def test_every_network_sees_each_slice_by_itself(name: ModelName) -> None:
    network = build(name).eval()
    depth = 1 if name == "unetr" else 3
    image = torch.randn(2, 1, depth, 21, 34)
    with torch.no_grad():
        whole = network(image)
        slices = [network(image[:, :, index : index + 1]) for index in range(depth)]
        # the other slices changed, this one is what it was
        image[:, :, 1:] = 7
        changed = network(image)
    assert whole.shape == (2, 3, depth, 21, 34)
    torch.testing.assert_close(torch.cat(slices, dim=2), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(changed[:, :, 0], whole[:, :, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in {"dformer3d", "mednext"}])
def test_its_kernels_are_those_of_images(name: ModelName) -> None:
    flat, volume = (
        sum(weight.numel() for weight in build(name, spatial_dims=dims, **fit(name)).parameters())
        for dims in (2, 3)
    )
    assert flat < volume / 2
    kernels = {
        module.kernel_size[0]
        for module in build(name, **fit(name)).modules()
        if isinstance(module, nn.Conv3d)
    }
    assert kernels <= {1}


def fit(name: ModelName) -> dict[str, Any]:
    return {"patch_size": (16, 32, 48)} if name == "unetr" else {"patch_size": (32, 32, 48)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 17, 30)])
def test_it_trains_on_slices_of_any_size(name: ModelName, size: tuple[int, ...]) -> None:
    params = {**SMALL[name], **SUPERVISED.get(name, {})}
    network = build(name, model_params=params, gradient_checkpointing=True).train()
    outputs = network(torch.randn(2, 1, *size))
    scales = outputs if isinstance(outputs, list) else [outputs]
    assert tuple(scales[0].shape[2:]) == size
    assert {scale.shape[2] for scale in scales} == {1}
    label = torch.zeros(2, *size, dtype=torch.long)
    DeepSupervisionLoss(SegmentationCrossEntropyLoss())(scales, label).backward()
    assert any(weight.grad is not None for weight in network.parameters())


def test_patches_of_a_2d_config_are_slices() -> None:
    config = ModelTrainingConfig(spatial_dims=2, patch_size=(32, 48, 64))
    assert config.known_patch_size == (1, 48, 64)
    assert config.patch_size == (32, 48, 64)
    flat = config.model_copy(update={"patch_size": (1, 48, 64)})
    assert training_bytes(config) == training_bytes(flat)
    assert ModelTrainingConfig(patch_size=(32, 48, 64)).known_patch_size == (32, 48, 64)


@pytest.mark.parametrize("wrong", [1, 4, "2d", True])
def test_other_dimensions_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="spatial_dims"):
        ModelTrainingConfig(spatial_dims=wrong)


@pytest.mark.parametrize(
    ("size", "spacing", "pools", "kernels"),
    [
        # `get_pool_and_conv_props(spacing, size, 4, 999999)` of nnU-Net 2.8.1
        ((56, 40), (1.0, 1.0), (3, 3), [[3, 3]] * 4),
        ((320, 320), (0.62, 0.62), (6, 6), [[3, 3]] * 7),
        ((512, 512), (0.79, 0.79), (7, 7), [[3, 3]] * 8),
        ((192, 160), (1.0, 1.0), (5, 5), [[3, 3]] * 6),
        ((256, 48), (0.5, 3.0), (5, 3), [[3, 1], [3, 1], [3, 3], [3, 3], [3, 3], [3, 3]]),
    ],
)
def test_the_plan_is_nnunets(
    size: tuple[int, int],
    spacing: tuple[float, float],
    pools: tuple[int, int],
    kernels: list[list[int]],
) -> None:
    plan = UNetPlan.of(size, spacing)
    halved = tuple(sum(stride[axis] == 2 for stride in plan.strides) for axis in range(2))
    assert halved == pools
    assert [list(kernel) for kernel in plan.kernels] == kernels
    assert plan.filters == tuple(min(32 * 2**stage, 512) for stage in range(len(plan.strides)))


@pytest.mark.parametrize(
    ("shape", "spacing", "cases", "patch", "batch"),
    [
        # what nnU-Net's planner makes of Decathlon's Hippocampus and Prostate (8 GB, 2d)
        ((36, 50, 35), (1.0, 1.0, 1.0), 260, (1, 56, 40), 366),
        ((20, 320, 319), (3.6, 0.62, 0.62), 32, (1, 320, 320), 32),
    ],
)
def test_patches_of_slices_are_those_of_nnunets_planner(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    cases: int,
    patch: tuple[int, int, int],
    batch: int,
) -> None:
    config = ModelTrainingConfig(
        model_name="dynunet", spatial_dims=2, optimizer="sgd", precision="16-mixed"
    )
    plan = plan_patch(
        config, shape, spacing, 8e9 - LIBRARIES, dataset_voxels=math.prod(shape) * cases
    )
    assert (plan.patch_size, plan.batch_size) == (patch, batch)


def test_a_picture_larger_than_the_memory_is_cut() -> None:
    config = ModelTrainingConfig(model_name="dynunet", spatial_dims=2, precision="32-true")
    plan = plan_patch(config, (1, 3000, 4000), (1.0, 1.0, 1.0), 2e9)
    depth, height, width = plan.patch_size
    assert depth == 1
    assert 128 <= height < 2048
    assert 128 <= width < 2048
    assert plan.bytes <= 2e9
