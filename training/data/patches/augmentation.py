"""Augmentation of training patches by name: what nnU-Net does, or a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from training.data.patches.intensity import INTENSITY_CHANGES, low_resolution
from training.data.patches.spatial import draw_matrix, flat_axis
from training.registry import AUGMENTATIONS, call, is_plugin


@dataclass(frozen=True)
class Preset:
    """Which kinds of change an augmentation makes."""

    mirroring: bool
    intensity: bool
    spatial: bool


NO_CHANGE = Preset(mirroring=False, intensity=False, spatial=False)

FLIP = Preset(mirroring=True, intensity=False, spatial=False)

DEFAULT = Preset(mirroring=True, intensity=True, spatial=False)

NNUNET = Preset(mirroring=True, intensity=True, spatial=True)


def preset_of(name: str) -> Preset:
    """The kinds of change of an augmentation; none for a plug-in, which makes its own."""
    if is_plugin(name):
        return NO_CHANGE
    preset: Preset = AUGMENTATIONS.resolve(name)
    return preset


def drop_channels(
    image: Float[Tensor, "c d h w"],
    present: Sequence[int],
    probability: float,
    rng: np.random.Generator,
) -> None:
    """Set channels of a patch to 0 at random, in place, but never all of those that it has.

    Each is dropped with the probability; where that would be all of them, one of them, drawn at
    random, stays as it is.

    Args:
        image: The patch.
        present: Channels that it has; the others are 0 already.
        probability: Of each channel.
        rng: The only source of its draws; none is made where nothing can be dropped.
    """
    if probability == 0 or len(present) < 2:
        return
    dropped = rng.random(len(present)) < probability
    if dropped.all():
        dropped[rng.integers(len(present))] = False
    image[[number for number, gone in zip(present, dropped, strict=True) if gone]] = 0


class Augmentation:
    """Changes patches at random; every draw comes from the numbers that a patch is given.

    Args:
        name: Key of `AUGMENTATIONS`, or the import path of a function that changes a patch: of
            `image` (c, d, h, w), `label` (d, h, w), `rng` (a numpy generator, the only source of
            its draws) and `strength` it takes those that it names, and returns image and label.
        patch_size: Size of a patch.
        strength: 1 as nnU-Net does it; less changes patches more seldom and by less. It does
            not apply to mirroring.
        mirror_axes: Axes (0 depth, 1 height, 2 width) that a patch is mirrored along or not,
            where the augmentation mirrors.
    """

    def __init__(
        self,
        name: str,
        patch_size: Sequence[int],
        strength: float = 1.0,
        mirror_axes: Sequence[int] = (0, 1, 2),
    ) -> None:
        self._name = name
        self._preset = preset_of(name)
        self._plugin = AUGMENTATIONS.resolve(name) if is_plugin(name) else None
        self._patch_size = tuple(patch_size)
        self._strength = strength
        self._mirror_axes = frozenset(mirror_axes)
        flat = flat_axis(patch_size)
        changes = {name: change.apply for name, change in INTENSITY_CHANGES.items()}
        changes["low_resolution"] = partial(low_resolution, flat=-1 if flat is None else flat)
        self._changes = changes

    def draw_matrix(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Rotation and scaling of the next patch, see `spatial.draw_matrix`; None for none."""
        if not self._preset.spatial:
            return None
        return draw_matrix(rng, self._patch_size, self._strength)

    def change(
        self,
        image: Float[Tensor, "c d h w"],
        label: Int64[Tensor, "d h w"],
        rng: np.random.Generator,
    ) -> tuple[Float[Tensor, "c d h w"], Int64[Tensor, "d h w"]]:
        """Change the intensities of a patch, in place, and mirror it along axes or not."""
        if self._plugin is not None:
            patch = {"image": image, "label": label, "rng": rng, "strength": self._strength}
            image, label = call(self._plugin, self._name, **patch)
            return image, label
        if self._preset.intensity:
            for name, change in INTENSITY_CHANGES.items():
                if rng.random() < change.probability * self._strength:
                    self._changes[name](image, rng, self._strength)
        if self._preset.mirroring:
            drawn = np.flatnonzero(rng.random(3) < 0.5).tolist()
            axes = [axis for axis in drawn if axis in self._mirror_axes]
            if axes:
                image = torch.flip(image, [axis + 1 for axis in axes])
                label = torch.flip(label, axes)
        return image, label
