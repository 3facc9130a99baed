"""Costs of a trial, and the constraints of its study."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ByteSize

from tuner.trial.failures import ConstraintBrokenError
from tuner.trial.networks import count_parameters

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.spec.settings import ConstraintSettings

HOST_MEMORY = "host_memory"
"""Metric of a trial: the most that its processes held of their node's memory at a time, in
bytes; see `tuner.trial.memory`."""

RESET_PEAK = "5"
"""What `/proc/self/clear_refs` takes to reset the process's peak (proc(5))."""


class TrialCosts:
    """Counts the parameters of a trial, and measures its memory while it trains.

    Args:
        config: The trial's config.
        limits: The constraints of its study.

    Raises:
        ConstraintBrokenError: if the network has too many parameters.
    """

    def __init__(self, config: ModelTrainingConfig, limits: ConstraintSettings) -> None:
        self._limits = limits
        self._parameters = count_parameters(config)
        self._memory = MemoryMeter(gpu=config.gpus > 0)
        limit = limits.max_parameters
        if limit is not None and self._parameters > limit:
            raise ConstraintBrokenError(
                f"its network has {self._parameters:,} parameters, above max_parameters={limit:,}",
                self._parameters,
                limit,
            )

    def measure(self) -> dict[str, float]:
        """`parameters`, and `peak_memory` in bytes so far.

        Raises:
            ConstraintBrokenError: if the memory is above its limit.
        """
        memory = self._memory.peak()
        limit = self._limits.max_memory
        if limit is not None and memory > limit:
            raise ConstraintBrokenError(
                f"it takes {ByteSize(memory).human_readable(decimal=True)} of memory, above "
                f"max_memory={limit.human_readable(decimal=True)}",
                memory,
                limit,
            )
        return {"parameters": float(self._parameters), "peak_memory": float(memory)}


class MemoryMeter:
    """The most memory that was taken since the meter was made.

    On a GPU that is what torch allocated. On a CPU it is the growth of this process; where the
    process has trained before and kept freed memory, it is a lower bound.

    Args:
        gpu: Whether a GPU trains, if there is one.
    """

    def __init__(self, *, gpu: bool) -> None:
        import torch

        self._gpu = gpu and torch.cuda.is_available()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_peak()
            self._before = _resident("VmRSS")

    def peak(self) -> int:
        """Bytes at the peak so far."""
        import torch

        if self._gpu:
            return torch.cuda.max_memory_allocated()
        return max(0, _resident("VmHWM") - self._before)


def _reset_peak() -> None:
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text(RESET_PEAK)
    except OSError:
        # then the peak is that of the process's whole life, as it is where there is no /proc
        return


def _resident(which: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(f"{which}:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
