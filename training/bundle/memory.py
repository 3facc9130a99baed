"""Memory that predicting a case takes, and whether the computer has it.

Linux promises more memory than there is and ends a process that makes use of it, so memory is
looked at before it is used. The bounds are those of `docs/concepts/prediction.md`, where they were
measured; what a network takes for one window comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from training.errors import BundleError

PREPARING = 36
"""Bytes for each voxel and channel of an image's file, while it is read and preprocessed."""

PREDICTING = 12
"""Bytes for each voxel and channel of a preprocessed image, while it is predicted."""

BLENDING = 16
"""Bytes for each class and voxel of the planes that a window is deep, for each network."""

GIGABYTE = 1e9


def check_preparing(image: Path, voxels: int) -> None:
    """Check that an image can be read and preprocessed.

    Args:
        image: The file.
        voxels: Its voxels, of all channels.

    Raises:
        BundleError: if there is too little memory.
    """
    _check(image, PREPARING * voxels)


def check_predicting(
    image: Path, shape: Sequence[int], patches: Sequence[Sequence[int]], num_classes: int
) -> None:
    """Check that a preprocessed image can be predicted.

    Args:
        image: Its file.
        shape: `(channel, depth, height, width)`.
        patches: Size of a window of each network.
        num_classes: Classes of the networks.

    Raises:
        BundleError: if there is too little memory.
    """
    _, _, height, width = shape
    planes = sum(patch[0] * max(patch[1], height) * max(patch[2], width) for patch in patches)
    _check(image, PREDICTING * prod(shape) + BLENDING * num_classes * planes)


def available_memory(root: Path = Path("/")) -> float | None:
    """Bytes of memory that are free or can be made free; None where that is not known.

    That is what the kernel says, or what the limit of the container leaves if it is less.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        free = float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = root / "sys/fs/cgroup"
        try:
            left = float((group / limit).read_text()) - float((group / used).read_text())
        except (OSError, ValueError):
            # no such group, or one without a limit
            continue
        free = min(free, max(left, 0.0))
    return free


def _check(image: Path, needed: float) -> None:
    free = available_memory()
    if free is not None and needed > free:
        raise BundleError(
            f"{image}: it needs up to {needed / GIGABYTE:.1f} GB of memory, and "
            f"{free / GIGABYTE:.1f} GB are free: end other programs, take a computer with more "
            "memory, or crop the image to what is of interest"
        )
