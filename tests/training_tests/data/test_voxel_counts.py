"""Voxels are counted and found alike in any order in memory."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.prepared.label_arrays import voxel_counts
from training.data.prepared.label_loss import outside
from training.data.prepared.plan import foreground_voxels


def maps() -> list[np.ndarray]:
    drawn = np.random.default_rng(0).choice([0, 0, 0, 1, 2, 255], size=(5, 6, 7)).astype(np.uint8)
    return [drawn, np.asfortranarray(drawn), drawn[::-1, :, ::-1], drawn.transpose(1, 2, 0)]


@pytest.mark.parametrize("labels", maps())
def test_voxels_are_counted_and_found_in_any_order(labels: np.ndarray) -> None:
    expected = [int((labels == value).sum()) for value in range(4)]
    assert voxel_counts(labels, 4).tolist() == expected
    found = foreground_voxels(labels, 4)
    np.testing.assert_array_equal(
        found, np.flatnonzero(np.ascontiguousarray((labels > 0) & (labels < 4)))
    )
    box = ((1, 3), (0, 4), (2, 6))
    inside = labels[1:3, 0:4, 2:6]
    lost = {value: int((labels == value).sum() - (inside == value).sum()) for value in (1, 2, 255)}
    assert outside(labels, box) == lost
