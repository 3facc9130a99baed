"""Input and output of a searcher: `SearchView` and `Proposal`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.search.encoding import SpaceEncoding
from tuner.study.trial_entry import sign_of

if TYPE_CHECKING:
    from tuner.spec.space import Space
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry
    from tuner.study.warm_start import LearningRecord


@dataclass(frozen=True)
class SearchView:
    """The study as a searcher sees it; all that a proposal may depend on.

    Attributes:
        record: The study's record, or with it the trials of earlier studies.
        number: Number of the trial to propose.
        seed: The study's seed.
        default: The best point that was known before the study: of earlier studies, or the
            default.
        rungs: Epochs at which trials are compared, ascending, the full budget last; of several
            folds the end of each.
        further_metrics: Metrics that matter beside the study's own, with their modes.
    """

    record: StudyRecord | LearningRecord
    number: int
    seed: int
    default: Mapping[str, Any]
    rungs: tuple[int, ...]
    further_metrics: tuple[tuple[str, str], ...] = ()

    @cached_property
    def encoding(self) -> SpaceEncoding:
        """Points of the space as vectors."""
        return SpaceEncoding(self.space)

    @property
    def space(self) -> Space:
        """The fields that the study varies."""
        return self.record.space

    @property
    def sign(self) -> float:
        """Factor that makes a greater score the better one."""
        return sign_of(self.record.mode)

    def trial_seed(self) -> int:
        """Seed of this proposal: of the study's seed and the trial's number."""
        # not their sum: studies of neighbouring seeds would share most of their trials
        return int(np.random.SeedSequence((self.seed, self.number)).generate_state(1)[0])

    def rng(self) -> np.random.Generator:
        """Random numbers of this proposal."""
        return np.random.default_rng((self.seed, self.number))

    def reached(self, entry: TrialEntry) -> int:
        """How many rungs a trial has a score at."""
        return sum(rung in entry.scores for rung in self.rungs)


@dataclass(frozen=True)
class Proposal:
    """Values for a new trial.

    Attributes:
        values: By field name, without fields that take no part.
        generation: Generation of a searcher that works in generations, 0 for others.
    """

    values: Mapping[str, Any]
    generation: int = 0


Propose = Callable[[SearchView], Proposal | None]
"""A searcher: the next trial, None if it has no more."""
