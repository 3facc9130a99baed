"""Removes components of a predicted label map, where that helps validation cases.

As nnU-Net chooses it (Isensee et al., 2021): the largest component of the whole foreground is
kept, then that of each class, if the mean Dice of the validation cases improves and no class gets
worse. Then components of a class below a volume are removed, likewise. What is removed becomes
background. Voxels are of one component if they share a face, an edge or a corner; components of the
same largest size are all kept. Both are as in nnU-Net.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from training.ignored_voxels import IGNORE_INDEX

__all__ = [
    "Chosen",
    "KeepLargest",
    "KeepLargestForeground",
    "KeepLargestOfRegion",
    "Postprocessing",
    "RemoveSmall",
    "choose_postprocessing",
]

LabelMap = NDArray[np.integer[Any]]

Case = tuple[LabelMap, LabelMap, Sequence[float]]
"""Predicted label map, true label map, and size of a voxel in mm along each axis.

Voxels of `IGNORE_INDEX` in the true label map count for nothing; components are those of the whole
prediction.
"""

MIN_GAIN = 1e-4
"""Gain of the mean Dice below which a step is not worth it."""

VOLUME_QUANTILES = (0.0, 0.05, 0.1, 0.25)
"""Quantiles of the volumes of a class's true components that are tried as its least volume."""

_CORNERS = np.ones((3, 3, 3), dtype=bool)


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeepLargestForeground(_Step):
    """Keeps the largest component of all foreground classes together."""

    kind: Literal["keep_largest_foreground"] = "keep_largest_foreground"

    def mask(self, labels: LabelMap) -> NDArray[np.bool_]:
        """The voxels that the step looks at."""
        return np.asarray(labels > 0)

    def kept(self, sizes: NDArray[np.int64], voxel: float) -> NDArray[np.bool_]:
        """Which components stay, by their voxels; `voxel` is the volume of one in mm³."""
        return np.asarray(sizes == sizes.max(initial=0))

    def text(self, labels: Sequence[str]) -> str:
        """The step in words."""
        return "keeps the largest component of the whole foreground"


class KeepLargest(_Step):
    """Keeps the largest component of a class."""

    kind: Literal["keep_largest"] = "keep_largest"
    label: Annotated[int, Field(ge=1)]

    def mask(self, labels: LabelMap) -> NDArray[np.bool_]:
        """The voxels that the step looks at."""
        return np.asarray(labels == self.label)

    def kept(self, sizes: NDArray[np.int64], voxel: float) -> NDArray[np.bool_]:
        """Which components stay, by their voxels; `voxel` is the volume of one in mm³."""
        return np.asarray(sizes == sizes.max(initial=0))

    def text(self, labels: Sequence[str]) -> str:
        """The step in words."""
        return f"keeps the largest component of {_name(labels, self.label)}"


class RemoveSmall(_Step):
    """Removes components of a class that are smaller than a volume in mm³."""

    kind: Literal["remove_small"] = "remove_small"
    label: Annotated[int, Field(ge=1)]
    min_volume: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def mask(self, labels: LabelMap) -> NDArray[np.bool_]:
        """The voxels that the step looks at."""
        return np.asarray(labels == self.label)

    def kept(self, sizes: NDArray[np.int64], voxel: float) -> NDArray[np.bool_]:
        """Which components stay, by their voxels; `voxel` is the volume of one in mm³."""
        # a volume that was read off the same grid is the same but for rounding
        return np.asarray(sizes * voxel >= self.min_volume * (1 - 1e-5))

    def text(self, labels: Sequence[str]) -> str:
        """The step in words."""
        return f"removes components of {_name(labels, self.label)} below {self.min_volume:.3g} mm³"


class KeepLargestOfRegion(_Step):
    """Keeps the largest component of a region, a union of classes.

    What is removed becomes what the voxel is without the region: the rest of an outer region, such
    as oedema around a tumour's core, or background.

    Attributes:
        name: The region.
        becomes: What each class of the region becomes where it is removed.
    """

    kind: Literal["keep_largest_of_region"] = "keep_largest_of_region"
    name: str
    becomes: dict[int, int]

    def mask(self, labels: LabelMap) -> NDArray[np.bool_]:
        """The voxels that the step looks at."""
        return np.isin(labels, list(self.becomes))

    def kept(self, sizes: NDArray[np.int64], voxel: float) -> NDArray[np.bool_]:
        """Which components stay, by their voxels; `voxel` is the volume of one in mm³."""
        return np.asarray(sizes == sizes.max(initial=0))

    def text(self, labels: Sequence[str]) -> str:
        """The step in words."""
        return f"keeps the largest component of {self.name}"


Step = Annotated[
    KeepLargestForeground | KeepLargest | RemoveSmall | KeepLargestOfRegion,
    Field(discriminator="kind"),
]


class Postprocessing(BaseModel):
    """What is done to a predicted label map, step after step; nothing without steps.

    Label maps have the classes of the network: with a target label 0 and 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[Step, ...] = ()

    def apply(self, label_map: LabelMap, spacing: Sequence[float]) -> LabelMap:
        """The label map after all steps, a new array of the same type; as it is without steps.

        Args:
            label_map: Predicted classes (i, j, k).
            spacing: Size of a voxel in mm along each axis.
        """
        if not self.steps:
            return label_map
        changed = label_map.copy()
        voxel = float(np.prod(spacing))
        for step in self.steps:
            place, components, sizes = _components(step.mask(changed))
            removed = np.concatenate([[False], ~step.kept(sizes, voxel)])
            inside, taken = changed[place], removed[components]
            if isinstance(step, KeepLargestOfRegion):
                before = inside[taken]
                after = np.zeros_like(before)
                for value, other in step.becomes.items():
                    after[before == value] = other
                inside[taken] = after
            else:
                inside[taken] = 0
        return changed

    def describe(self, labels: Sequence[str]) -> list[str]:
        """The steps in words; empty where nothing is done.

        Args:
            labels: Name of each class of the network, background first.
        """
        return [step.text(labels) for step in self.steps]


@dataclass(frozen=True)
class Chosen:
    """A postprocessing, with what it gives on the cases that it was chosen by.

    Attributes:
        postprocessing: The steps; none where nothing helps.
        before: Mean Dice over the cases of each foreground class without it, from class 1 on; nan
            for a class that is in no prediction and no reference.
        after: The same with it.
    """

    postprocessing: Postprocessing
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def gain(self) -> float:
        """By how much the mean over the classes rises; 0 where nothing is done."""
        return _gain(np.array(self.before), np.array(self.after))


def choose_postprocessing(cases: Callable[[], Iterable[Case]], num_classes: int) -> Chosen:
    """The postprocessing that improves the mean Dice of cases, see this module.

    The cases are read twice, one after the other.

    Args:
        cases: Gives the cases anew with each call; they should not be those that the network
            was trained on.
        num_classes: Classes of the network, background included.

    Raises:
        ValueError: if a prediction differs in shape from its reference.
    """
    first = [_foreground_tables(*case, num_classes) for case in cases()]
    before = _scores([[table.whole() for table in tables] for tables, _ in first])
    whole = KeepLargestForeground()
    largest = _scores([[table.keeping(whole) for table in tables] for tables, _ in first])
    steps: list[Step] = [whole] if _better(before, largest) else []
    scores = largest.copy() if steps else before.copy()
    volumes = [np.concatenate(found) for found in zip(*(true for _, true in first), strict=True)]
    started = Postprocessing(steps=tuple(steps))
    second = [
        _class_tables(started.apply(prediction, spacing), reference, spacing, num_classes)
        for prediction, reference, spacing in cases()
    ]
    for label in range(1, num_classes):
        tables = [of_case[label - 1] for of_case in second]
        chosen, score = _choose_for_class(tables, label, volumes[label - 1], scores[label - 1])
        steps += chosen
        scores[label - 1] = score
    return Chosen(
        Postprocessing(steps=tuple(steps)), tuple(before.tolist()), tuple(scores.tolist())
    )


@dataclass(frozen=True)
class _Table:
    """One class of one case, by components of what a step looks at.

    Attributes:
        sizes: Voxels of each component, of all classes that are in it.
        predicted: Voxels of the class in each.
        hits: Those of them that are the class in the reference as well.
        reference: Voxels of the class in the reference.
        voxel: Volume of a voxel in mm³.
    """

    sizes: NDArray[np.int64]
    predicted: NDArray[np.int64]
    hits: NDArray[np.int64]
    reference: int
    voxel: float

    def whole(self) -> float:
        """Dice of the class with all components."""
        return self._dice(np.ones(len(self.sizes), dtype=bool))

    def keeping(self, *steps: KeepLargestForeground | KeepLargest | RemoveSmall) -> float:
        """Dice of the class after steps that look at these components."""
        kept = np.ones(len(self.sizes), dtype=bool)
        for step in steps:
            kept &= step.kept(np.where(kept, self.sizes, 0), self.voxel)
        return self._dice(kept)

    def _dice(self, kept: NDArray[np.bool_]) -> float:
        both = int(self.predicted[kept].sum()) + self.reference
        return 2 * int(self.hits[kept].sum()) / both if both else np.nan


def _foreground_tables(
    prediction: LabelMap, reference: LabelMap, spacing: Sequence[float], num_classes: int
) -> tuple[list[_Table], list[NDArray[np.float64]]]:
    """Tables of the classes by components of the whole foreground, and true volumes in mm³."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"a prediction of shape {prediction.shape} has a reference of {reference.shape}"
        )
    voxel = float(np.prod(spacing))
    found = _components(KeepLargestForeground().mask(prediction))
    tables = [_table(found, prediction, reference, label, voxel) for label in range(1, num_classes)]
    true: list[NDArray[np.float64]] = [
        np.asarray(_components(reference == label)[2] * voxel, dtype=np.float64)
        for label in range(1, num_classes)
    ]
    return tables, true


def _class_tables(
    prediction: LabelMap, reference: LabelMap, spacing: Sequence[float], num_classes: int
) -> list[_Table]:
    """The table of each foreground class by its own components."""
    voxel = float(np.prod(spacing))
    return [
        _table(_components(prediction == label), prediction, reference, label, voxel)
        for label in range(1, num_classes)
    ]


_Components = tuple[tuple[slice, ...], NDArray[np.int32], NDArray[np.int64]]


def _table(
    found: _Components, prediction: LabelMap, reference: LabelMap, label: int, voxel: float
) -> _Table:
    place, components, sizes = found
    predicted = (prediction[place] == label) & (reference[place] != IGNORE_INDEX)
    hits = predicted & (reference[place] == label)
    return _Table(
        sizes,
        np.bincount(components[predicted], minlength=len(sizes) + 1)[1:],
        np.bincount(components[hits], minlength=len(sizes) + 1)[1:],
        int(np.count_nonzero(reference == label)),
        voxel,
    )


def _components(mask: NDArray[np.bool_]) -> _Components:
    """The box around a mask, the number of each voxel's component in it, and their voxels."""
    found = ndimage.find_objects(mask.view(np.uint8))
    place: tuple[slice, ...] = found[0] if found else (slice(0, 0),) * mask.ndim
    components, count = ndimage.label(mask[place], structure=_CORNERS)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in components:
        # all at once it would need 8 bytes a voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return place, components, sizes[1:]


def _choose_for_class(
    tables: Sequence[_Table], label: int, volumes: NDArray[np.float64], score: float
) -> tuple[list[KeepLargest | RemoveSmall], float]:
    """The steps that help a class, and its mean Dice with them."""
    steps: list[KeepLargest | RemoveSmall] = []
    largest = KeepLargest(label=label)
    with_largest = _mean([table.keeping(largest) for table in tables])
    if with_largest > score + MIN_GAIN:
        steps, score = [largest], with_largest
    least = sorted({float(volume) for volume in _quantiles(volumes)})
    candidates = [RemoveSmall(label=label, min_volume=float(f"{volume:.6g}")) for volume in least]
    found = [_mean([table.keeping(*steps, small) for table in tables]) for small in candidates]
    # of equally good ones the one that removes least
    best = int(np.nanargmax(found)) if np.isfinite(found).any() else None
    if best is not None and found[best] > score + MIN_GAIN:
        steps, score = [*steps, candidates[best]], found[best]
    return steps, score


def _quantiles(volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(volumes):
        return np.array([])
    return np.asarray(np.quantile(volumes, VOLUME_QUANTILES))


def _scores(by_case: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean Dice of each class over the cases in which it is defined."""
    return np.array([_mean(of_class) for of_class in zip(*by_case, strict=True)])


def _mean(scores: Sequence[float]) -> float:
    defined = [score for score in scores if not np.isnan(score)]
    return float(np.mean(defined)) if defined else float("nan")


def _better(before: NDArray[np.float64], after: NDArray[np.float64]) -> bool:
    """Whether the mean rises and no class gets worse, of the classes that have a score."""
    return _gain(before, after) > MIN_GAIN and not bool((after < before).any())


def _gain(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    differences = after - before
    defined = differences[~np.isnan(differences)]
    return float(defined.mean()) if len(defined) else 0.0


def _name(labels: Sequence[str], label: int) -> str:
    return labels[label] if label < len(labels) else f"class {label}"
