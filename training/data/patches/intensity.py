"""nnU-Net's changes of intensity, each on an image `(c, d, h, w)` in place.

Ranges are those of nnU-Net's trainer (batchgeneratorsv2) at strength 1. At strength s additive
ranges are multiplied by s and factors are raised to the power s, so that 0 changes nothing.
Written on tensors rather than with MONAI's transforms, which take as long for their own
bookkeeping as for the work on patches of this size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

Image = Float[Tensor, "c d h w"]

EPSILON = 1e-7


def noise(image: Image, rng: np.random.Generator, strength: float) -> None:
    """Gaussian noise with a standard deviation of 0 to 0.1.

    nnU-Net calls the range a variance, but draws with it as standard deviation.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    added = torch.randn(image.shape, generator=generator)
    image.add_(added, alpha=float(rng.uniform(0, 0.1 * strength)))


def blur(image: Image, rng: np.random.Generator, strength: float) -> None:
    """Gaussian blur of half of the channels, sigma 0.5 to 1 voxel for each axis."""
    for channel in _some_channels(image, rng):
        sigmas = (rng.uniform(0.5, 1.0, size=3) * strength).tolist()
        blurred = ndimage.gaussian_filter(channel.numpy(), sigmas, truncate=3)
        channel.copy_(torch.from_numpy(blurred))


def brightness(image: Image, rng: np.random.Generator, strength: float) -> None:
    """Multiply each channel by a factor of 0.75 to 1.25."""
    for channel in image:
        channel.mul_(_factor(rng, 0.75, 1.25, strength))


def contrast(image: Image, rng: np.random.Generator, strength: float) -> None:
    """Stretch each channel about its mean by 0.75 to 1.25, within its range."""
    for channel in image:
        low, high = torch.aminmax(channel)
        mean, _ = _statistics(channel)
        channel.sub_(mean).mul_(_factor(rng, 0.75, 1.25, strength)).add_(mean).clamp_(low, high)


def low_resolution(image: Image, rng: np.random.Generator, strength: float, flat: int = -1) -> None:
    """Half of the channels as if scanned with 0.5 to 1 of the voxels an axis.

    Args:
        image: The image.
        rng: Random numbers.
        strength: Strength.
        flat: Axis that keeps its resolution, -1 for none.
    """
    for channel in _some_channels(image, rng):
        zoom = float(rng.uniform(0.5**strength, 1.0))
        size = [
            length if axis == flat else max(1, round(length * zoom))
            for axis, length in enumerate(channel.shape)
        ]
        coarse = F.interpolate(channel[None, None], size, mode="nearest-exact")
        fine = F.interpolate(coarse, channel.shape, mode="trilinear", align_corners=False)
        channel.copy_(fine[0, 0])


def gamma(image: Image, rng: np.random.Generator, strength: float) -> None:
    """Gamma of 0.7 to 1.5 for each channel, which keeps its mean and standard deviation."""
    for channel in image:
        mean, spread = _statistics(channel)
        low, high = torch.aminmax(channel)
        span = high - low
        channel.sub_(low).div_(span.clamp(min=EPSILON))
        channel.pow_(_factor(rng, 0.7, 1.5, strength)).mul_(span).add_(low)
        mean_now, spread_now = _statistics(channel)
        channel.sub_(mean_now).mul_(spread / max(spread_now, EPSILON)).add_(mean)


def inverted_gamma(image: Image, rng: np.random.Generator, strength: float) -> None:
    """`gamma` of the negative image."""
    gamma(image.neg_(), rng, strength)
    image.neg_()


@dataclass(frozen=True)
class IntensityChange:
    """A change and how often it is made at strength 1."""

    probability: float
    apply: Callable[[Image, np.random.Generator, float], None]


INTENSITY_CHANGES = {
    "noise": IntensityChange(0.1, noise),
    "blur": IntensityChange(0.2, blur),
    "brightness": IntensityChange(0.15, brightness),
    "contrast": IntensityChange(0.15, contrast),
    "low_resolution": IntensityChange(0.25, low_resolution),
    "inverted_gamma": IntensityChange(0.1, inverted_gamma),
    "gamma": IntensityChange(0.3, gamma),
}
"""The changes in nnU-Net's order."""


def _statistics(channel: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; torch's depend on the number of threads in the last digit."""
    values = channel.numpy().ravel()
    mean = float(values.mean(dtype=np.float64))
    return mean, float(values.std(dtype=np.float64))


def _factor(rng: np.random.Generator, low: float, high: float, strength: float) -> float:
    """A factor that is below 1 as often as above it."""
    bound = low if rng.random() < 0.5 else high
    return float(rng.uniform(*sorted((bound**strength, 1.0))))


def _some_channels(image: Image, rng: np.random.Generator) -> Iterator[Tensor]:
    """Each channel with probability 1/2."""
    for channel in image:
        if rng.random() < 0.5:
            yield channel
