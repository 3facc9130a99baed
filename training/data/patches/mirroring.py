"""The axes along which patches may be mirrored, decided from the names of the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from training.config import MIRROR_AXES, MirrorAxis, ModelTrainingConfig
from training.data.patches.augmentation import preset_of
from training.data.prepared.cache import PreprocessedDataset

LEFT_RIGHT: Final = "width"
"""The axis that grows to the right, see `training.data.preprocessing.AXES`."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SIDES = {"left", "right", "lt", "rt", "lh", "rh"}
_OTHER_SIDE = {"left": "right", "l": "r"}

_LETTER = re.compile(r"(?<![a-z0-9])[lr](?![a-z0-9])(?!\W?\d)")
"""L or R that stands alone, and does not name a lumbar vertebra (`L 1`)."""


def mirror_axes(config: ModelTrainingConfig, labels: Sequence[str]) -> list[MirrorAxis]:
    """The axes that patches may be mirrored along, with `auto` resolved.

    Args:
        config: `mirror_axes` says which, or `auto`.
        labels: Name of each label value, background first.
    """
    if config.mirror_axes != "auto":
        return list(config.mirror_axes)
    return [axis for axis in MIRROR_AXES if axis != LEFT_RIGHT or not sided_labels(labels)]


def trained_mirror_axes(
    config: ModelTrainingConfig, labels: Sequence[str] | None = None
) -> tuple[int, ...]:
    """The axes that a training with a config mirrored its patches along, so that prediction may.

    None where its augmentation does not mirror, or is a plug-in, which does not say what it does.

    Args:
        config: The training's config.
        labels: Name of each label value, background first, which decide what `auto` is; those
            of the preprocessed folder `config.data_dir` by default.

    Returns:
        0 for depth, 1 for height, 2 for width.

    Raises:
        DatasetError: if the labels are needed and not given, and `config.data_dir` is not a
            preprocessed folder.
    """
    if not preset_of(config.augmentation).mirroring:
        return ()
    if labels is None:
        given = config.mirror_axes != "auto"
        labels = [] if given else PreprocessedDataset.load(config.data_dir).labels
    axes = sorted(MIRROR_AXES.index(axis) for axis in mirror_axes(config, labels))
    # along an axis of one voxel there is nothing to mirror
    return tuple(axis for axis in axes if config.known_patch_size[axis] > 1)


def sided_labels(labels: Sequence[str]) -> list[str]:
    """Labels whose names say left or right.

    A word such as `left` or `rt` says so by itself, and a letter that stands alone beside another
    word (`Kidney (L)`, `lung_r`). A letter or word that is a part of another (`LV`, `leftkidney`)
    does where another label has the same name with the other side.

    Example:
        >>> sided_labels(["background", "left kidney", "lung_l", "LV", "RV", "vertebra_L1"])
        ['left kidney', 'lung_l', 'LV', 'RV']
    """
    plain = {name.lower() for name in labels}
    sided = []
    for name in labels:
        words = {word.lower() for word in _WORDS.findall(name)}
        letter = len(words) > 1 and _LETTER.search(name.lower().replace("_", " "))
        if words & _SIDES or letter or _opposites(name.lower()) & plain:
            sided.append(name)
    return sided


def _opposites(name: str) -> set[str]:
    """Names that differ in one side: a word or part of it, or a letter at either end of a word."""
    opposites = set()
    for left, right in _OTHER_SIDE.items():
        for one, other in ((left, right), (right, left)):
            # a letter counts at either end of a word alone
            edge = rf"(?<![a-z0-9]){one}|{one}(?![a-z0-9])" if len(one) == 1 else one
            for match in re.finditer(edge, name):
                opposites.add(name[: match.start()] + other + name[match.end() :])
    return opposites - {name}
