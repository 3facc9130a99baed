"""Metrics that add up over cases, epochs and ranks: sums and counts, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import Metric

from training.config.regions import Regions
from training.metrics.boundary import boundary_scores
from training.metrics.labels import (
    LabelArray,
    check_shape,
    check_tolerance,
    label_arrays,
    unknown_voxels,
)
from training.metrics.overlap import OverlapScores, overlap_scores
from training.metrics.surface import surface_scores_of_labels
from training.partial_labels import hide_missing
from training.region_maps import region_mask, region_table


class _ClassMetric(Metric):
    """Means over cases of scores that each class has.

    Args:
        num_classes: Classes, background included.
        num_scores: Scores a class has.
        labels: Name of each foreground class or region in the results; 1, 2, ... by default.
        regions: Unions of classes that are scored in place of the classes.
    """

    full_state_update = False
    is_differentiable = False

    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        num_scores: int,
        labels: Sequence[int | str] | None,
        regions: Regions | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.regions = regions
        scored = num_classes - 1 if regions is None else len(regions)
        self.labels = range(1, scored + 1) if labels is None else tuple(labels)
        if len(self.labels) != scored:
            kind = "foreground classes" if regions is None else "regions"
            raise ValueError(
                f"labels={tuple(self.labels)} must name the {scored} {kind} "
                f"of num_classes={num_classes}"
            )
        zeros = torch.zeros(num_scores, scored, dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", zeros.clone(), dist_reduce_fx="sum")

    def _label_arrays(
        self, prediction: Tensor, targets: Tensor, labelled: Tensor | None
    ) -> tuple[LabelArray, LabelArray]:
        check_shape(targets, prediction.shape)
        if labelled is not None:
            # what a case is not labelled for may be there, and is labelled as background
            prediction = hide_missing(prediction, labelled)
        return label_arrays(prediction, targets, self.num_classes)

    def _masks(self, one: LabelArray, other: LabelArray) -> Iterator[tuple[LabelArray, LabelArray]]:
        """The regions of two label maps, each as a label map of background and region."""
        assert self.regions is not None
        left_out = unknown_voxels(other, self.num_classes)
        for region in range(len(self.regions)):
            masks = [
                region_mask(labels, self.regions, region).view(np.uint8) for labels in (one, other)
            ]
            for mask in masks if left_out is not None else ():
                mask[left_out] = 2
            yield masks[0], masks[1]

    def _scored(self, labelled: Tensor) -> Tensor:
        """Which cases are labelled for which foreground class or region, `(case, scored)`."""
        labelled = labelled.cpu()
        if self.regions is None:
            return labelled[:, 1:]
        table = region_table(self.regions)
        return torch.stack([labelled[:, row].all(dim=1) for row in table], dim=1)

    def _add(self, scores: Tensor, labelled: Tensor | None = None) -> None:
        """Add scores `(score, case, foreground class)`, nan where one is not defined."""
        if labelled is not None:
            scores = scores.masked_fill(~self._scored(labelled), torch.nan)
        scores = scores.to(self.sums.device)
        # not in place: a state that was reset in inference mode could not be changed outside it
        self.sums = self.sums + scores.nansum(dim=1)
        self.counts = self.counts + (~scores.isnan()).sum(dim=1)

    def _means(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """Of each score: its mean over classes, and its value for each."""
        # 0/0 is nan: a class that no case has is not defined
        means = self.sums / self.counts
        return {
            name: {name: scores.nanmean(), **self._by_label(name, scores)}
            for name, scores in zip(names, means, strict=True)
        }

    def _by_label(self, name: str, values: Tensor, suffix: str = "") -> dict[str, Tensor]:
        return {
            f"{name}_{label}{suffix}": value
            for label, value in zip(self.labels, values, strict=True)
        }


class SegmentationMetrics(_ClassMetric):
    """Dice, IoU, boundary F1 and accuracy, averaged over cases.

    Args:
        num_classes: Classes, background included.
        tolerance: Tolerance of the boundary F1.
        spacing: Size of a voxel in mm; without it the tolerance is in voxels.
        labels: Name of each foreground class or region in the results; 1, 2, ... by default.
        regions: Unions of classes that are scored in place of the classes; the accuracy stays
            that of the classes.

    Raises:
        ValueError: for a negative tolerance, or labels that do not fit `num_classes`.
    """

    higher_is_better = True

    correct: Tensor
    cases: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerance: float = 1.0,
        spacing: Sequence[float] | None = None,
        labels: Sequence[int | str] | None = None,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(num_classes, 3, labels, regions)
        self.tolerance = check_tolerance(tolerance)
        self.spacing = spacing
        self.add_state("correct", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        prediction: Int[Tensor, "b *spatial"],
        targets: Int[Tensor, "b *spatial"],
        labelled: Bool[Tensor, "b c"] | None = None,
    ) -> None:
        """Add cases (or patches) with their predicted and true label maps.

        Args:
            prediction: Predicted label maps.
            targets: True label maps; voxels of `IGNORE_INDEX` are left out on both sides.
            labelled: Which classes each case is labelled for, see `training.partial_labels`; all
                by default. Scores of the others are not defined.

        Raises:
            ValueError: if the shapes differ or a label is not a class.
        """
        one, other = self._label_arrays(prediction, targets, labelled)
        overlap = overlap_scores(one, other, self.num_classes)
        if self.regions is None:
            self._add(self._scores(one, other, self.num_classes, overlap), labelled)
        else:
            found = [
                self._scores(mask, true, 2, overlap_scores(mask, true, 2))
                for mask, true in self._masks(one, other)
            ]
            self._add(torch.cat(found, dim=-1), labelled)
        self.correct = self.correct + overlap.accuracy.nansum().to(self.correct.device)
        self.cases = self.cases + int((~overlap.accuracy.isnan()).sum())

    def _scores(
        self, one: LabelArray, other: LabelArray, num_classes: int, overlap: OverlapScores
    ) -> Tensor:
        """Dice, IoU and boundary F1 `(score, case, foreground class)`."""
        boundary = boundary_scores(
            one, other, num_classes, tolerance=self.tolerance, spacing=self.spacing
        )
        return torch.stack([overlap.dice, overlap.iou, boundary])[..., 1:]

    def compute(self) -> dict[str, Tensor]:
        """`dice`, `dice_{label}` of each foreground class, `iou`, `boundary_f1`, `accuracy`."""
        means = self._means(["dice", "iou", "boundary_f1"])
        return {
            **means["dice"],
            "iou": means["iou"]["iou"],
            "boundary_f1": means["boundary_f1"]["boundary_f1"],
            "accuracy": self.correct / self.cases,
        }


class SurfaceMetrics(_ClassMetric):
    """Normalised surface Dice, HD95 and ASSD, averaged over whole cases.

    Args:
        num_classes: Classes, background included.
        tolerance: Tolerance of the normalised surface Dice, in the unit of the spacing.
        labels: Label of each foreground class in the results' names; 1, 2, ... by default.
        distances: Whether HD95 and ASSD are measured; the NSD alone takes a fraction of the time.

    Raises:
        ValueError: for a negative tolerance, or labels that do not fit `num_classes`.
    """

    missing: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerance: float = 1.0,
        labels: Sequence[int | str] | None = None,
        *,
        distances: bool = True,
        regions: Regions | None = None,
    ) -> None:
        super().__init__(num_classes, 3 if distances else 1, labels, regions)
        self.distances = distances
        self.tolerance = check_tolerance(tolerance)
        zeros = torch.zeros(len(self.labels), dtype=torch.float64)
        self.add_state("missing", zeros, dist_reduce_fx="sum")

    def update(
        self,
        prediction: Int[Tensor, "b *spatial"],
        targets: Int[Tensor, "b *spatial"],
        spacing: Sequence[float] | None = None,
        labelled: Bool[Tensor, "b c"] | None = None,
    ) -> None:
        """Add whole cases with their predicted and true label maps.

        Args:
            prediction: Predicted label maps.
            targets: True label maps; voxels of `IGNORE_INDEX` are left out on both sides.
            spacing: Size of these cases' voxels in mm along each axis; without it, distances
                are in voxels.
            labelled: Which classes each case is labelled for, see `training.partial_labels`; all
                by default.

        Raises:
            ValueError: if the shapes differ, a label is not a class, or the spacing is not one
                positive number an axis.
        """
        one, other = self._label_arrays(prediction, targets, labelled)
        pairs: Iterable[tuple[LabelArray, LabelArray, int]] = (
            [(one, other, self.num_classes)]
            if self.regions is None
            else [(mask, true, 2) for mask, true in self._masks(one, other)]
        )
        found = [
            surface_scores_of_labels(
                prediction,
                target,
                num_classes,
                tolerance=self.tolerance,
                spacing=spacing,
                distances=self.distances,
            )
            for prediction, target, num_classes in pairs
        ]
        kept = [torch.stack(scores[: len(self.sums)]) for scores in found]
        self._add(torch.cat(kept, dim=-1), labelled)
        missing = torch.cat([scores.missing for scores in found], dim=1)
        if labelled is not None:
            missing = missing & self._scored(labelled)
        self.missing = self.missing + missing.sum(dim=0).to(self.missing.device)

    def compute(self) -> dict[str, Tensor]:
        """`nsd`, `hd95`, `assd`, each also `_{label}`, and in how many cases one was missing.

        `hd95_{label}_missing` and `assd_{label}_missing` count the cases that have the class in
        prediction or target alone; `hd95_missing` and `assd_missing` are their sums.
        """
        names = ["nsd", "hd95", "assd"][: len(self.sums)]
        means = self._means(names)
        for name in names[1:]:
            means[name][f"{name}_missing"] = self.missing.sum()
            means[name] |= self._by_label(name, self.missing, "_missing")
        return {name: value for scores in means.values() for name, value in scores.items()}
