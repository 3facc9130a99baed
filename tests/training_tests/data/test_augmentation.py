from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import AdjustContrast, GaussianSmooth
from scipy import ndimage

from training.data.patches import intensity
from training.data.patches.augmentation import Augmentation
from training.data.patches.spatial import Region, draw_matrix, flat_axis

PATCH = (12, 14, 16)


def smooth_image(channels: int = 1, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=(channels, *PATCH)), (0, 2, 2, 2))
    return torch.from_numpy((image / image.std()).astype(np.float32))


class Drawn:
    """Random numbers that are chosen: every uniform draw is `share` of its range."""

    def __init__(self, share: float, coin: float = 0.0) -> None:
        self._share = share
        self._coin = coin

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        value = low + self._share * (high - low)
        return value if size is None else np.full(size, value)

    def random(self) -> float:
        return self._coin

    def integers(self, high: int) -> int:
        return high // 3


Change = Callable[[torch.Tensor, Any, float], None]


def changed(change: Change, image: torch.Tensor, rng: Any, strength: float = 1.0) -> torch.Tensor:
    result = image.clone()
    change(result, rng, strength)
    return result


def test_noise_has_the_deviation_that_was_drawn() -> None:
    image = torch.zeros(4, 40, 40, 40)
    assert changed(intensity.noise, image, Drawn(0.5)).std() == pytest.approx(0.05, rel=0.02)
    assert changed(intensity.noise, image, Drawn(0.5), 2).std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(("share", "sigma"), [(0.0, 0.5), (1.0, 1.0)])
def test_blur_is_the_gaussian_that_monai_has(share: float, sigma: float) -> None:
    image = smooth_image(2) + torch.randn(2, *PATCH, generator=torch.Generator().manual_seed(0))
    found = changed(intensity.blur, image, Drawn(share))
    smooth = GaussianSmooth(sigma, approx="sampled")
    # MONAI's sampled kernel does not sum to 1
    expected = torch.as_tensor(smooth(image)) / torch.as_tensor(smooth(torch.ones(2, *PATCH)))
    inside = (slice(None), *[slice(4, -4)] * 3)
    torch.testing.assert_close(found[inside], expected[inside], atol=0.01, rtol=0)
    assert torch.equal(changed(intensity.blur, image, Drawn(share, coin=0.9)), image)


@pytest.mark.parametrize(("coin", "share", "factor"), [(0, 0, 0.75), (1, 1, 1.25), (1, 0, 1.0)])
def test_brightness_and_contrast(coin: float, share: float, factor: float) -> None:
    image = smooth_image(2)
    rng = Drawn(share, coin)
    torch.testing.assert_close(changed(intensity.brightness, image, rng), image * factor)
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    stretched = ((image - mean) * factor + mean).clamp(
        image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    )
    torch.testing.assert_close(changed(intensity.contrast, image, rng), stretched)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(("coin", "share", "gamma"), [(0, 0, 0.7), (1, 1, 1.5)])
def test_gamma_is_that_of_monai(inverted: bool, coin: float, share: float, gamma: float) -> None:
    image = smooth_image()
    change = intensity.inverted_gamma if inverted else intensity.gamma
    found = changed(change, image, Drawn(share, coin))
    reference = AdjustContrast(gamma, invert_image=inverted, retain_stats=True)
    torch.testing.assert_close(found, torch.as_tensor(reference(image)), atol=1e-4, rtol=1e-3)
    assert found.mean() == pytest.approx(float(image.mean()), abs=1e-5)
    assert found.std() == pytest.approx(float(image.std()), rel=1e-4)


def test_low_resolution_is_flat_within_the_coarse_voxels() -> None:
    ramp = torch.arange(16.0).expand(1, 12, 14, 16).contiguous()
    found = changed(intensity.low_resolution, ramp, Drawn(0.0))
    # every second voxel, then linear between: a ramp stays one, but for half a coarse voxel
    steps = found[0, 3, 3].diff()
    torch.testing.assert_close(steps[1:-1], torch.ones(13))
    thin = torch.randn(1, 4, 14, 16)
    kept = thin.clone()
    intensity.low_resolution(kept, Drawn(0.0), 1.0, flat=0)  # type: ignore[arg-type]
    expected = torch.stack(
        [
            torch.nn.functional.interpolate(
                torch.nn.functional.interpolate(plane[None, None], (7, 8), mode="nearest-exact"),
                (14, 16),
                mode="bilinear",
            )[0, 0]
            for plane in thin[0]
        ]
    )
    torch.testing.assert_close(kept[0], expected)


@pytest.mark.parametrize("name", intensity.INTENSITY_CHANGES)
def test_changes_of_a_constant_image_stay_finite(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = torch.full((2, *PATCH), 3.0)
        intensity.INTENSITY_CHANGES[name].apply(image, rng, 1.0)
        assert torch.isfinite(image).all()


@pytest.mark.parametrize("name", intensity.INTENSITY_CHANGES)
def test_at_strength_0_nothing_changes(name: str) -> None:
    image = smooth_image(2)
    found = changed(intensity.INTENSITY_CHANGES[name].apply, image, np.random.default_rng(1), 0.0)
    torch.testing.assert_close(found, image, atol=1e-4, rtol=0)


def test_changes_come_as_often_as_in_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}
    augmentation = Augmentation("nnunet", PATCH)
    for name in intensity.INTENSITY_CHANGES:
        counts[name] = 0

        def count(image: torch.Tensor, rng: Any, strength: float, name: str = name) -> None:
            counts[name] += 1

        monkeypatch.setitem(augmentation._changes, name, count)
    drawn = 4000
    rng = np.random.default_rng(0)
    image, label = torch.zeros(1, 2, 2, 2), torch.arange(8).reshape(2, 2, 2)
    mirrored = np.zeros(3)
    for _ in range(drawn):
        _, turned = augmentation.change(image, label, rng)
        mirrored += [int(turned[0, 0, 0]) >> bit & 1 for bit in (2, 1, 0)]
    expected = {
        "noise": 0.1,
        "blur": 0.2,
        "brightness": 0.15,
        "contrast": 0.15,
        "low_resolution": 0.25,
        "inverted_gamma": 0.1,
        "gamma": 0.3,
    }
    assert {name: pytest.approx(count / drawn, abs=0.03) for name, count in counts.items()} == (
        expected
    )
    assert mirrored / drawn == pytest.approx(np.full(3, 0.5), abs=0.03)


def test_rotation_and_scaling_come_as_often_and_as_far_as_in_nnunet() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_matrix(rng, (40, 56, 40), 1.0) for _ in range(4000)]
    matrices = [matrix for matrix in drawn if matrix is not None]
    assert len(matrices) / len(drawn) == pytest.approx(1 - 0.8**2, abs=0.03)
    scales = np.array([np.cbrt(np.linalg.det(matrix)) for matrix in matrices])
    scaled = scales[np.abs(scales - 1) > 1e-9]
    assert len(scaled) / len(drawn) == pytest.approx(0.2, abs=0.03)
    assert 0.7 <= scaled.min() < 0.72
    assert 1.38 < scaled.max() <= 1.4
    rotations = [matrix / scale for matrix, scale in zip(matrices, scales, strict=True)]
    turned = [rotation for rotation in rotations if not np.allclose(rotation, np.eye(3))]
    assert len(turned) / len(drawn) == pytest.approx(0.2, abs=0.03)
    for rotation in turned:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    # nnU-Net turns about the first axis, then the second, then the third: Rz @ Ry @ Rx
    about_first = [np.arctan2(rotation[2, 1], rotation[2, 2]) for rotation in turned]
    assert np.abs(about_first).max() == pytest.approx(np.deg2rad(30), abs=0.02)
    assert draw_matrix(rng, PATCH, 0.0) is None


def test_a_flat_patch_is_turned_within_its_slices() -> None:
    assert flat_axis((16, 64, 64)) == 0
    assert flat_axis((64, 16, 64)) == 1
    assert flat_axis((32, 64, 96)) is None
    rng = np.random.default_rng(0)
    matrices = [m for _ in range(500) if (m := draw_matrix(rng, (16, 64, 64), 1.0)) is not None]
    for matrix in matrices:
        np.testing.assert_allclose(matrix[0], [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(matrix[:, 0], [1, 0, 0], atol=1e-12)
    angles = [np.arctan2(matrix[2, 1], matrix[1, 1]) for matrix in matrices]
    assert max(angles) > np.deg2rad(170)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(0.5, 2.0))
def test_a_region_gives_what_the_whole_case_would(seed: int, strength: float) -> None:
    """One resampling from a part equals scipy's from the whole volume, borders included."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(6, 24, size=3)
    patch = rng.integers(3, 14, size=3)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.integers(0, 3, size=shape).astype(np.uint8)
    corner = np.where(patch > shape, -((patch - shape) // 2), rng.integers(0, 5, size=3))
    matrix = None
    while matrix is None:
        matrix = draw_matrix(rng, patch.tolist(), strength)
    region = Region.of(corner, patch, matrix, shape.tolist())
    found, target = region.sample(image[:, *region.box], label[region.box])
    half = (patch - 1) / 2
    offset = corner + half - matrix @ half

    def whole(volume: np.ndarray) -> np.ndarray:
        # a border of zeros is what lies around the case
        padded = np.pad(volume.astype(float), 40)
        return np.asarray(
            ndimage.affine_transform(
                padded, matrix, offset + 40, output_shape=tuple(patch), order=1
            )
        )

    for channel in range(2):
        np.testing.assert_allclose(found[channel], whole(image[channel]), atol=2e-3)
    shares = np.stack([1 - whole(label > 0), whole(label == 1), whole(label == 2)])
    ranked = np.sort(shares, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-3
    np.testing.assert_array_equal(target.numpy()[clear], shares.argmax(axis=0)[clear])
