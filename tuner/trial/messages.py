"""Messages of driver and worker: a trial's request, its start, an epoch's report, its end.

Ray Tune carries flat dicts: it would spread a mapping over many results, and keeps statistics of
every number. So each message is one value under one key of its own, and these keys are known here
alone. Tune itself reads `done`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tuner.study.trial_entry import CASES, GRID, VIOLATION, Placement, TrialState
from tuner.trial.memory import GpuUse, MemoryUse

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord

_NUMBER = "trial_number"
_EXPLOITS = "exploits"
_FOLD = "next_fold"
_GPUS = "trial_gpus"
_START = "trial_start"
_EPOCH = "epoch_report"
_END = "trial_end"
_DONE = "done"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that a trial keeps for others.

    Attributes:
        trial: Number of the trial.
        epoch: The epoch that it is of.
    """

    trial: int
    epoch: int


@dataclass(frozen=True)
class TrialRequest:
    """What a worker is asked to train.

    Attributes:
        number: Number of the trial.
        values: Its values by field name.
        exploits: The checkpoint of another trial that it last took over; None if it never did.
        fold: Folds that it has trained to their end; it goes on with the next one.
        gpus: GPUs that it has, where they are other than those of the study's trials; else 0. A
            fraction is a shared one.
    """

    number: int
    values: Mapping[str, Any]
    exploits: Snapshot | None = None
    fold: int = 0
    gpus: float = 0

    def to_ray(self) -> dict[str, Any]:
        """As the config of a trial of Tune: the values stay flat, as its dashboard shows them."""
        config = {**self.values, _NUMBER: self.number}
        if self.exploits is not None:
            config[_EXPLOITS] = [self.exploits.trial, self.exploits.epoch]
        if self.fold:
            config[_FOLD] = self.fold
        if self.gpus:
            config[_GPUS] = self.gpus
        return config

    @classmethod
    def from_ray(cls, config: Mapping[str, Any]) -> Self:
        """From the config of a trial of Tune."""
        values = dict(config)
        number = values.pop(_NUMBER)
        exploits = values.pop(_EXPLOITS, None)
        fold = values.pop(_FOLD, 0)
        gpus = values.pop(_GPUS, 0)
        snapshot = None if exploits is None else Snapshot(*exploits)
        return cls(number, values, snapshot, fold, gpus)


@dataclass(frozen=True)
class TrialStart:
    """A trial begins in a worker, or goes on there.

    Attributes:
        placement: Where the worker is.
        memory: What it and its node hold; None where that cannot be measured.
    """

    placement: Placement
    memory: MemoryUse | None = None

    def to_ray(self) -> dict[str, Any]:
        """As a result of Tune."""
        return {_START: json.dumps(asdict(self))}

    @classmethod
    def from_ray(cls, result: Mapping[str, Any]) -> Self | None:
        """From a result of Tune; None if no trial begins with it."""
        if _START not in result:
            return None
        start = json.loads(result[_START])
        where = start["placement"]
        return cls(Placement(where["node"], tuple(where["gpus"])), _memory(start))


@dataclass(frozen=True)
class EpochReport:
    """An epoch that was trained, with its checkpoint on the disk.

    Attributes:
        epoch: The epoch, from 1; of several folds counted over all of them.
        score: Value of the study's metric; NaN if it is not defined.
        metrics: All metrics by name.
        seconds: Time that the epoch took.
        gpus: GPUs that it took; a fraction is a shared one.
        undefined: Why the score is not defined; empty if it is.
        note: A message to the user; empty for none.
        memory: What the trial and its node hold; None where that cannot be measured.
        planned: Numbers that the trial has for what is `auto`, by field.
    """

    epoch: int
    score: float
    metrics: Mapping[str, float]
    seconds: float
    gpus: float = 0.0
    undefined: str = ""
    note: str = ""
    memory: MemoryUse | None = None
    planned: Mapping[str, Any] = field(default_factory=dict)

    def to_ray(self) -> dict[str, Any]:
        """As a result of Tune."""
        return {_EPOCH: json.dumps(asdict(self))}

    def add_to(self, record: StudyRecord, number: int) -> bool:
        """Add the epoch to the record of a trial; False if it is there already."""
        # a score alone is not worth a wait for the disk
        with record.transaction(durable=bool(self.planned) and self.epoch == 1):
            record.plan(number, self.planned)
            return record.report(
                number, self.epoch, self.score, self.metrics, self.seconds, self.gpus
            )

    @classmethod
    def from_ray(cls, result: Mapping[str, Any]) -> Self | None:
        """From a result of Tune; None if it reports no epoch."""
        if _EPOCH not in result:
            return None
        report = json.loads(result[_EPOCH])
        return cls(**{**report, "memory": _memory(report)})


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        state: The state that it ended in.
        reason: The reason as text.
        notes: Facts that the record notes by their names there: `VIOLATION` of a constraint,
            score by test case (`CASES`) and their `GRID`.
    """

    state: TrialState
    reason: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert set(self.notes) <= {VIOLATION, CASES, GRID}

    def to_ray(self) -> dict[str, Any]:
        """As the last result of a trial of Tune."""
        return {_END: json.dumps(asdict(self)), _DONE: True}

    @classmethod
    def from_ray(cls, result: Mapping[str, Any]) -> Self | None:
        """From a result of Tune; None if the trial has not ended by itself."""
        if _END not in result:
            return None
        end = json.loads(result[_END])
        return cls(TrialState(end["state"]), end["reason"], end["notes"])


def _memory(message: Mapping[str, Any]) -> MemoryUse | None:
    use = message["memory"]
    if use is None:
        return None
    gpu = None if use["gpu"] is None else GpuUse(**use["gpu"])
    return MemoryUse(**{**use, "gpu": gpu})
