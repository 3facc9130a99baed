"""The Ray cluster of a study: its own, or one that it joins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from tuner.driver.ray_internals import (
    daemons_in_own_groups,
    loopback_only,
    own_handlers_kept,
    temporary_folder,
)
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
    # the view shows how a trial failed, and its error.txt has the traceback
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ctrl-C is handled here, where it can be distinguished from the end of the study
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def ray_cluster(address: str | None, study: str) -> Iterator[str | None]:
    """Start or join a Ray cluster; yields the address of its dashboard.

    Args:
        address: The cluster to join; None for RAY_ADDRESS or, without one, a cluster of our own,
            which is reached from this machine alone.
        study: What the cluster calls our job, in its metadata. A job that was submitted keeps the
            `job_name` that it has.
    """
    os.environ.update(RAY_SETTINGS)
    if ray.is_initialized():
        yield None
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        reached = nullcontext() if address else loopback_only()
        with signals_held_back(), own_handlers_kept(), daemons_in_own_groups(), reached:
            context = ray.init(
                # None would join any cluster that runs here, and end with it
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                configure_logging=True,
                include_dashboard=None if address else True,
                job_config=JobConfig(metadata={"job_name": study, "study": study}),
            )
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        where = f"join the cluster at {address}" if address else "start on this machine"
        why = str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ResourceError(
            f"Ray cannot {where}: {why}; the logs of its processes are in "
            f"{temporary_folder()}/session_latest/logs"
        ) from error
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    try:
        yield context.dashboard_url
    finally:
        ray.shutdown()
