"""Patch and batch for a memory target, as nnU-Net's planner chooses them (Isensee et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from training.config import ModelTrainingConfig
from training.errors import NoFitError
from training.models.dynunet import MIN_GRID, UNetPlan
from training.models.footprint import training_bytes

LIBRARIES = 2_500_000_000
"""Bytes of a GPU that cuDNN, the allocator and the CUDA context take beside a training step.

With them the estimate gives, for nnU-Net's plans of its targets, about what it measured on a GPU:
7.7 GB (plain), 9, 23 and 37 GB (residual encoder M, L and XL; Isensee et al., 2024, table 1)."""

LARGEST = 256**3
"""Voxels that a patch has at most."""

LARGEST_SLICE = 2048**2
"""Pixels that a patch of one slice has at most."""

SMALLEST_BATCH = 2

MULTIPLES = {"unetr": 16}
"""What must divide each axis of a patch, of networks that take no others."""

MIN_DIVISOR = 4
"""Voxels that a U-Net of three stages makes one of, along the axis that it halves most."""

CPU_LARGEST = 96_000
"""Voxels of a patch on CPU cores at most: a case of a small organ, or about 32 x 56 x 56."""

CPU_BATCH = 2
"""Patches of a step on CPU cores."""

MEMORY_PER_CPU_TRIAL = 3 * 2**30
"""Bytes that a study takes for each trial that runs beside others on a CPU."""

SHARE_OF_DATA = 0.05
"""Voxels of all cases that one batch may hold, where it has more patches than the fewest."""

Size = tuple[int, int, int]

Axes = tuple[int, ...]
"""A size along each axis of a volume, or along height and width of a slice."""


class PatchPlan(NamedTuple):
    """Patch and batch of a network.

    Attributes:
        patch_size: Voxels of a patch (depth, height, width).
        batch_size: Patches of a step.
        bytes: Estimate of what a step takes, without `LIBRARIES`.
    """

    patch_size: Size
    batch_size: int
    bytes: int


def plan_patch(
    config: ModelTrainingConfig,
    shape: Sequence[float],
    spacing: Sequence[float],
    memory: float,
    *,
    dataset_voxels: float = math.inf,
    largest: float = LARGEST,
    batch: int | None = None,
) -> PatchPlan:
    """The largest patch, up to a whole case, with which two fit into memory; then as many as fit.

    The patch begins as the median case, or where that is very large as a patch of cubic extent.
    While two of them do not fit, the axis that covers most of the median case becomes shorter, each
    axis being a multiple of what the U-Net of that patch halves it by. With `spatial_dims: 2` it is
    one slice of the case.

    Args:
        config: Names the network, and all else that memory depends on; its patch and batch do not
            matter.
        shape: Median size of the cases in voxels of `spacing` (depth, height, width).
        spacing: Size of a voxel in mm.
        memory: Bytes for a training step.
        dataset_voxels: Voxels of all training cases; a batch holds 5 % of them at most, so that it
            differs from the next one.
        largest: Voxels of a patch at most.
        batch: Patches of a step that are to fit; by default two, and then as many as do.

    Raises:
        NoFitError: if not even the smallest patch fits.
        ValueError: if the network cannot be built.
    """
    config = config.model_copy(update={"target_spacing": tuple(map(float, spacing))})
    dims = config.spatial_dims
    shape, spacing = shape[-dims:], spacing[-dims:]
    most_voxels = LARGEST if dims == 3 else LARGEST_SLICE
    largest = min(largest, most_voxels)
    extent = [(most_voxels * math.prod(spacing)) ** (1 / dims) / voxel for voxel in spacing]
    first = [min(round(have), round(most)) for have, most in zip(shape, extent, strict=True)]
    multiple = MULTIPLES.get(config.model_name, 1)
    patch, divisor = _divisible(first, spacing, multiple)
    if max(divisor) < MIN_DIVISOR:
        # cases that are too small to halve twice are padded
        patch, divisor = _divisible(
            [max(size, MIN_DIVISOR * MIN_GRID) for size in first], spacing, multiple
        )
    a_voxel = 0.0
    while True:
        voxels = math.prod(patch)
        # memory grows with the voxels, so that patches far too large need not be estimated
        if voxels <= largest and voxels * a_voxel <= memory:
            needed = _bytes(config, patch, batch or SMALLEST_BATCH)
            if needed <= memory:
                break
            a_voxel = 0.9 * needed / voxels
        axis = max(range(dims), key=lambda axis: patch[axis] / shape[axis])
        before = patch
        patch, divisor = _shorter(patch, axis, divisor, spacing, multiple)
        if patch == before or max(divisor) < MIN_DIVISOR:
            raise _too_large(config, before, memory)
    if batch is None:
        batch, needed = _fitting(config, patch, memory, dataset_voxels)
    return PatchPlan(_in_volume(patch), batch, needed)


def plan_batch(
    config: ModelTrainingConfig, memory: float, *, dataset_voxels: float = math.inf
) -> int:
    """As many patches of the config's size as fit into memory, see `plan_patch`.

    Raises:
        NoFitError: if not even one patch fits.
        ValueError: if the network cannot be built.
    """
    patch = config.known_patch_size[-config.spatial_dims :]
    if _bytes(config, patch, 1) > memory:
        raise _too_large(config, patch, memory)
    if _bytes(config, patch, SMALLEST_BATCH) > memory:
        return 1
    return _fitting(config, patch, memory, dataset_voxels)[0]


def _fitting(
    config: ModelTrainingConfig, patch: Axes, memory: float, dataset_voxels: float
) -> tuple[int, int]:
    """How many patches fit, the fewest of which do, and the bytes that they take."""
    one, two = (_bytes(config, patch, batch) for batch in (1, 2))
    fitting = int((memory - one) // max(two - one, 1)) + 1
    distinct = dataset_voxels * SHARE_OF_DATA / math.prod(patch)
    batch = max(SMALLEST_BATCH, round(min(fitting, distinct)))
    return batch, one + (two - one) * (batch - 1)


def _too_large(config: ModelTrainingConfig, patch: Axes, memory: float) -> NoFitError:
    way_out = "" if config.gradient_checkpointing else "set gradient_checkpointing: true, or "
    return NoFitError(
        f"a training step of {config.model_name} takes more than {memory / 1e9:.2g} GB even with "
        f"patches of {list(_in_volume(patch))}: {way_out}choose a smaller network"
    )


def _bytes(config: ModelTrainingConfig, patch: Axes, batch: int) -> int:
    return training_bytes(
        config.model_copy(update={"patch_size": _in_volume(patch), "train_batch_size": batch})
    )


def _in_volume(patch: Sequence[int]) -> Size:
    """The patch (depth, height, width), of one slice if it has no depth."""
    height, width = patch[-2:]
    return (patch[0] if len(patch) == 3 else 1), height, width


def _shorter(
    patch: Axes, axis: int, divisor: Axes, spacing: Sequence[float], multiple: int
) -> tuple[Axes, Axes]:
    """The patch with an axis shortened by the least step, and what divides it."""

    def cut(step: int) -> tuple[Axes, Axes]:
        left = list(patch)
        left[axis] = max(1, left[axis] - step)
        return _divisible(left, spacing, multiple)

    coarse = cut(divisor[axis])
    # a smaller patch may be halved less often, and so be shortened by less
    fine = cut(coarse[1][axis])
    return coarse if fine[0] == patch else fine


def _divisible(patch: Sequence[int], spacing: Sequence[float], multiple: int) -> tuple[Axes, Axes]:
    """The next larger patch that its U-Net halves without a rest, and what divides it."""
    while True:
        strides = UNetPlan.of(patch, spacing).strides
        divisor = tuple(
            math.lcm(math.prod(along), multiple) for along in zip(*strides, strict=True)
        )
        larger = tuple(-(-size // by) * by for size, by in zip(patch, divisor, strict=True))
        if larger == tuple(patch):
            return larger, divisor
        patch = larger
