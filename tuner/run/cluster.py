"""The Ray cluster of a study: its own, or one that it joins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray._private import utils as ray_utils
from ray.exceptions import AuthenticationError

from tuner.errors import ResourceError
from tuner.signals import signals_held_back

RAY_SETTINGS = {
    # medical data: nothing about a study leaves the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    # the record, the trial folders and our own view replace Tune's loggers and tables
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # a study goes on from its record: Tune's own state, which it would write anew every 10 s with
    # all trials in it, is never read
    "TUNE_GLOBAL_CHECKPOINT_S": str(10 * 365 * 24 * 3600),
    # the view tells how a trial failed, and its error.txt has the traceback
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ctrl-C is handled here, where it can be told apart from the end of the study
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def _daemons_in_own_groups() -> Iterator[None]:
    """Keep the processes of a cluster of our own out of our process group.

    Ctrl-C in a terminal, `timeout` and SLURM signal the whole group: without its daemons the
    driver could end no trial in order. They end with us all the same, even if we are killed:
    on Linux Ray asks the kernel to see to it. Where it cannot, Ray itself needs the group.
    """
    if not ray_utils.detect_fate_sharing_support():
        yield
        return
    original = services.ConsolePopen

    class GroupLeader(original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, process_group=0, **kwargs)

    services.ConsolePopen = GroupLeader
    try:
        yield
    finally:
        services.ConsolePopen = original


@contextmanager
def _without_handlers_of_ray() -> Iterator[None]:
    """Keep Ray from replacing our handler of SIGTERM by its own, which ends without a word."""
    original = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = original


@contextmanager
def ray_cluster(address: str | None) -> Iterator[str | None]:
    """Start or join a Ray cluster; yields the address of its dashboard."""
    os.environ.update(RAY_SETTINGS)
    if ray.is_initialized():
        yield None
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        with signals_held_back(), _without_handlers_of_ray(), _daemons_in_own_groups():
            context = ray.init(
                # None would join any cluster that runs here, and end with it
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                configure_logging=True,
                include_dashboard=None if address else True,
            )
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        where = f"join the cluster at {address}" if address else "start on this machine"
        why = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ResourceError(
            f"Ray cannot {where}: {why}; the logs of its processes are in "
            f"{get_default_ray_temp_dir()}/session_latest/logs"
        ) from error
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    try:
        yield context.dashboard_url
    finally:
        ray.shutdown()
