"""Whether this machine has the GPUs that trials ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.driver.ray_internals import gpus_of_this_machine
from tuner.errors import ResourceError
from tuner.trial.gpus import WITHOUT

if TYPE_CHECKING:
    from tuner.spec.settings import ResourceSettings


def check_own_gpus(settings: ResourceSettings) -> str | None:
    """Check, before the data are prepared, the GPUs that trials on this machine ask for.

    Returns:
        A hint about GPUs of this machine that trials cannot use; None if there is none.

    Raises:
        ResourceError: if this machine has not got them, or torch cannot use them.
    """
    import torch

    there = gpus_of_this_machine()
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.gpu != "auto" and settings.gpu > there:
        raise ResourceError(
            f"resources.gpu={settings.gpu:g} (--gpus-per-trial), and Ray sees {there} GPUs on this "
            "machine: set it to 0 to train on the CPU, or join a cluster that has GPUs with "
            "--address"
        )
    if settings.gpu == 0:
        return None
    if there and not usable:
        raise ResourceError(
            f"Ray sees {there} GPUs on this machine, and torch {torch.__version__} can use none: "
            f"install a build of torch for them, or {WITHOUT}"
        )
    if usable and not there:
        return (
            f"torch sees {usable} GPUs on this machine, and Ray none: trials train on the CPU; "
            f"to use the GPUs, start Ray with `ray start --head --num-gpus={usable}` and join it "
            "with --address auto"
        )
    return None
