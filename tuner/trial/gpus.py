"""Checks that the GPU that a trial booked is there, so that none trains on a CPU unnoticed."""

from __future__ import annotations

import socket

from tuner.trial.node_faults import GpuMissingError

CONTEXT_BYTES = 2**29
"""What CUDA and its libraries take of a GPU for each process, beside what torch allocates; an
estimate."""

WITHOUT = (
    "train on the CPU with --gpus-per-trial 0 (or, where Ray's GPUs are meant to be counts "
    "without a device, set resources.logical_gpus: true)"
)


def check_trial_gpu(gpus: float) -> None:
    """Check, in the process of a trial, that the GPUs that it booked are there.

    Args:
        gpus: GPUs of the trial.

    Raises:
        GpuMissingError: if torch cannot use them.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < found < gpus:
        raise GpuMissingError(
            f"the trial booked {gpus:g} GPUs on node {socket.gethostname()}, and torch can use "
            f"{found}: mend that node, or {WITHOUT}"
        )
    if gpus and not found:
        build = "has no GPU support" if torch.version.cuda is None else "sees none"
        raise GpuMissingError(
            f"the trial booked {gpus:g} GPU on node {socket.gethostname()}, and torch "
            f"{torch.__version__} {build} there: mend that node, or {WITHOUT}"
        )


def keep_to_share(gpus: float) -> None:
    """Let torch allocate no more of a shared GPU than the part that the trial booked.

    A trial that needs more is then out of memory itself, and takes none from its neighbours.

    Args:
        gpus: GPUs of the trial; nothing is done for whole ones.
    """
    import torch

    if not 0 < gpus < 1 or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(gpus / 2, gpus - CONTEXT_BYTES / total), 0)
