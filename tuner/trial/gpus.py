"""Checks that the GPU that a trial booked is there, so that none trains on a CPU unnoticed."""

from __future__ import annotations

import socket

from tuner.trial.node_faults import GpuMissingError

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
