"""State and reason of a trial that an exception ended."""

from __future__ import annotations

import errno

from pydantic import ValidationError

from tuner.spec.field_errors import value_problems
from tuner.study.trial_entry import TrialState
from tuner.trial.gpus import GpuMissingError


def ending_of(error: Exception) -> tuple[TrialState, str]:
    """State and reason of a trial that `error` ended."""
    import torch

    from training.errors import TrainingDivergedError

    summary = f"{type(error).__name__}: {_first_words(error)}"
    if isinstance(error, TrainingDivergedError):
        return TrialState.DIVERGED, str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        # all trials of the study would meet it, so it is none's failure
        return TrialState.INTERRUPTED, f"the disk is full ({summary})"
    if isinstance(error, GpuMissingError):
        # the trials after it would meet it too
        return TrialState.INTERRUPTED, str(error)
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    if out_of_memory:
        return TrialState.OUT_OF_MEMORY, summary
    return TrialState.FAILED, summary


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
""""No space left on device" and "disk quota exceeded"."""


def _first_words(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, ValidationError):
        # its first line does no more than count
        return "; ".join(problem.message for problem in value_problems(error))
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
