"""Plans the end of a study that has a time budget: what still fits into the time that is left.

The times are estimates from the study's record alone (seconds of the epochs so far, and what the
start of a trial took), so that a study that was resumed plans as it would have without a break.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from training.config.optimisation import OPEN_SCHEDULES
from tuner.spec.grid import planned_trials
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry

RECENT = 50
"""Trials, the newest, by which an epoch and a start of the next one are estimated."""

SLACK = 1.05
"""Factor of the time of an epoch: a checkpoint is written after it, and a worker waits."""

MARGIN = 0.03, 30.0
"""Share of the time budget, and the most seconds, in which nothing is planned to run."""

USUAL_STARTUP = 15.0
"""Seconds, at most, that a worker is taken to need for a start while none was measured."""

STARTS = ("proposed", "promoted", "resumed")
"""Decisions with which a worker begins a trial, or goes on with one."""

ENDS = {state.value for state in TrialState} - {TrialState.RUNNING.value} | {"retried"}
"""Decisions with which a worker is free."""


@dataclass(frozen=True)
class Ending:
    """How a trial can end its schedule of the learning rate from an epoch on.

    Attributes:
        planned: Epochs of the schedule as it is.
        shortest: The fewest epochs of a schedule that ends; that epoch if it may end there.
    """

    planned: int
    shortest: int


def ending_of(config: ModelTrainingConfig, epoch: int) -> Ending:
    """How a training can end its schedule after an epoch.

    A schedule with a fixed end (poly, cosine) may be shortened too, to the share of its epochs
    that wsd decays in: its rate then steps down, and still ends at its end.
    """
    planned, shortest = config.max_epochs, config.shortest_ending(epoch)
    if config.scheduler in OPEN_SCHEDULES or config.scheduler == "wsd":
        return Ending(planned, shortest)
    shortened = math.ceil(max(epoch, 1) / (1 - config.decay_share))
    shortened = max(shortened, epoch + 1, config.warmup_epochs + 1)
    return Ending(planned, min(planned, shortened))


class TimePlan:
    """What fits into the time that a study has left.

    Args:
        record: The study's record.
        config_of: The config of a trial's values.
        rungs: Epochs at which trials may pause, ascending.
        trials: Trials of the study.
        workers: How many trials may run at once just now.
        seconds_left: Seconds until the study is cut off.
        alone: Trials that train on at the end, and how long an epoch takes them with the cores
            that are free then, as a share of what it took before; as many as there are workers, and
            as long, by default.
    """

    def __init__(
        self,
        record: StudyRecord,
        config_of: Callable[[Mapping[str, Any]], ModelTrainingConfig],
        *,
        rungs: Sequence[int],
        trials: int,
        workers: Callable[[], int],
        seconds_left: Callable[[], float],
        alone: tuple[int, float] | None = None,
    ) -> None:
        self._record = record
        self._config_of = config_of
        self._rungs = tuple(rungs)
        self._workers = workers
        self._trials = trials
        self._seconds_left = seconds_left
        share, most = MARGIN
        self._margin = min(share * seconds_left(), most)
        self._alone = alone
        self.total = self.left
        """Seconds that trials have in all."""
        self._max_epochs = config_of({}).max_epochs
        self._configs: dict[tuple[int, int], ModelTrainingConfig] = {}
        self._startup: tuple[int, float | None] = (0, None)

    @classmethod
    def of(
        cls,
        study: Study,
        workers: Callable[[], int],
        seconds_left: Callable[[], float],
        alone: tuple[int, float] | None = None,
    ) -> TimePlan:
        """The plan of a study."""
        spec = study.spec
        return cls(
            study.record,
            spec.trial_config,
            rungs=spec.rungs(),
            trials=planned_trials(spec),
            workers=workers,
            seconds_left=seconds_left,
            alone=alone,
        )

    @property
    def left(self) -> float:
        """Seconds in which trials may run."""
        return self._seconds_left() - self._margin

    @property
    def new_trials(self) -> int:
        """Trials that are still to be proposed."""
        return max(0, self._trials - len(self._record.entries))

    def pace(self, entry: TrialEntry | None = None) -> float | None:
        """Seconds of an epoch, of a trial or of the recent ones; None while none has ended."""
        if entry is not None and entry.scores:
            return SLACK * _epoch_seconds(entry)
        newest = (self._record.entries[n] for n in reversed(self._record.entries))
        paces = [_epoch_seconds(e) for e in islice(newest, RECENT) if e.scores]
        return SLACK * statistics.fmean(paces) if paces else None

    @property
    def startup(self) -> float:
        """Seconds that a worker needs to begin a trial, or to go on with one.

        The first trials, which wait for the start of their worker processes, do not count.
        """
        decisions = self._record.decisions
        known, startup = self._startup
        if known != len(decisions):
            startup = self._measured_startup()
            self._startup = len(decisions), startup
        # before any such trial has ended
        return min(self.pace() or 0.0, USUAL_STARTUP) if startup is None else startup

    def _measured_startup(self) -> float | None:
        begun: dict[int, float] = {}
        spent: dict[int, tuple[float, int]] = {}
        for decision in self._record.decisions:
            number = decision.trial
            if decision.action in STARTS:
                begun[number] = decision.time
            elif decision.action in ENDS and number in begun:
                seconds, runs = spent.get(number, (0.0, 0))
                spent[number] = seconds + decision.time - begun.pop(number), runs + 1
        beside = [
            max(0.0, seconds - self._record.entries[number].seconds) / runs
            for number, (seconds, runs) in islice(reversed(spent.items()), RECENT)
            if number >= self._workers()
            and number not in begun
            and self._record.entries[number].scores
        ]
        return statistics.median(beside) if beside else None

    def ending_after(self, entry: TrialEntry, epoch: int) -> Ending:
        """How a trial can end its schedule from an epoch on."""
        key = entry.number, len(entry.overridden) + len(entry.lineage)
        if key not in self._configs:
            self._configs[key] = self._config_of(entry.trained_values)
        return ending_of(self._configs[key], epoch)

    def room(self, entry: TrialEntry) -> int:
        """Epochs of a trial that fit into the time that is left, after a start of its worker."""
        seconds = self.left - self.startup
        pace = self.pace(entry)
        assert pace is not None
        return max(0, math.floor(seconds / pace)) if pace else self._max_epochs

    def can_end(self, entry: TrialEntry) -> bool:
        """Whether a trial that waits can still end a schedule, after an epoch more at least."""
        ending = self.ending_after(entry, entry.epochs)
        needed = max(ending.shortest, entry.epochs + 1)
        return needed <= ending.planned and entry.epochs + self.room(entry) >= needed

    def seconds_to_end(self, entry: TrialEntry, epoch: int | None = None) -> float:
        """Seconds of the shortest end of a trial's schedule after an epoch, its last by default."""
        at = entry.epochs if epoch is None else epoch
        pace = self.pace(entry)
        assert pace is not None
        return (self.ending_after(entry, at).shortest - at) * pace

    def finalists(self) -> int:
        """How many trials train on to the end when time is short."""
        return self._workers() if self._alone is None else self._alone[0]

    def seconds_alone(self, entry: TrialEntry) -> float:
        """Seconds until a trial that waits has come to its last epoch as one of the finalists."""
        pace = self.pace(entry)
        assert pace is not None
        factor = 1.0 if self._alone is None else self._alone[1]
        planned = self.ending_after(entry, entry.epochs).planned
        return self.startup + (planned - entry.epochs) * pace * factor

    def next_pause(self, entry: TrialEntry) -> int:
        """The epoch at which a trial may pause next, or ends."""
        rungs = (rung for rung in self._rungs if rung > entry.epochs)
        return min(next(rungs, self._max_epochs), self.ending_after(entry, entry.epochs).planned)

    def seconds_of_new(self) -> float:
        """Seconds until a new trial may pause, or ends."""
        first = self._rungs[0] if self._rungs else self._max_epochs
        return self.startup + first * (self.pace() or 0.0)

    def may_start(self) -> bool:
        """Whether a new trial can come to its first rung and end its schedule from there."""
        pace = self.pace()
        if pace is None:
            return True
        base = self._config_of({})
        first = self._rungs[0] if self._rungs else self._max_epochs
        needed = min(self._max_epochs, math.ceil(first / (1 - base.decay_share)))
        return self.startup + needed * pace <= self.left

    def is_short(self, share: float = 1.0) -> bool:
        """Whether the time is too short to train every trial to its end.

        Args:
            share: Share of a full training that a new trial is expected to take.
        """
        pace = self.pace()
        if pace is None:
            return False
        rest = sum(
            max(0, self._max_epochs - entry.epochs)
            for entry in self._record.entries.values()
            if not entry.state.finished
        )
        needed = self.new_trials * share * self._max_epochs + rest
        return needed * pace > self.left * self._workers()

    def capacity(self) -> str:
        """How many full trainings fit into the time that is left; empty while not known."""
        pace = self.pace()
        if not pace:
            return ""
        trainings = max(0.0, self.left) * self._workers() / (pace * self._max_epochs)
        return f"about {trainings:.1f} trainings of {self._max_epochs} epochs fit into it"

    def ending(self) -> str:
        """What still runs until the study ends; empty while there is time."""
        going_on = self._record.with_state(TrialState.RUNNING, TrialState.PAUSED)
        finalists = [str(entry.number) for entry in going_on if entry.is_finalist]
        if finalists:
            one = len(finalists) == 1
            who = f"trial {finalists[0]} trains" if one else f"trials {', '.join(finalists)} train"
            return f"{who} on to the end, no new ones"
        if self.pace() is None or not self.is_short() or self.may_start():
            return ""
        running = self._record.with_state(TrialState.RUNNING)
        ending = sum(entry.ends_at is not None for entry in running)
        ends = f"{ending} of the {len(running)} running trials end their schedules, " * bool(ending)
        return f"{ends}no new ones"


def _epoch_seconds(entry: TrialEntry) -> float:
    """Seconds of an epoch of a trial that has ended one."""
    return entry.epoch_seconds or entry.seconds / len(entry.scores)
