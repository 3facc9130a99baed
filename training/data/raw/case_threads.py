"""How many cases are worked on at once: as many as there are cores, and as fit into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from training.data.raw.formats.file_format import parts_of
from training.data.raw.volume import voxels_in_header


class WithImages(Protocol):
    """Protocol of a case: it has image files."""

    @property
    def images(self) -> tuple[Path, ...]:
        """Its image files."""
        ...


def case_threads(cases: Sequence[WithImages], bytes_per_voxel: float) -> int:
    """All cores, or as many cases at once as fit into half of the memory.

    Args:
        cases: The cases, at least one.
        bytes_per_voxel: What working on a case takes, for each voxel of its channels.
    """
    largest = max(
        cases,
        key=lambda case: sum(
            part.stat().st_size for path in case.images for part in parts_of(path)
        ),
    )
    needed = bytes_per_voxel * sum(voxels_in_header(path) for path in largest.images)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, int(min(_cores(), memory // 2 // max(needed, 1))))


def _cores() -> int:
    """Cores that this process may use, which in a container may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
