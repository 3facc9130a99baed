"""Population based bandits (Parker-Holder et al., 2020)."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.search.encoding import SpaceEncoding
from tuner.search.gaussian_process import GaussianProcess, single_blas_thread
from tuner.search.policies.explore import HELD, perturbed
from tuner.search.policies.pbt import PopulationTraining
from tuner.study.trial_entry import IN_PROGRESS

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from tuner.study.trial_entry import TrialEntry

MAX_OBSERVATIONS = 150
"""Largest number of intervals that the process is fitted to: the latest ones."""

CANDIDATES = 1000
"""Random points that are compared, and as many near the best of them."""


class PopulationBandits(PopulationTraining):
    """Population based training that chooses numbers with a Gaussian process.

    The process predicts how much a score improves in an epoch, from the values, the score
    before, and the time; it is fitted to the intervals that all trials have trained. A trial
    that copies another one goes on with the numbers of the greatest upper confidence bound,
    where intervals that are being trained count as if they came out as expected. Choices are
    varied as in population based training (as in PB2-Mix, without its bandit for them), and so
    are numbers until there are enough intervals. Ray's `PB2` does the same with
    scikit-learn, whose process is replaced by that of the searcher `gp`.
    """

    def _explore(
        self, values: dict[str, Any], donor: int, epoch: int, rng: random.Random
    ) -> dict[str, Any]:
        """The numbers of the greatest upper confidence bound, given the donor's state."""
        space = self._record.space
        numbers = {name for name, domain in space.items() if domain.options is None} - HELD
        encoding = SpaceEncoding(space)
        intervals = [
            interval
            for entry in self._record.entries.values()
            for interval in self._intervals(entry)
        ]
        if not numbers or len(intervals) < 2 + encoding.size:
            return super()._explore(values, donor, epoch, rng)
        latest = sorted(intervals, key=lambda interval: interval.epoch)[-MAX_OBSERVATIONS:]
        score = self._sign * self._record.entries[donor].scores[epoch]
        running = self._record.with_state(*IN_PROGRESS)
        kept = HELD | numbers
        base = perturbed(space, values, rng, self._settings.resample_probability, kept)
        with single_blas_thread():
            bandit = _Bandit(latest, encoding, self._max_epochs)
            bandit.expect([entry.values_at(entry.epochs + 1) for entry in running], score, epoch)
            return bandit.choose(base, numbers, score, epoch, rng)

    def _intervals(self, entry: TrialEntry) -> list[_Interval]:
        """The intervals of a trial, each with the change of the score."""
        length = self._settings.perturbation_interval
        found = []
        for epoch in range(2 * length, entry.epochs + 1, length):
            start = epoch - length
            donor = next((step.donor for step in entry.lineage if step.epoch == start), None)
            began_as = entry if donor is None else self._record.entries[donor]
            before = self._sign * began_as.scores.get(start, math.nan)
            after = self._sign * entry.scores.get(epoch, math.nan)
            if math.isfinite(before) and math.isfinite(after):
                gain = (after - before) / length
                found.append(_Interval(start, before, gain, entry.values_at(epoch)))
        return found


@dataclass(frozen=True)
class _Interval:
    """One interval of training.

    Attributes:
        epoch: Epoch that it began after.
        before: Score there, greater is better.
        gain: By how much the score rose in an epoch.
        values: The values of the trial.
    """

    epoch: int
    before: float
    gain: float
    values: dict[str, Any]


class _Bandit:
    """A Gaussian process of the gain over values, score before, and time.

    Args:
        intervals: What it is fitted to.
        encoding: Values as vectors.
        max_epochs: The full budget.
    """

    def __init__(
        self, intervals: Sequence[_Interval], encoding: SpaceEncoding, max_epochs: int
    ) -> None:
        self._encoding = encoding
        self._max_epochs = max_epochs
        scores = [interval.before for interval in intervals]
        self._low, self._range = min(scores), max(max(scores) - min(scores), 1e-9)
        vectors = np.stack([encoding.encode(interval.values) for interval in intervals])
        self._points = np.column_stack([(np.array(scores) - self._low) / self._range, vectors])
        self._times = np.array([interval.epoch for interval in intervals]) / max_epochs
        gains = np.array([interval.gain for interval in intervals])
        self._gains = np.clip((gains - gains.mean()) / max(float(gains.std()), 1e-9), -2, 2)
        fields = np.concatenate([[0], encoding.fields + 1])
        self._process = GaussianProcess.fit(self._points, self._times, self._gains, fields)
        self._confidence = math.sqrt(0.2 + max(0.0, math.log(0.4 * len(intervals))))

    def expect(self, running: Sequence[dict[str, Any]], score: float, epoch: int) -> None:
        """Assume that intervals in training will have the gain that is expected."""
        if not running:
            return
        points = self._at(score, np.stack([self._encoding.encode(values) for values in running]))
        times = np.full(len(points), epoch / self._max_epochs)
        expected, _ = self._process.predict(points, times)
        self._process = self._process.with_values(
            np.vstack([self._points, points]),
            np.concatenate([self._times, times]),
            np.concatenate([self._gains, expected]),
        )

    def choose(
        self,
        base: dict[str, Any],
        numbers: Collection[str],
        score: float,
        epoch: int,
        rng: random.Random,
    ) -> dict[str, Any]:
        """`base` with the numbers of the greatest upper confidence bound.

        Args:
            base: A point of the space.
            numbers: Fields to choose.
            score: Score that the interval begins with.
            epoch: Epoch that it begins after.
            rng: Random numbers.
        """
        free = np.array([name in numbers and name in base for name in self._encoding.field_names()])
        start = self._encoding.encode(base)
        draws = np.random.default_rng(rng.getrandbits(64))

        def best_of(vectors: Float[ndarray, "m d"]) -> Float[ndarray, " d"]:
            vectors[:, ~free] = start[~free]
            times = np.full(len(vectors), epoch / self._max_epochs)
            mean, deviation = self._process.predict(self._at(score, vectors), times)
            bound = mean + self._confidence * deviation
            best: Float[ndarray, " d"] = vectors[int(np.argmax(bound))]
            return best

        best = best_of(draws.uniform(size=(CANDIDATES, start.size)))
        near = np.clip(best + draws.normal(0, 0.05, (CANDIDATES, start.size)), 0, 1)
        chosen = self._encoding.decode(best_of(np.vstack([best[None], near])))
        return {name: chosen[name] if name in numbers else base[name] for name in base}

    def _at(self, score: float, vectors: Float[ndarray, "m d"]) -> Float[ndarray, "m e"]:
        before = np.full(len(vectors), (score - self._low) / self._range)
        return np.column_stack([before, vectors])
