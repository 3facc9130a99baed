"""What candidates predict for the validation cases, with and without mirroring."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.bundle.case_scores import (
    load_for_scoring,
    task_labelled,
    task_target,
)
from training.bundle.member import Member
from training.data import PreprocessedDataset
from training.data.patches.mirroring import trained_mirror_axes
from training.data.prepared.stored_array import StoredArray
from training.region_maps import decode
from tuner.export.selection import MIN_GAIN, parts

if TYPE_CHECKING:
    from tuner.export.candidates import Candidate
    from tuner.export.data import ExportData
    from tuner.export.measure import Labelled, Measure
    from tuner.export.scratch import Scratch

Mirroring = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Predicted:
    """A candidate's predictions of the validation cases.

    Attributes:
        candidate: The candidate.
        mirror_axes: Axes that images were mirrored along.
        probabilities: Class probabilities `(k, d, h, w)` of each case.
        scores: Scores `(case, class)`.
        seconds: Time for a case, of all its networks.
    """

    candidate: Candidate
    mirror_axes: tuple[int, ...]
    probabilities: list[NDArray[np.float16]]
    scores: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class PreparedCase:
    """A preprocessed case.

    Attributes:
        name: Its name.
        image: Its image `(c, d, h, w)`.
        label: Its label map `(d, h, w)`.
        fold: The fold whose validation case it is.
        labelled: The foreground classes that it is labelled for; None for all.
    """

    name: str
    image: StoredArray
    label: StoredArray
    fold: int = 0
    labelled: tuple[int, ...] | None = None


def validation_cases(data: ExportData, winner: Candidate, scratch: Scratch) -> list[PreparedCase]:
    """The preprocessed validation cases: the study's own, or made again from their files.

    Where the winner has networks of several folds, those of all folds. [] where there are none.

    Raises:
        DatasetError: if one is damaged.
        ExportError: if the disk has no room.
    """
    dataset = data.dataset
    if dataset is not None:
        further = [PreprocessedDataset.load(config.data_dir) for config, _ in winner.further]
        return [
            PreparedCase(
                name,
                of_fold.image(name),
                of_fold.label(name),
                fold,
                of_fold.cases[name].as_raw(name).labelled,
            )
            for fold, of_fold in enumerate((dataset, *further))
            for name in of_fold.splits["val"]
        ]
    cases = []
    for files in data.files("val"):
        prepared = data.preprocessing.apply(files.images, files.label, files.channels)
        assert prepared.label is not None
        image = scratch.array(prepared.image.shape, np.float32)
        image[:] = prepared.image
        cases.append(PreparedCase(files.case_id, image, prepared.label, 0, files.labelled))
    return cases


@dataclass(frozen=True)
class ValidationCases:
    """The validation cases, as the networks of a study predict them.

    Attributes:
        cases: The preprocessed cases, fold after fold; each is predicted by the network that did
            not train on it.
        labels: Name of each label value of the data, background first.
        measure: What is to be as large as possible.
        num_classes: Classes of the label maps, background included.
        channels: Channels of the networks' probabilities: classes, or regions.
        scratch: Where probabilities are kept.
    """

    cases: list[PreparedCase]
    labels: list[str]
    measure: Measure
    num_classes: int
    channels: int
    scratch: Scratch

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def bytes_of_one(self) -> int:
        """Disk that the predictions of one network take."""
        return 2 * self.channels * sum(math.prod(case.label.shape) for case in self.cases)

    def targets(self, candidate: Candidate) -> Iterator[NDArray[Any]]:
        """The true classes `(d, h, w)` of case after case."""
        for case in self.cases:
            yield task_target(np.array(case.label), candidate.config).numpy()

    def labelled(self, candidate: Candidate) -> Iterator[Labelled]:
        """Which classes of the network each case is labelled for."""
        for case in self.cases:
            mask = task_labelled(case.labelled, candidate.config)
            yield None if mask is None else mask.numpy()

    def decode(self, probabilities: NDArray[Any]) -> NDArray[np.integer[Any]]:
        """Classes `(d, h, w)` of probabilities `(k, d, h, w)`."""
        return decode(probabilities, self.measure.regions)

    def plain(self, candidate: Candidate) -> Predicted:
        """What a candidate predicts without mirroring.

        Raises:
            BundleError: if its checkpoint cannot be read.
            ExportError: if the disk has no room for the predictions.
        """
        return self._predict(candidate, ())

    def mirrored(self, plain: Predicted, mirroring: Mirroring) -> Predicted | None:
        """What a candidate predicts with mirroring, None where that is not wanted or not better.

        Args:
            plain: What it predicts without.
            mirroring: Whether it is wanted.

        Raises:
            ExportError: if the disk has no room for the predictions.
        """
        candidate = plain.candidate
        axes = trained_mirror_axes(candidate.config, self.labels)
        if not axes or mirroring == "off":
            return None
        mirrored = self._predict(candidate, axes)
        wanted = mirroring == "on" or self._is_better(mirrored, plain, range(len(self)))
        return mirrored if wanted else None

    def mirroring_gains(
        self, plain: Predicted, chosen: Predicted, mirroring: Mirroring
    ) -> NDArray[np.float64]:
        """Gain of each case by mirroring, which other cases decide; NaN without a score."""
        gains = self.measure.by_case(chosen.scores) - self.measure.by_case(plain.scores)
        decided = mirroring == "auto" and len(gains) > 1
        for part, others in parts(len(gains)) if decided else ():
            if not self._is_better(chosen, plain, others):
                gains[part] *= 0
        return gains

    def _is_better(self, one: Predicted, other: Predicted, rows: Sequence[int]) -> bool:
        means = [self.measure.mean(found.scores[list(rows)]) for found in (one, other)]
        return means[0] > means[1] + MIN_GAIN

    def _predict(self, candidate: Candidate, mirror_axes: tuple[int, ...]) -> Predicted:
        whole = self.scratch.array([self.bytes_of_one // 2], np.float16)
        targets, labelled = self.targets(candidate), self.labelled(candidate)
        kept, scores, seconds, first = [], [], 0.0, 0
        for fold, (config, checkpoint) in enumerate(candidate.networks):
            module = load_for_scoring(checkpoint, config)
            member = Member(config, module, mirror_axes=mirror_axes)
            times = []
            for case in self.cases:
                if case.fold != fold:
                    continue
                image = torch.from_numpy(np.array(case.image))
                started = time.perf_counter()
                probabilities = member.probabilities(image).cpu().numpy()
                times.append(time.perf_counter() - started)
                stored = whole[first : first + probabilities.size].reshape(probabilities.shape)
                stored[:] = probabilities
                first += probabilities.size
                kept.append(stored)
                classes = self.decode(probabilities)
                scores.append(self.measure.of_labels(classes, next(targets), next(labelled)))
            # the first one also loads kernels and fills caches
            seconds += float(np.mean(times[1:] or times)) if times else 0.0
        return Predicted(candidate, mirror_axes, kept, np.array(scores), seconds)


def mean_predictions(
    members: Sequence[tuple[float, Predicted]],
) -> Iterator[NDArray[np.float32]]:
    """Case after case the weighted mean of probabilities that were predicted before."""
    for number in range(len(members[0][1].probabilities)):
        mean = np.zeros(members[0][1].probabilities[number].shape, dtype=np.float32)
        for weight, predicted in members:
            mean += np.float32(weight) * predicted.probabilities[number]
        yield mean
