from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from training.data.prepared.resampling import (
    anisotropic_axis,
    choose_spacing,
    resample_image,
    resample_label,
    resample_linear,
    resample_slabs,
)


def test_a_linear_ramp_is_resampled_to_voxel_centres() -> None:
    """Voxel centres, not corners, as in ITK, nnU-Net and torch's align_corners=False."""
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32), (4, 4, 12))
    half = resample_image(ramp, (4, 4, 6))
    np.testing.assert_allclose(half[0, 0, 1:-1], np.arange(6)[1:-1] * 2 + 0.5, atol=0.05)
    label = resample_label((ramp >= 6).astype(np.uint8), (4, 4, 24))
    np.testing.assert_array_equal(label[0, 0], np.arange(24) >= 12)


def test_spacing_is_the_median_and_finer_where_slices_are_thick() -> None:
    assert choose_spacing([(1, 1, 1), (3, 1, 1), (2, 0.5, 1)], [(50, 50, 50)] * 3) == (2, 1, 1)
    thick = [(5.0, 0.8, 0.8), (4.0, 0.8, 0.8), (5.0, 0.8, 0.8), (5.0, 0.8, 0.8)]
    depth, height, width = choose_spacing(thick, [(20, 300, 300)] * 4)
    assert depth == pytest.approx(np.percentile([5, 4, 5, 5], 10))
    assert (height, width) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("current", "target", "axis"),
    [
        ((5.0, 0.8, 0.8), (1.0, 1.0, 1.0), 0),
        ((0.8, 5.0, 0.8), (1.0, 1.0, 1.0), 1),
        ((1.0, 1.0, 1.0), (0.7, 0.7, 2.2), 2),
        ((2.9, 1.0, 1.0), (3.0, 1.0, 1.0), None),
        ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0), None),  # two coarse axes: nnU-Net's own example
        ((0.24, 1.25, 1.2500001), (1.0, 1.0, 1.0), None),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ],
)
def test_thick_slices_are_found_as_nnunet_finds_them(
    current: tuple[float, ...], target: tuple[float, ...], axis: int | None
) -> None:
    assert anisotropic_axis(current, target) == axis


def reference(volume: np.ndarray, shape: tuple[int, ...], axis: int, order: int) -> np.ndarray:
    """nnU-Net's way: each slice by a spline, then the nearest slice, with `map_coordinates`."""
    plane = shape[:axis] + shape[axis + 1 :]
    slices = np.moveaxis(volume.astype(float), axis, 0)
    scale = [old / new for old, new in zip(slices.shape[1:], plane, strict=True)]
    grid = [s * (i + 0.5) - 0.5 for s, i in zip(scale, np.indices(plane), strict=True)]
    turned = np.stack(
        [
            np.clip(ndimage.map_coordinates(s, grid, order=order, mode="nearest"), s.min(), s.max())
            for s in slices
        ]
    )
    index = np.indices((shape[axis], *plane)).astype(float)
    index[0] = len(slices) / shape[axis] * (index[0] + 0.5) - 0.5
    across = ndimage.map_coordinates(turned, index, order=0, mode="nearest")
    return np.moveaxis(across, 0, axis)


@settings(max_examples=30, deadline=None)
@given(
    old=st.tuples(*[st.integers(2, 9)] * 3),
    new=st.tuples(*[st.integers(1, 13)] * 3),
    axis=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_thick_slices_are_resampled_as_nnunet_does(
    old: tuple[int, ...], new: tuple[int, ...], axis: int, seed: int
) -> None:
    volume = np.random.default_rng(seed).uniform(-1, 1, size=old).astype(np.float32)
    found = resample_linear(volume, new, axis)
    np.testing.assert_allclose(found, reference(volume, new, axis, 1), atol=1e-5)
    cubic = resample_image(volume, new, axis)
    assert cubic.shape == new
    assert cubic.flags.c_contiguous
    np.testing.assert_allclose(cubic, reference(volume, new, axis, 3), atol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize(
    "shape", [(9, 6, 7), (30, 6, 11), (4, 13, 3), (1, 2, 2), (71, 9, 5)], ids=str
)
@pytest.mark.parametrize("planes", [1, 2, 4, 9])
def test_slabs_are_resampled_as_the_whole_volume(
    axis: int | None, shape: tuple[int, int, int], planes: int
) -> None:
    classes = np.random.default_rng(0).random((3, 9, 6, 7)).astype(np.float32)
    slabs = torch.from_numpy(classes).split(planes, dim=1)
    found = np.full((3, *shape), np.nan, dtype=np.float32)
    done = 0
    for chosen, values in resample_slabs(iter(slabs), 9, shape, axis):
        assert chosen.start == done, "one after the other"
        done = chosen.stop
        for value, of_class in enumerate(values):
            found[value, chosen] = of_class
    expected = np.stack([resample_linear(of_class, shape, axis) for of_class in classes])
    np.testing.assert_allclose(found, expected, atol=1e-5)


SIZES = st.tuples(*[st.integers(1, 40)] * 3)


@settings(max_examples=40, deadline=None)
@given(old=SIZES, new=SIZES, seed=st.integers(0, 1000))
def test_a_spline_is_that_of_scipy(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    volume = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    factors = [size / before for size, before in zip(new, old, strict=True)]
    expected = ndimage.zoom(volume, factors, order=3, mode="nearest", grid_mode=True)
    expected = np.clip(expected, volume.min(), volume.max())
    # a transposed volume is not contiguous
    stored = np.ascontiguousarray(volume.transpose(2, 1, 0)).transpose(2, 1, 0)
    np.testing.assert_allclose(resample_image(stored, new), expected, atol=5e-6)


@settings(max_examples=40, deadline=None)
@given(
    old=st.tuples(*[st.integers(1, 20)] * 3),
    new=st.tuples(*[st.integers(1, 30)] * 3),
    axis=st.sampled_from([None, 0, 1, 2]),
    block=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_labels_are_those_of_every_class_resampled_as_a_whole(
    old: tuple[int, int, int],
    new: tuple[int, int, int],
    axis: int | None,
    block: int,
    seed: int,
) -> None:
    # 255 is a voxel that is left out
    values = np.array([0, 0, 1, 3, 255], dtype=np.uint8)
    drawn = values[np.random.default_rng(seed).integers(len(values), size=old)]
    labels = drawn
    for side in range(3):
        labels = labels.repeat(block, side)
    labels = labels[tuple(slice(size) for size in old)]
    shares = np.stack(
        [
            resample_linear((labels == value).astype(np.float32), new, axis)
            for value in range(256)
            if value in values
        ]
    )
    found = resample_label(labels, new, axis)
    assert found.dtype == labels.dtype
    assert set(np.unique(found)) <= set(np.unique(labels))
    chosen = np.searchsorted([0, 1, 3, 255], found)
    share = np.take_along_axis(shares, chosen[None], axis=0)[0]
    # where two have as much, rounding may decide
    assert (share >= shares.max(axis=0) - 1e-5).all()


def test_of_two_classes_with_as_much_the_lower_one_wins() -> None:
    labels = np.array([[[2, 1, 0, 3]]], dtype=np.uint8)
    np.testing.assert_array_equal(resample_label(labels, (1, 1, 2)), [[[1, 0]]])
