"""The GPU of a trial: that it is there, what the trial may take of it, and what it takes."""

from __future__ import annotations

import socket
import sys

from tuner.trial.memory import GpuUse
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


def gpu_use() -> GpuUse | None:
    """What this process takes of its GPU; None as long as it uses none.

    Its memory is what torch has reserved there, which is what a neighbour cannot have, and what
    CUDA takes. How busy the GPU was, in the last second at most, is what its driver tells.
    """
    if "torch" not in sys.modules:
        return None
    # another thread may just import it; that is waited for
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    peak = torch.cuda.max_memory_reserved(0) + CONTEXT_BYTES
    total = torch.cuda.get_device_properties(0).total_memory
    return GpuUse(float(peak), float(total), _busy())


def _busy() -> float | None:
    """Share of the last second at most in which the GPU computed; None if it does not tell."""
    import pynvml
    import torch

    if torch.version.hip:
        return None
    try:
        return float(torch.cuda.utilization(0)) / 100
    except (RuntimeError, pynvml.NVMLError):
        # no driver of NVIDIA, or a part of a GPU (MIG), which does not tell
        return None
