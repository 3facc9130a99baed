"""What follows when a trial fails: another try, a smaller one, or its end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ray import cloudpickle
from ray.exceptions import OutOfMemoryError, RayActorError

from tuner.errors import StudyError, TunerError
from tuner.study.commands import study_command
from tuner.study.study import Study

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

from typing import TYPE_CHECKING, Any

from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord

SMALLEST_PATCH_AXIS = 8
"""Voxels below which no axis of a patch is made smaller; axes stay multiples of this."""

PATCH_SHRINK = 0.8
"""Factor of each axis of a smaller patch: about half the voxels, and so half the memory."""


def end_trial(
    record: StudyRecord, spec: StudySpec, number: int, state: TrialState, reason: str
) -> None:
    """Close a trial, or let it go on from its last checkpoint if it failed and may try again.

    Args:
        record: The study's record.
        spec: The study's spec, which says how often and how a trial is tried again.
        number: The trial.
        state: The state that it would end in.
        reason: Why.
    """
    entry = record.entries[number]
    if entry.state.finished:
        return
    if state is TrialState.INTERRUPTED:
        record.interrupt(number, reason)
        record.halt(reason)
        return
    overrides: dict[str, Any] | None = None
    if state is TrialState.FAILED:
        overrides = {}
    elif state is TrialState.OUT_OF_MEMORY:
        config = spec.trial_config(entry.trained_values)
        overrides = smaller(config, spec.failures.on_out_of_memory)
    limit = spec.failures.max_failures
    if overrides is None or entry.failures >= limit:
        tries = f" (after {entry.failures + 1} tries)" if entry.failures else ""
        record.finish(number, state, reason + tries)
        return
    how = ", ".join(f"{name}={value}" for name, value in overrides.items())
    record.retry(
        number,
        f"{reason}; retry {entry.failures + 1} of {limit}{' with ' + how if how else ''}",
        overrides,
    )


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
            if (size := getattr(config, name)) > 1
        }
        return batches or None
    if how == "smaller_patch":
        patch = [_smaller_axis(axis) for axis in config.patch_size]
        return None if patch == list(config.patch_size) else {"patch_size": patch}
    return None


def _smaller_axis(axis: int) -> int:
    step = SMALLEST_PATCH_AXIS
    return max(int(axis * PATCH_SHRINK) // step * step, min(axis, step))


@contextmanager
def full_disk_is_named(study: Study) -> Iterator[None]:
    """Say that the disk is full instead of where Ray, Tune or a report met it."""
    try:
        yield
    except TunerError:
        raise
    except Exception as error:
        if study.record.failure is not None:
            raise study.record.failure from error
        # Tune hands on no more than the text of an error
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise StudyError(
            f"the disk of {study.folder} is full ({os.strerror(errno.ENOSPC)}): make room, then "
            f"go on with `{study_command('resume', study.folder)}`; every finished epoch is kept"
        ) from error


class WorkerLostError(RayActorError):  # type: ignore[misc]
    """What a trial's worker returned is lost, as a rule together with its node."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray's own way to pickle actor errors loses the message."""
        return type(self), (self.error_msg,)


class WorkerOutOfMemoryError(WorkerLostError):
    """Ray ended a trial's worker because its node ran low on memory."""


def death_of(trial: Trial) -> tuple[TrialState, str]:
    """State and reason of a trial whose process is gone, from what Ray left of it."""
    error_file = trial.pickled_error_file
    if error_file is None or not Path(error_file).is_file():
        return TrialState.FAILED, "its worker process died"
    error = cloudpickle.loads(Path(error_file).read_bytes())
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, OutOfMemoryError | WorkerOutOfMemoryError):
        return TrialState.OUT_OF_MEMORY, f"Ray ended its worker to free memory: {reason}"
    return TrialState.FAILED, f"its worker process died: {reason}"
