"""Augmentation of training patches, by MONAI's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from training.config import AugmentationName

Augmentation = Callable[[dict[str, Any]], dict[str, Any]]


def flips() -> list[Any]:
    """Mirror along each axis, each with probability 1/2."""
    from monai.transforms import RandFlipd

    return [RandFlipd(keys=("image", "label"), prob=0.5, spatial_axis=axis) for axis in range(3)]


def intensity() -> list[Any]:
    """Noise, blur, brightness, contrast and gamma, with probabilities close to nnU-Net's."""
    from monai.transforms import (
        RandAdjustContrastd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    image = ("image",)
    sigma = (0.5, 1.0)
    return [
        RandGaussianNoised(keys=image, prob=0.15, std=0.1),
        RandGaussianSmoothd(keys=image, prob=0.1, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
        RandScaleIntensityd(keys=image, prob=0.15, factors=0.25),
        RandShiftIntensityd(keys=image, prob=0.15, offsets=0.1),
        RandAdjustContrastd(keys=image, prob=0.15, gamma=(0.7, 1.5), retain_stats=True),
    ]


AUGMENTATIONS: dict[AugmentationName, Callable[[], list[Any]]] = {
    "none": list,
    "flip": flips,
    "default": lambda: [*flips(), *intensity()],
}
"""Lists of transforms by the name that a config gives them."""


class SeededAugmentation:
    """Applies an augmentation with the random state of each patch.

    Args:
        name: Key of `AUGMENTATIONS`.
    """

    def __init__(self, name: AugmentationName) -> None:
        self._name = name
        self._transform: Any = None

    def __call__(self, patch: dict[str, Any], seed: int) -> dict[str, Any]:
        """Augment a patch of `image` `(c, d, h, w)` and `label` `(1, d, h, w)`."""
        if self._name == "none":
            return patch
        if self._transform is None:
            # MONAI takes seconds to import, which evaluation never needs
            from monai.transforms import Compose

            self._transform = Compose(AUGMENTATIONS[self._name]())
        self._transform.set_random_state(seed=seed)
        augmented: dict[str, Any] = self._transform(patch)
        return augmented
