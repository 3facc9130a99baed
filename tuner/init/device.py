"""The device that a space is written for: a GPU that is here, one that is elsewhere, or the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from training.models.patch_plan import LIBRARIES, MEMORY_PER_CPU_TRIAL
from tuner.spec.cores import alone


@dataclass(frozen=True)
class Device:
    """Where trials train.

    Attributes:
        kind: `cuda` or `cpu`.
        memory: Bytes for a training step.
        trials: How many trials run at once.
        threads: CPU cores of a trial.
        here: Whether it is this machine's, so that steps can be measured.
        described: It in words.
    """

    kind: str
    memory: float
    trials: int
    threads: int
    here: bool
    described: str

    @property
    def alone(self) -> float:
        """How long an epoch takes when no other trial runs, as a share."""
        if self.kind == "cuda":
            return 1.0
        return alone(self.trials * self.threads, self.threads)[1]

    @property
    def precision(self) -> str:
        """Arithmetic that `precision: auto` is on it."""
        return "16-mixed" if self.kind == "cuda" else "32-true"


def find_device(gpu_memory: int | None = None) -> Device:
    """The device that trials of a study on this machine would train on.

    Args:
        gpu_memory: Bytes of the GPU that the space is for; that of this machine by default. On a
            machine that has none a space for the CPU is written without it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        properties = torch.cuda.get_device_properties(0)
        memory = min(properties.total_memory, gpu_memory or properties.total_memory)
        described = f"{count} x {properties.name}, {memory / 1e9:.0f} GB of each are used"
        return Device("cuda", memory - LIBRARIES, count, max(1, cores // count), True, described)
    if gpu_memory is not None:
        described = f"a GPU of {gpu_memory / 1e9:.0f} GB, which is not in this machine"
        return Device("cuda", gpu_memory - LIBRARIES, 1, cores, False, described)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    trials = max(1, min(cores, total // 2 // MEMORY_PER_CPU_TRIAL))
    described = f"{cores} CPU cores, {trials} trials at once; there is no GPU"
    return Device("cpu", MEMORY_PER_CPU_TRIAL, trials, max(1, cores // trials), True, described)
