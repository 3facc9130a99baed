"""Greedy selection of an ensemble from the predictions of validation cases, with replacement.

As Caruana et al. (2004, ICML) do it: begin with the best, then add, again and again, the candidate
that makes the mean of all that were taken best; one that is taken several times has a larger
weight. auto-sklearn and AutoGluon select in this way. The score of the result on the cases that it
was selected by is too good, so the gain over the winner is measured by cross-validation: selected
by some cases, scored on the others (`nested_gains`).

Where all candidates have their greatest probability in the same class, so has every mean of them:
these voxels are counted once, and only the others are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.ignored_voxels import IGNORE_INDEX
from training.region_maps import decode
from tuner.export.measure import Labelled, without_missing

if TYPE_CHECKING:
    from tuner.export.measure import Measure
    from tuner.export.scratch import Scratch

MIN_GAIN = 1e-4
"""Gain of a score below which a further member is not worth it."""

MAX_ROUNDS = 25
"""How often a candidate is added; the smallest weight is one of so many."""

PATIENCE = 5
"""Rounds without a gain after which the selection ends."""

PARTS = 5
"""Parts of the cross-validation over cases."""

Counts = tuple[int, ...]
"""How often each candidate is taken."""


@dataclass(frozen=True)
class Limits:
    """What an ensemble may be.

    Attributes:
        members: Different networks.
        seconds: Time that they may take together for a case.
        networks: Which network each candidate is of, where several are of one, of which only one
            may be taken; each is of its own by default.
    """

    members: int
    seconds: float
    networks: tuple[int, ...] = ()

    def allow(self, counts: Counts, seconds: Sequence[float]) -> bool:
        """Whether an ensemble is allowed; the winner alone, which is the first one, always is.

        Args:
            counts: How often each candidate is taken.
            seconds: Seconds that each candidate takes for a case.
        """
        taken = [candidate for candidate, count in enumerate(counts) if count]
        if taken == [0]:
            return True
        networks = {self.networks[candidate] if self.networks else candidate for candidate in taken}
        time = math.fsum(seconds[candidate] for candidate in taken)
        return len(networks) == len(taken) <= self.members and time <= self.seconds


@dataclass(frozen=True)
class _Case:
    """One case.

    Attributes:
        disputed: Probabilities `(candidate, voxel, class)` where candidates disagree.
        label: True class of these voxels.
        agreed: Voxels `(3, class)` of the others: of both, predicted, and true ones.
        labelled: Which classes the case is labelled for.
    """

    disputed: NDArray[np.float16]
    label: NDArray[Any]
    agreed: NDArray[np.int64]
    labelled: Labelled = None


@dataclass
class SelectionCases:
    """Validation cases, as a selection looks at them.

    Attributes:
        measure: What is to be as large as possible.
        num_classes: Classes of the label maps, background included.
        scratch: Where probabilities are kept.
    """

    measure: Measure
    num_classes: int
    scratch: Scratch
    _cases: list[_Case] = field(default_factory=list)
    _known: dict[Counts, NDArray[np.float64]] = field(default_factory=dict)

    def add(
        self,
        predictions: Sequence[NDArray[np.float16]],
        label: NDArray[Any],
        labelled: Labelled = None,
    ) -> None:
        """Add a case.

        Args:
            predictions: Each candidate's class probabilities `(k, d, h, w)`.
            label: True classes `(d, h, w)`, `IGNORE_INDEX` where a voxel is left out.
            labelled: Which classes the case is labelled for.
        """
        voxels, labels, agreed = [], [], np.zeros((3, self._columns), dtype=np.int64)
        for plane, true in enumerate(label):
            # plane by plane: all candidates at once need not fit into memory
            each = np.stack([np.asarray(prediction[:, plane]) for prediction in predictions])
            classes = without_missing(decode(each, self.measure.regions, axis=1), labelled)
            known = true != IGNORE_INDEX
            same = (classes == classes[0]).all(axis=0) & known
            agreed += self.measure.count(classes[0][same], true[same], self.num_classes)
            disputes = known & ~same
            voxels.append(np.moveaxis(each[:, :, disputes], 1, 2))
            labels.append(true[disputes])
        disputed = np.concatenate(voxels, axis=1)
        kept = self.scratch.array(disputed.shape, np.float16)
        kept[:] = disputed
        self._cases.append(_Case(kept, np.concatenate(labels), agreed, labelled))
        self._known.clear()

    def __len__(self) -> int:
        return len(self._cases)

    def scores(self, counts: Counts) -> NDArray[np.float64]:
        """Scores `(case, class)` of the mean of candidates, each taken `counts` times."""
        divisor = reduce(math.gcd, counts)
        key = tuple(count // divisor for count in counts)
        if key not in self._known:
            weights = np.array(key, dtype=np.float32)
            self._known[key] = np.array([self._score(case, weights) for case in self._cases])
        return self._known[key]

    def _score(self, case: _Case, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        taken = np.flatnonzero(weights)
        total = np.zeros(case.disputed.shape[1:], dtype=np.float32)
        for candidate in taken:
            total += weights[candidate] * case.disputed[candidate]
        # regions have a threshold, so the sum must be a mean
        predicted = decode(total / weights.sum(), self.measure.regions, axis=1)
        predicted = without_missing(predicted, case.labelled)
        counts = case.agreed + self.measure.count(predicted, case.label, self.num_classes)
        return self.measure.by_class(counts, case.labelled)

    @property
    def _columns(self) -> int:
        regions = self.measure.regions
        return self.num_classes if regions is None else len(regions) + 1


def select(
    cases: SelectionCases,
    seconds: Sequence[float],
    limits: Limits,
    subset: Sequence[int] | None = None,
) -> Counts:
    """How often each candidate is taken; ties go to the smaller ensemble, then the first.

    It is begun with the best candidate and with the winner, which may leave more time for others.

    Args:
        cases: The validation cases, with each candidate's predictions; the winner's come first.
        seconds: Seconds that each candidate takes for a case.
        limits: What the ensemble may be; the winner alone it may always be.
        subset: The cases that count; all by default.
    """
    rows = list(range(len(cases)) if subset is None else subset)

    def with_one_more(taken: Counts) -> _Scored:
        options = (_one_more(taken, candidate) for candidate in range(len(seconds)))
        scored = [
            (cases.measure.mean(cases.scores(counts)[rows]), -_members(counts), counts)
            for counts in options
            if limits.allow(counts, seconds)
        ]
        # of equals the first one with the fewest networks
        return max(scored, key=lambda found: found[:2])

    nothing = (0,) * len(seconds)
    winner = _one_more(nothing, 0)
    first = with_one_more(nothing)
    starts = [first]
    if first[2] != winner:
        starts.append((cases.measure.mean(cases.scores(winner)[rows]), -1, winner))
    return max((_grown(start, with_one_more) for start in starts), key=lambda found: found[:2])[2]


_Scored = tuple[float, int, Counts]
"""A score, minus the number of networks, and how often each candidate is taken."""


def _grown(start: _Scored, with_one_more: Callable[[Counts], _Scored]) -> _Scored:
    """The best ensemble on the way from a start, each time with the best one more."""
    best, found, since = start, start, 0
    while since < PATIENCE and sum(found[2]) < MAX_ROUNDS:
        found = with_one_more(found[2])
        since += 1
        if found[0] > best[0] + MIN_GAIN:
            best, since = found, 0
    return best


def _one_more(counts: Counts, candidate: int) -> Counts:
    return (*counts[:candidate], counts[candidate] + 1, *counts[candidate + 1 :])


def _members(counts: Counts) -> int:
    return sum(count > 0 for count in counts)


def nested_gains(
    cases: SelectionCases, seconds: Sequence[float], limits: Limits
) -> NDArray[np.float64]:
    """Gain of each case over the winner, by an ensemble that was selected without that case.

    Args:
        cases: The validation cases, at least two.
        seconds: As for `select`.
        limits: As for `select`.

    Returns:
        Differences `(case,)`; NaN where a case has no score.
    """
    winner = cases.measure.by_case(cases.scores(_one_more((0,) * len(seconds), 0)))
    gains = np.full(len(cases), np.nan)
    for part, others in parts(len(cases)):
        counts = select(cases, seconds, limits, others)
        gains[part] = cases.measure.by_case(cases.scores(counts)[part]) - winner[part]
    return gains


def parts(cases: int) -> Iterator[tuple[list[int], list[int]]]:
    """The parts of a cross-validation over cases: those left out, and the others."""
    count = min(PARTS, cases)
    for first in range(count):
        left_out = list(range(first, cases, count))
        yield left_out, [case for case in range(cases) if case not in left_out]
