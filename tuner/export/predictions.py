"""What candidates predict for the validation cases, with and without mirroring."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.bundle.case_scores import load_for_scoring, task_target
from training.bundle.member import Member
from training.data.patches.mirroring import trained_mirror_axes
from tuner.export.selection import MIN_GAIN, parts

if TYPE_CHECKING:
    from tuner.export.candidates import Candidate
    from tuner.export.data import ExportData
    from tuner.export.measure import Measure
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
        seconds: Time for a case.
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
    """

    name: str
    image: NDArray[np.float32]
    label: NDArray[Any]


def validation_cases(data: ExportData, scratch: Scratch) -> list[PreparedCase]:
    """The preprocessed validation cases: the study's own, or made again from their files.

    [] where neither is there.

    Raises:
        DatasetError: if one is damaged.
        ExportError: if the disk has no room.
    """
    dataset = data.dataset
    if dataset is not None:
        return [
            PreparedCase(name, dataset.image(name), dataset.label(name))
            for name in data.splits["val"]
        ]
    cases = []
    for files in data.files("val"):
        prepared = data.preprocessing.apply(files.images, files.label)
        assert prepared.label is not None
        image = scratch.array(prepared.image.shape, np.float32)
        image[:] = prepared.image
        cases.append(PreparedCase(files.case_id, image, prepared.label))
    return cases


@dataclass(frozen=True)
class ValidationCases:
    """The validation cases, as the networks of a study predict them.

    Attributes:
        cases: The preprocessed cases.
        labels: Name of each label value of the data, background first.
        measure: What is to be as large as possible.
        num_classes: Classes of the networks' probabilities.
        scratch: Where probabilities are kept.
    """

    cases: list[PreparedCase]
    labels: list[str]
    measure: Measure
    num_classes: int
    scratch: Scratch

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def bytes_of_one(self) -> int:
        """Disk that the predictions of one network take."""
        return 2 * self.num_classes * sum(case.label.size for case in self.cases)

    def targets(self, candidate: Candidate) -> Iterator[NDArray[Any]]:
        """The true classes `(d, h, w)` of case after case."""
        for case in self.cases:
            yield task_target(np.array(case.label), candidate.config).numpy()

    def predict(self, candidate: Candidate, mirroring: Mirroring) -> tuple[Predicted, Predicted]:
        """What a candidate predicts without mirroring, and with it where that is better.

        Raises:
            BundleError: if its checkpoint cannot be read.
            ExportError: if the disk has no room for the predictions.
        """
        axes = trained_mirror_axes(candidate.config, self.labels)
        module = load_for_scoring(candidate.checkpoint, candidate.config)
        plain = self._predict(candidate, Member(candidate.config, module))
        if not axes or mirroring == "off":
            return plain, plain
        mirrored = self._predict(candidate, Member(candidate.config, module, mirror_axes=axes))
        wanted = mirroring == "on" or self._is_better(mirrored, plain, range(len(self)))
        return plain, mirrored if wanted else plain

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

    def _predict(self, candidate: Candidate, member: Member) -> Predicted:
        whole = self.scratch.array([self.bytes_of_one // 2], np.float16)
        kept, scores, seconds, first = [], [], [], 0
        for case, label in zip(self.cases, self.targets(candidate), strict=True):
            image = torch.from_numpy(np.array(case.image))
            started = time.perf_counter()
            probabilities = member.probabilities(image).cpu().numpy()
            seconds.append(time.perf_counter() - started)
            stored = whole[first : first + probabilities.size].reshape(probabilities.shape)
            stored[:] = probabilities
            first += probabilities.size
            kept.append(stored)
            scores.append(self.measure.of_labels(probabilities.argmax(axis=0), label))
        # the first one also loads kernels and fills caches
        counted = seconds[1:] or seconds
        return Predicted(
            candidate, member.mirror_axes, kept, np.array(scores), float(np.mean(counted))
        )


def mean_predictions(
    members: Sequence[tuple[float, Predicted]],
) -> Iterator[NDArray[np.float32]]:
    """Case after case the weighted mean of probabilities that were predicted before."""
    for number in range(len(members[0][1].probabilities)):
        mean = np.zeros(members[0][1].probabilities[number].shape, dtype=np.float32)
        for weight, predicted in members:
            mean += np.float32(weight) * predicted.probabilities[number]
        yield mean
