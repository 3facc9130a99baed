"""Metrics of volumes of one slice are those of the image: a slice has no surface above it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from training.metrics import SegmentationMetrics, SurfaceMetrics
from training.metrics.boundary import boundary_scores
from training.metrics.labels import label_array
from training.metrics.surface import surface_scores_of_labels

SPACING = {0: (9.0, 0.5, 0.8), 1: (0.5, 9.0, 0.8), 2: (0.5, 0.8, 9.0)}


def image(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(40, 50))
    return (ndimage.gaussian_filter(noise, 4) > 0).astype(np.int64) + (
        ndimage.gaussian_filter(noise, 7) > 0.01
    )


def arrays(labels: np.ndarray) -> Any:
    return label_array(torch.from_numpy(labels)[None], 3, "labels")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_measured_as_an_image(axis: int) -> None:
    one, other = image(1), image(2)
    flat = surface_scores_of_labels(
        arrays(one), arrays(other), 3, tolerance=1.5, spacing=(0.5, 0.8)
    )
    volume = surface_scores_of_labels(
        arrays(np.expand_dims(one, axis)),
        arrays(np.expand_dims(other, axis)),
        3,
        tolerance=1.5,
        spacing=SPACING[axis],
    )
    for mine, expected in zip(volume, flat, strict=True):
        torch.testing.assert_close(mine, expected)
    boundaries = [
        boundary_scores(arrays(a), arrays(b), 3, tolerance=1.0, spacing=spacing)
        for a, b, spacing in (
            (one, other, (0.5, 0.8)),
            (np.expand_dims(one, axis), np.expand_dims(other, axis), SPACING[axis]),
        )
    ]
    torch.testing.assert_close(boundaries[1], boundaries[0], equal_nan=True)


def test_a_disc_that_is_too_large_is_told_from_one_that_fits() -> None:
    """With the surface above and below the slice nearly all of the area would match."""
    rows, columns = np.mgrid[:60, :60] - 30
    radius = np.hypot(rows, columns)
    small, large = ((radius < size).astype(np.int64)[None] for size in (12, 20))
    scores = surface_scores_of_labels(
        arrays(small), arrays(large), 3, tolerance=1.0, spacing=(1.0, 1.0, 1.0)
    )
    assert scores.nsd[0, 0] == 0
    assert scores.hd95[0, 0] == pytest.approx(8, abs=0.5)


def test_volumes_of_two_slices_keep_their_surface() -> None:
    one = np.stack([image(1), image(1)])
    other = np.stack([image(2), image(2)])
    three, two = (
        surface_scores_of_labels(arrays(a), arrays(b), 3, tolerance=1.0, spacing=spacing)
        for a, b, spacing in ((one, other, (1.0, 1.0, 1.0)), (one[0], other[0], (1.0, 1.0)))
    )
    assert not torch.allclose(three.assd, two.assd)


def test_accumulated_scores_of_slices_are_those_of_images() -> None:
    one, other = (torch.from_numpy(image(seed))[None] for seed in (1, 2))
    results = []
    for shape, spacing in (((1, 40, 50), (1.0, 1.0)), ((1, 1, 40, 50), (5.0, 1.0, 1.0))):
        overlap, surface = SegmentationMetrics(3), SurfaceMetrics(3, 1.0)
        overlap.update(one.reshape(shape), other.reshape(shape))
        surface.update(one.reshape(shape), other.reshape(shape), spacing)
        results.append(overlap.compute() | surface.compute())
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, equal_nan=True, msg=name)
