"""Classifies, answers and records every failure of a trial.

Whoever notices a failure makes an exception of it: training in the worker by raising it, the
driver where a worker, its node or the whole cluster is lost. `classify` says how the trial ends
by it, `end_trial` whether it is tried again, and both of it goes to the record.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from training.config import ModelTrainingConfig
from tuner.errors import StudyError, TunerError
from tuner.spec.field_errors import value_problems
from tuner.study.commands import study_command
from tuner.study.config_files import AUTO, planned_in
from tuner.study.files import trial_folder
from tuner.study.trial_entry import MOVED, VIOLATION, TrialState
from tuner.trial.messages import TrialEnd
from tuner.trial.node_faults import DISK_FULL, NodeUnfitError

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study

MOVES = 4
"""Failures of nodes in a row, without an epoch between, that count as a failure of the trial."""

SMALLEST_PATCH_AXIS = 8
"""Voxels below which no axis of a patch is made smaller; axes stay multiples of this."""

PATCH_SHRINK = 0.8
"""Factor of each axis of a smaller patch: about half the voxels, and so half the memory."""


class ConstraintBrokenError(Exception):
    """A trial costs more than a constraint of its study allows.

    Attributes:
        violation: By what share of the limit it is above it.
    """

    def __init__(self, message: str, value: float, limit: float) -> None:
        super().__init__(message)
        self.violation = value / limit - 1


class WorkerLostError(Exception):
    """The process of a trial died, or its node was lost."""


class WorkerOutOfMemoryError(WorkerLostError):
    """Ray ended the process of a trial because its node ran low on memory."""


class NodeLostError(WorkerLostError):
    """The node of a trial is gone, or the connection to it; it may have been preempted.

    Attributes:
        node_id: Ray's name of the node, where the error tells it.
    """

    node_id: str | None = None


class RankLostError(Exception):
    """One of the processes of a trial on several GPUs is gone."""


class TrialHungError(Exception):
    """A trial ended no epoch for too long, and its process was ended."""


class ClusterLostError(Exception):
    """No process of a trial can be started any more."""


def classify(error: Exception) -> TrialEnd:
    """How a trial ends by an error: its state, and the reason as text."""
    match error:
        case ConstraintBrokenError():
            return TrialEnd(TrialState.INFEASIBLE, str(error), {VIOLATION: error.violation})
        case NodeUnfitError() | ClusterLostError():
            # the trials after it would meet it too
            return TrialEnd(TrialState.INTERRUPTED, str(error))
        case OSError() if error.errno in DISK_FULL:
            # all trials of the study would meet it, so it is none's failure
            return TrialEnd(TrialState.INTERRUPTED, f"the disk is full ({_summary(error)})")
        case WorkerOutOfMemoryError():
            reason = f"Ray ended its worker to free memory: {error}"
            return TrialEnd(TrialState.OUT_OF_MEMORY, reason)
        case WorkerLostError():
            details = f": {error}" if str(error) else ""
            return TrialEnd(TrialState.FAILED, f"its worker process died{details}")
        case TrialHungError() | RankLostError():
            return TrialEnd(TrialState.FAILED, str(error))
    return _classify_training(error)


def _classify_training(error: Exception) -> TrialEnd:
    """How a trial ends by an error of its training; torch is loaded where there was one."""
    import torch

    from training.errors import TrainingDivergedError

    if isinstance(error, TrainingDivergedError):
        return TrialEnd(TrialState.DIVERGED, str(error))
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    state = TrialState.OUT_OF_MEMORY if out_of_memory else TrialState.FAILED
    return TrialEnd(state, _summary(error))


def _summary(error: Exception) -> str:
    """Type and message of an error, on one line."""
    if isinstance(error, ValidationError):
        # its first line does no more than count
        words = "; ".join(problem.message for problem in value_problems(error))
    else:
        words = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {words}"


def end_trial(study: Study, number: int, end: TrialEnd) -> None:
    """Close a trial, or let it retry from its last checkpoint if it failed.

    Args:
        study: The study, whose spec says how often and how a trial is tried again.
        number: The trial.
        end: How it would end.
    """
    record, failures = study.record, study.spec.failures
    entry = record.entries[number]
    if entry.state.finished:
        return
    if end.state is TrialState.INTERRUPTED:
        record.interrupt(number, end.reason)
        record.halt(end.reason)
        return
    overrides: dict[str, Any] | None = None
    if end.state is TrialState.FAILED:
        overrides = {}
    elif end.state is TrialState.OUT_OF_MEMORY:
        config = study.spec.trial_config(entry.trained_values)
        planned = planned_in(trial_folder(study.folder, number), config)
        for name, value in planned.items():
            setattr(config, name, value)
        overrides = smaller(config, failures.on_out_of_memory)
        overrides = overrides and {**planned, **overrides}
    limit = failures.max_failures
    if overrides is None or entry.failures >= limit:
        tries = f" (after {entry.failures + 1} tries)" if entry.failures else ""
        record.finish(number, end.state, end.reason + tries)
        return
    how = ", ".join(f"{name}={value}" for name, value in overrides.items())
    record.retry(
        number,
        f"{end.reason}; retry {entry.failures + 1} of {limit}{' with ' + how if how else ''}",
        overrides,
    )


def move_trial(study: Study, number: int, reason: str, where: str = "elsewhere") -> None:
    """Let a trial go on elsewhere from its last checkpoint: its node failed, and it did not.

    That spends none of `failures.max_failures`. A trial may itself be what fails its nodes, by
    taking all their memory say: `MOVES` times in a row, without an epoch between, count as one
    failure of its own.

    Args:
        study: The study.
        number: The trial.
        reason: What happened to which node.
        where: Where or when it goes on.
    """
    record = study.record
    entry = record.entries[number]
    if entry.state.finished:
        return
    epochs, moves = entry.notes.get(MOVED, (0, 0))
    moves = moves + 1 if epochs == entry.epochs else 1
    own = moves >= MOVES
    with record.transaction():
        record.note(number, MOVED, [entry.epochs, 0 if own else moves])
        if own:
            why = f"{reason}; {MOVES} nodes failed it in a row, without an epoch between"
            end_trial(study, number, TrialEnd(TrialState.FAILED, why))
        else:
            record.interrupt(number, f"{reason}; it goes on {where}")


def smaller(config: ModelTrainingConfig, how: str) -> dict[str, Any] | None:
    """Values with which a trial takes about half the memory; None if there are none.

    Args:
        config: The config that ran out of memory.
        how: `failures.on_out_of_memory` of the spec.
    """
    if how == "smaller_batch":
        batches = {
            name: size // 2
            for name in ("train_batch_size", "val_batch_size")
            if (size := getattr(config, name)) != AUTO and size > 1
        }
        return batches or None
    if how == "smaller_patch" and config.patch_size != AUTO:
        patch = [_smaller_axis(axis) for axis in config.known_patch_size]
        return None if patch == list(config.known_patch_size) else {"patch_size": patch}
    return None


def _smaller_axis(axis: int) -> int:
    step = SMALLEST_PATCH_AXIS
    return max(int(axis * PATCH_SHRINK) // step * step, min(axis, step))


def halt_study(record: StudyRecord, error: Exception) -> None:
    """Halt a study, to be resumed, for an error that all its trials would meet."""
    record.halt(classify(error).reason)


@contextmanager
def full_disk_explained(study: Study) -> Iterator[None]:
    """Say that the disk is full instead of where Ray, Tune or a report met it.

    Raises:
        StudyError: if the record, or another file of the study, could not be written.
    """
    try:
        yield
    except TunerError:
        raise
    except Exception as error:
        if study.record.failure is not None:
            raise study.record.failure from error
        # Tune hands on no more than the text of an error
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        reason = f"the disk of {study.folder} is full ({full})"
        raise StudyError(
            f"{reason}: make room, then go on with `{study_command('resume', study.folder)}`; "
            "every finished epoch is kept"
        ) from error


def halted_message(reason: str, folder: Path) -> str:
    """Message for the user of a study that was halted."""
    return (
        f"{reason}: every finished epoch is kept; go on with "
        f"`{study_command('resume', folder)}` when that is put right"
    )
