"""Patch and batch for a memory target, against the plans that nnU-Net 2.8.1 makes of the data."""

from __future__ import annotations

import math

import pytest

from training.config import ModelTrainingConfig
from training.models.patch_plan import LIBRARIES, plan_patch

# median shape and spacing (depth, height, width), channels, classes and cases of Decathlon tasks
HIPPOCAMPUS = ((36, 50, 35), (1.0, 1.0, 1.0), 1, 3, 260)
BRAIN = ((138, 170, 138), (1.0, 1.0, 1.0), 4, 4, 484)
LIVER = ((432, 512, 512), (1.0, 0.767, 0.767), 1, 3, 131)
PROSTATE = ((20, 320, 319), (3.6, 0.62, 0.62), 2, 3, 32)
SPLEEN = ((187, 512, 512), (1.6, 0.79, 0.79), 1, 2, 41)


@pytest.mark.parametrize(
    ("data", "name", "memory", "patch", "batch"),
    [
        (HIPPOCAMPUS, "dynunet", 8, (40, 56, 40), 9),
        (PROSTATE, "dynunet", 8, (20, 320, 256), 2),
        (SPLEEN, "resenc_unet", 8, (64, 160, 160), 2),
        (BRAIN, "resenc_unet", 24, (160, 192, 160), 3),
        (LIVER, "resenc_unet", 40, (192, 256, 256), 2),
    ],
)
def test_patches_are_those_of_nnunets_planner(
    data: tuple[tuple[int, ...], tuple[float, float, float], int, int, int],
    name: str,
    memory: float,
    patch: tuple[int, int, int],
    batch: int,
) -> None:
    """nnU-Net's `ExperimentPlanner` (8 GB) and its planners of ResEnc M, L and XL."""
    shape, spacing, channels, classes, cases = data
    config = ModelTrainingConfig(
        model_name=name,
        input_channels=channels,
        num_classes=classes,
        optimizer="sgd",
        precision="16-mixed",
    )
    plan = plan_patch(
        config,
        shape,
        spacing,
        memory * 1e9 - LIBRARIES,
        dataset_voxels=math.prod(shape) * cases,
    )
    # an axis may be a step longer or shorter, since memory is estimated in another way
    voxels = math.prod(plan.patch_size) * plan.batch_size
    assert voxels == pytest.approx(math.prod(patch) * batch, rel=0.28)
    for ours, theirs in zip(plan.patch_size, patch, strict=True):
        assert ours / theirs == pytest.approx(1, abs=0.26)
    assert plan.bytes <= memory * 1e9 - LIBRARIES


def test_a_batch_fills_the_memory_but_not_with_more_than_a_part_of_the_data() -> None:
    config = ModelTrainingConfig(model_name="dynunet", model_params={"filters": [4, 8, 8, 8]})
    shape, spacing = (16, 16, 16), (1.0, 1.0, 1.0)
    few = plan_patch(config, shape, spacing, 1e8, dataset_voxels=16**3 * 80)
    many = plan_patch(config, shape, spacing, 1e8)
    assert few.patch_size == many.patch_size == (16, 16, 16)
    assert few.batch_size == 4
    assert many.batch_size > 10
    assert many.bytes <= 1e8 < many.bytes * (many.batch_size + 1) / many.batch_size + 1e6


def test_a_limit_of_voxels_keeps_the_shape_of_the_cases() -> None:
    config = ModelTrainingConfig(model_name="dynunet", model_params={"filters": [4] * 8})
    plan = plan_patch(config, (50, 100, 100), (2.0, 1.0, 1.0), 1e12, largest=32 * 64 * 64)
    assert plan.patch_size == (32, 64, 64)
    # a case that is small enough stays whole
    whole = plan_patch(config, (36, 50, 35), (1.0, 1.0, 1.0), 1e12, largest=96_000)
    assert whole.patch_size == (40, 56, 40)


def test_no_memory_is_said() -> None:
    config = ModelTrainingConfig(model_name="resenc_unet", model_params={"filters": [4] * 8})
    with pytest.raises(
        ValueError, match=r"resenc_unet takes more than 0\.0001 GB even with patches"
    ):
        plan_patch(config, (64, 64, 64), (1.0, 1.0, 1.0), 1e5)
