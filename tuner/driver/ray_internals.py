"""The private parts of Ray (2.60) that the program relies on.

Nothing else imports from `ray._private` and the like. An upgrade of Ray that breaks one of these
fails in `tests/tuner_tests/driver/test_ray_internals.py`, by name.

Parts of Ray are imported where they are used: `cluster_probe` must not wait for Ray Tune to load.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from ray import cloudpickle
from ray._private import ray_constants, services, state
from ray._private import utils as ray_utils
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.experimental import internal_kv

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.tune.experiment import Trial

    from tuner.trial.failures import WorkerLostError
    from tuner.trial.node_faults import NodeUnfitError


def temporary_folder() -> Path:
    """Where Ray keeps sockets and logs of its sessions."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())


def address_of_this_machine() -> str:
    """The address of the cluster that runs on this machine.

    Raises:
        ConnectionError: if there is none.
    """
    return str(services.canonicalize_bootstrap_address("auto"))


def host_and_port(address: str) -> tuple[str, str] | None:
    """Host and port of an address; None if it is not HOST:PORT."""
    from ray._common.network_utils import parse_address

    parsed: tuple[str, str] | None = parse_address(address)
    return parsed


def gpus_of_this_machine() -> int:
    """GPUs that a cluster of our own would have."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    there: int = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return there if visible is None else min(there, len(visible))


@contextmanager
def daemons_in_own_groups() -> Iterator[None]:
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
def own_handlers_kept() -> Iterator[None]:
    """Keep Ray from replacing our handler of SIGTERM by its own, which ends the process."""
    original = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = original


MEMORY_THRESHOLD = "RAY_memory_usage_threshold"
"""Share of a node's memory above which Ray ends a process there; a variable of its raylet."""


def node_memory() -> tuple[float, float]:
    """Bytes that processes of this node hold, and above which Ray ends one of them.

    As Ray's memory monitor counts them: of the container where there is one, without the pages of
    files that the kernel keeps.
    """
    from ray._common.utils import get_system_memory

    share = float(os.environ.get(MEMORY_THRESHOLD, "0.95"))
    return float(ray_utils.get_used_memory()), share * float(get_system_memory())


def name_process(name: str) -> None:
    """Show a name for a worker's process in `ps`, `top`, `nvidia-smi` and Ray's dashboard.

    It lasts until the task that runs ends.
    """
    from ray._raylet import setproctitle  # type: ignore[attr-defined]

    setproctitle(f"ray::{name}")


@contextmanager
def loopback_only() -> Iterator[None]:
    """Let a cluster of our own be reached from this machine alone.

    Ray has metrics, object store and GCS of a cluster on all interfaces or on the address of the
    machine, except on systems where it supports one machine only. There, as here, it uses
    127.0.0.1 for all of them.
    """
    original = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = original


NOTES = b"segtune"
"""Namespace of our notes in the store of a cluster's GCS."""


def write_cluster_note(key: str, text: str) -> None:
    """Keep a text in the store of the cluster, in place of an earlier one."""
    internal_kv._internal_kv_put(key, text, overwrite=True, namespace=NOTES)


def remove_cluster_note(key: str) -> None:
    """Remove a text from the store of the cluster."""
    internal_kv._internal_kv_del(key, namespace=NOTES)


def cluster_notes(prefix: str) -> list[str]:
    """The texts in the store of the cluster whose keys begin so."""
    found = (
        internal_kv._internal_kv_get(key, namespace=NOTES)
        for key in internal_kv._internal_kv_list(prefix, namespace=NOTES)
    )
    return [text.decode() for text in found if text is not None]


def ended_jobs() -> frozenset[str]:
    """The jobs of the cluster whose driver has ended, however it did, by Ray's names of them."""
    return frozenset(job["JobID"] for job in state.jobs() if job["IsDead"])


def own_daemons() -> list[tuple[str, Popen[bytes]]]:
    """GCS and raylet of the cluster that this process started; none if it joined one."""
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return []
    return [
        (name, started.process)
        for name in ("gcs_server", "raylet")
        for started in node.all_processes.get(name, [])
    ]


class _LostWorkerError(RayActorError):  # type: ignore[misc]
    """The result of a trial's worker is lost, usually together with its node."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray's own way to pickle actor errors loses the message."""
        return type(self), (self.error_msg,)


class _KilledForMemoryError(_LostWorkerError):
    """Ray ended a trial's worker because its node ran low on memory."""


@contextmanager
def lost_worker_ends_one_trial() -> Iterator[None]:
    """Make Tune handle every loss of a worker as the failure of that one trial.

    Ray's `OutOfMemoryError` and the errors of lost objects are not a `RayActorError`, and Tune
    ends the whole study with "Caught unexpected exception" when it meets one.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    original = RayActorManager._actor_task_failed

    def task_failed(
        manager: RayActorManager, tracked_actor_task: Any, exception: Exception
    ) -> None:
        # Ray gives both by name
        if isinstance(exception, RayError) and not isinstance(
            exception, RayActorError | RayTaskError
        ):
            out_of_memory = isinstance(exception, OutOfMemoryError)
            kind = _KilledForMemoryError if out_of_memory else _LostWorkerError
            # the message of Ray's lists who uses the memory
            exception = kind(str(exception).strip() if out_of_memory else _first_line(exception))
        original(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original


@contextmanager
def workers_let_go(let_go: Callable[[], bool], idle: Callable[[], bool]) -> Iterator[None]:
    """Give the worker of a trial that has ended back to the cluster, where that is wanted.

    Tune keeps one for the next trial of the study, with the cores and GPUs that it has.

    Args:
        let_go: Whether to give back the worker that is about to be kept.
        idle: Whether to give back those that are kept, since no trial is there for them.
    """
    from ray.tune.utils.object_cache import _ObjectCache

    keep, evict = _ObjectCache.cache_object, _ObjectCache.flush_cached_objects

    def cache_object(cache: _ObjectCache, key: Any, worker: Any) -> bool:
        return not let_go() and bool(keep(cache, key, worker))

    def flush_cached_objects(cache: _ObjectCache, force_all: bool = False) -> Iterator[Any]:
        yield from evict(cache, force_all=force_all or idle())

    _ObjectCache.cache_object = cache_object
    _ObjectCache.flush_cached_objects = flush_cached_objects
    try:
        yield
    finally:
        _ObjectCache.cache_object, _ObjectCache.flush_cached_objects = keep, evict


@contextmanager
def places_given_back(cluster_answers: Callable[[], bool]) -> Iterator[None]:
    """Give back at the end what Tune has booked for trials.

    Ray does so once the object that books is garbage, which a kept traceback puts off: until then
    the next study of this process would wait for those places.

    Args:
        cluster_answers: Whether the cluster is still there; else nothing can be given back.
    """
    from ray.air.execution import PlacementGroupResourceManager

    managers: list[PlacementGroupResourceManager] = []
    original = PlacementGroupResourceManager.__init__

    def noted(manager: PlacementGroupResourceManager, *arguments: Any, **options: Any) -> None:
        original(manager, *arguments, **options)
        managers.append(manager)

    PlacementGroupResourceManager.__init__ = noted
    try:
        yield
    finally:
        PlacementGroupResourceManager.__init__ = original
        for manager in managers if cluster_answers() else ():
            manager.clear()


NODE_DIED = ("its node has died", "actor's node was")
"""What Ray says of an actor whose node is gone."""


def lost_worker_error(trial: Trial) -> WorkerLostError | NodeUnfitError:
    """Why the worker of a trial is lost, from the error file that Tune wrote."""
    from tuner.trial.failures import NodeLostError, WorkerLostError, WorkerOutOfMemoryError
    from tuner.trial.node_faults import NodeUnfitError, memory_of_others

    error_file = trial.pickled_error_file
    if error_file is None or not Path(error_file).is_file():
        return WorkerLostError()
    error = cloudpickle.loads(Path(error_file).read_bytes())
    cause = getattr(error, "cause", None)
    if isinstance(cause, NodeUnfitError):
        return NodeUnfitError(str(cause))
    message, line = str(error), _first_line(error)
    if isinstance(error, OutOfMemoryError | _KilledForMemoryError):
        others = memory_of_others(message)
        if others is not None:
            return NodeUnfitError(
                f"other programs hold {others:.1f} GB of its memory, and Ray ended a trial: {line}"
            )
        return WorkerOutOfMemoryError(line)
    if isinstance(error, ActorUnavailableError):
        lost = NodeLostError("the connection to it was lost")
    elif getattr(error, "preempted", False):
        lost = NodeLostError("it was preempted")
    elif any(words in message for words in NODE_DIED):
        lost = NodeLostError("it left the cluster")
    else:
        return WorkerLostError(line)
    # a worker that had not started yet was seen on no node
    lost.node_id = _node_of_actor(error.actor_id) if error.actor_id else None
    return lost


def node_of(trial: Trial) -> str | None:
    """Ray's name of the node of a trial's actor; None if it has none."""
    actor = actor_of(trial)
    return None if actor is None else _node_of_actor(actor._actor_id.hex())


def _node_of_actor(actor_id: str) -> str | None:
    known = state.actors(actor_id=actor_id)
    return known.get("Address", {}).get("NodeID") or None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def free_places(job: str) -> None:
    """Free what a job of the cluster has booked, and end the processes that run there.

    Args:
        job: Ray's name of it.
    """
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for row in state.state._connect_and_get_accessor().get_placement_group_table():
        place = PlacementGroupTableData.FromString(row)
        if place.creator_job_id.hex() == job and place.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(place.placement_group_id)))


def actor_of(trial: Trial) -> Any:
    """The actor that trains a trial of Tune, None if there is none now."""
    return trial.temporary_state.ray_actor


def use_token_of_this_machine() -> None:
    """Let this process use the token that is here, unless RAY_AUTH_MODE says otherwise."""
    from ray._private.authentication import authentication_token_setup as tokens

    logger = logging.getLogger(tokens.__name__)
    before, logger.disabled = logger.disabled, True
    try:
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    finally:
        logger.disabled = before


def quiet_uploads() -> None:
    """Keep the client of a job server from telling of every upload and connection."""
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


def version_of_server(client: JobSubmissionClient) -> str:
    """The version of Ray of a job server, which its client has asked for."""
    return str(client._server_ray_version)


def job_log_chunks(client: JobSubmissionClient, node_id: str, name: str) -> Iterator[bytes]:
    """A file of the folder of Ray's logs on a node, as it is, through the dashboard.

    Raises:
        RuntimeError: if it is not there.
    """
    query = urlencode({"node_id": node_id, "filename": name, "lines": -1, "timeout": 24 * 3600})
    response = client._do_request("GET", f"/api/v0/logs/file?{query}", stream=True)
    with closing(response):
        if response.status_code != 200:
            client._raise_error(response)
        yield from response.iter_content(2**20)


def gcs_of(address: str, *, token_of_this_machine: bool, timeout: float) -> tuple[Any, Any]:
    """A client of the GCS of a cluster, and the cluster's metadata.

    Args:
        address: HOST:PORT of the GCS.
        token_of_this_machine: Whether a token that is here is used without being asked for.
        timeout: Seconds that it may take to answer.

    Raises:
        ray.exceptions.AuthenticationError: if the cluster takes no token of ours.
    """
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    if token_of_this_machine:
        use_token_of_this_machine()
    tokens.ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    gcs = GcsClient(address=address)
    stored = gcs.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=timeout)
    return gcs, None if stored is None else json.loads(stored)


def check_versions(metadata: Any) -> None:
    """Check that a cluster has the versions of Ray and Python of this process.

    Args:
        metadata: Metadata of the cluster, see `gcs_of`.

    Raises:
        RuntimeError: if not.
    """
    ray_utils.check_version_info(metadata, "this process", raise_on_mismatch=True)


def has_node_here(gcs: Any, timeout: float) -> bool:
    """Whether a raylet of this host belongs to the cluster of a GCS, now or before `timeout`."""
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    deadline = time.monotonic() + timeout
    while True:
        here = services.find_node_ids()
        nodes = gcs.get_all_node_info(timeout=timeout).values()
        if any(node.node_id.hex() in here and node.state == GcsNodeInfo.ALIVE for node in nodes):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
