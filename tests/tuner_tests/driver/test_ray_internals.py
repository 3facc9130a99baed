"""What the program counts on of Ray's private parts: one test each, to fail by name on upgrade."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray._common import utils as common_utils
from ray._common.utils import get_default_ray_temp_dir
from ray._private import node, services, state, utils, worker
from ray._private.authentication import authentication_token_setup as tokens
from ray._raylet import GcsClient, InnerGcsClient
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.core.generated.gcs_pb2 import GcsNodeInfo, PlacementGroupTableData
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.dashboard.modules.reporter import reporter_agent
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
)
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

import tuner
from tuner.driver import ray_internals
from tuner.driver.ray_internals import (
    MEMORY_THRESHOLD,
    actor_of,
    check_versions,
    daemons_in_own_groups,
    free_places,
    gpus_of_this_machine,
    host_and_port,
    job_log_chunks,
    loopback_only,
    lost_worker_ends_one_trial,
    lost_worker_error,
    name_process,
    node_memory,
    node_of,
    own_daemons,
    own_handlers_kept,
    temporary_folder,
    use_token_of_this_machine,
    version_of_server,
    workers_let_go,
)
from tuner.trial.failures import NodeLostError, WorkerLostError, WorkerOutOfMemoryError
from tuner.trial.node_faults import NodeUnfitError

MESSAGE = "1 worker(s) were killed due to the node running low on memory.\nTop 10 users: ..."


PRIVATE = re.compile(r"\bray\._|\bray\.core\b|\bray(\.\w+)*\._internal\b|\b_raylet\b")


def test_private_parts_of_ray_are_used_in_one_place() -> None:
    package = Path(tuner.__file__).parent
    using = {path.name for path in package.rglob("*.py") if PRIVATE.search(path.read_text())}
    assert using == {"ray_internals.py"}


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_temporary_folder_follows_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert temporary_folder() == Path(get_default_ray_temp_dir()) == tmp_path / "ray"


def test_addresses_are_read_as_ray_reads_them() -> None:
    assert host_and_port("10.0.0.1:6379") == ("10.0.0.1", "6379")
    assert host_and_port("nowhere") is None
    assert parameters(services.canonicalize_bootstrap_address) == ["addr", "temp_dir"]


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of_this_machine() == 0


def test_memory_of_a_node_is_that_which_rays_monitor_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, limit = node_memory()
    assert used > 0
    total = memory_of_machine()
    assert limit <= 0.95 * total
    monkeypatch.setenv(MEMORY_THRESHOLD, "0.5")
    assert node_memory()[1] == pytest.approx(limit / 0.95 * 0.5)
    # the raylet, which ends processes, has a setting of this name
    raylet = Path(services.RAYLET_EXECUTABLE).read_bytes()
    assert MEMORY_THRESHOLD.encode() in raylet


def memory_of_machine() -> int:
    """Bytes of memory, as the kernel tells."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))


@pytest.mark.parametrize("version", [1, 2])
def test_ray_counts_the_memory_of_a_container_without_pages_of_files(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files as the kernel writes them, for both versions of control groups."""
    names, active = {
        1: ("memory.usage_in_bytes memory.limit_in_bytes", "total_"),
        2: ("memory.current memory.max", ""),
    }[version]
    root = Path("/sys/fs/cgroup/memory" if version == 1 else "/sys/fs/cgroup")
    current, most = (root / name for name in names.split())
    stat = f"{active}inactive_file 100\n{active}active_file 200\nanon 5\n"
    files = {current: "1000\n", most: "4000\n", root / "memory.stat": stat}
    copies = {str(path): tmp_path / path.name for path in files}
    for path, content in files.items():
        copies[str(path)].write_text(content)

    def opened(path: Any, mode: str = "r") -> Any:
        return copies[str(path)].open(mode)

    for module in (utils, common_utils):
        monkeypatch.setattr(module, "open", opened, raising=False)
    exists = os.path.exists
    monkeypatch.setattr(
        os.path,
        "exists",
        lambda path: str(path) in copies if str(path).startswith("/sys/fs/") else exists(path),
    )
    assert node_memory()[0] == 700
    assert utils.get_cgroup_mem_stats() == (700, 4000)


def test_a_process_gets_the_name_that_is_shown() -> None:
    code = (
        "from tuner.driver.ray_internals import name_process\n"
        "name_process('dformer, trial 7')\n"
        "print(open('/proc/self/cmdline').read())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip("\0\n") == "ray::dformer, trial 7"
    assert parameters(name_process) == ["name"]


def test_a_cluster_of_our_own_is_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    # that of a cluster which other tests have started
    monkeypatch.setattr(worker, "_global_node", None)
    outside = services.get_node_ip_address()
    with loopback_only():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert services.get_node_ip_address() == outside
    # the metrics port follows the address of the node
    assert "is_localhost(self._ip)" in inspect.getsource(reporter_agent.ReporterAgent)


def test_daemons_of_a_cluster_are_started_by_consolepopen_in_groups_of_their_own() -> None:
    assert issubclass(services.ConsolePopen, subprocess.Popen)
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)
    assert isinstance(utils.detect_fate_sharing_support(), bool)

    def leads_its_group() -> str:
        code = "import os; print(os.getpgrp() == os.getpid())"
        process = services.ConsolePopen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        return str(process.communicate()[0]).strip()

    assert leads_its_group() == "False"
    with daemons_in_own_groups():
        assert leads_its_group() == str(utils.detect_fate_sharing_support())
    assert leads_its_group() == "False"


def test_ray_sets_its_handlers_of_sigterm_by_a_function_that_can_be_replaced() -> None:
    for place in (worker, node):
        assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(place)
    assert parameters(utils.set_sigterm_handler) == ["sigterm_handler"]
    before = utils.set_sigterm_handler
    with own_handlers_kept():
        assert utils.set_sigterm_handler is not before
    assert utils.set_sigterm_handler is before


def test_a_driver_knows_the_processes_of_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(worker, "_global_node")
    assert isinstance(inspect.getattr_static(node.Node, "all_processes", None), property) or (
        "self.all_processes: dict = {}" in inspect.getsource(node.Node)
    )
    assert "process" in services.ProcessInfo._fields
    started = [SimpleNamespace(process=name) for name in ("gcs", "raylet")]
    processes = {"gcs_server": started[:1], "raylet": started[1:], "dashboard": started}
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=processes))
    assert own_daemons() == [("gcs_server", "gcs"), ("raylet", "raylet")]
    monkeypatch.setattr(worker, "_global_node", None)
    assert own_daemons() == []


def fail_a_task(exception: Exception) -> list[Exception]:
    """What the trial is told when its worker's task fails with `exception`."""
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager: Any = SimpleNamespace(
        _failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None
    )
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=exception)
    return told


def left_by(error: Exception | None, folder: Path) -> Any:
    """A trial of Tune whose worker failed with an error, which Tune wrote to a file."""
    if error is None:
        return SimpleNamespace(pickled_error_file=None)
    path = folder / "error.pkl"
    path.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(pickled_error_file=str(path))


def test_a_worker_ended_for_memory_ends_its_trial_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail_a_task(OutOfMemoryError(MESSAGE))  # Tune by itself ends the study
    with lost_worker_ends_one_trial():
        (error,) = fail_a_task(OutOfMemoryError(MESSAGE))
    assert isinstance(error, RayActorError)
    assert str(cloudpickle.loads(cloudpickle.dumps(error))) == str(error)
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail_a_task(OutOfMemoryError(MESSAGE))
    ours = lost_worker_error(left_by(error, tmp_path))
    assert isinstance(ours, WorkerOutOfMemoryError)
    assert str(ours) == MESSAGE.splitlines()[0]


def test_objects_lost_with_a_node_end_one_trial_alone(tmp_path: Path) -> None:
    with lost_worker_ends_one_trial():
        (error,) = fail_a_task(OwnerDiedError("0" * 56, None, ""))
    assert isinstance(error, RayActorError)
    ours = lost_worker_error(left_by(error, tmp_path))
    assert type(ours) is WorkerLostError
    assert str(ours)


def test_a_worker_that_left_no_error_is_lost_without_a_reason(tmp_path: Path) -> None:
    assert str(lost_worker_error(left_by(None, tmp_path))) == ""


MEMORY_OF_OTHERS = (
    "Task was killed due to the node running low on memory.\nTop 10 memory users:\n"
    "PID\tMEM(GB)\tCOMMAND\n41\t12.50\tmatlab\n42\t0.70\tray::TrialTrainable.train"
)


def test_memory_that_other_programs_hold_is_no_fault_of_the_trial(tmp_path: Path) -> None:
    with lost_worker_ends_one_trial():
        (error,) = fail_a_task(OutOfMemoryError(MEMORY_OF_OTHERS))
    ours = lost_worker_error(left_by(error, tmp_path))
    assert isinstance(ours, NodeUnfitError)
    assert "other programs hold 12.5 GB of its memory" in str(ours)


def died(message: str, **more: Any) -> ActorDiedError:
    """What Ray makes of the death of an actor."""
    context = ActorDiedErrorContext(error_message=message, actor_id=b"1" * 16, **more)
    # by name, as Ray does: it could not be pickled otherwise
    return ActorDiedError(cause=context)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (died("The actor died because its node has died. Node Id: 8f"), "it left the cluster"),
        (
            died("x: the actor's node was terminated unexpectedly: health check failed"),
            "it left the cluster",
        ),
        (
            died("why", node_death_info=NodeDeathInfo(reason="AUTOSCALER_DRAIN_PREEMPTED")),
            "it was preempted",
        ),
        (ActorUnavailableError("RpcError: 14", b"1" * 16), "the connection to it was lost"),
    ],
)
def test_a_lost_node_is_told_apart_from_a_lost_worker(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "actors", lambda actor_id: {"Address": {"NodeID": f"of {actor_id}"}})
    ours = lost_worker_error(left_by(error, tmp_path))
    assert type(ours) is NodeLostError
    assert str(ours) == words
    assert ours.node_id == f"of {(b'1' * 16).hex()}"
    worker = lost_worker_error(left_by(died("The worker crashed: SIGKILL"), tmp_path))
    assert type(worker) is WorkerLostError


def test_what_a_trial_raised_about_its_node_arrives(tmp_path: Path) -> None:
    cause = NodeUnfitError("node w2 has no GPU")
    raised = RayTaskError("step", "traceback", cause)
    for error in (raised, raised.as_instanceof_cause()):
        ours = lost_worker_error(left_by(error, tmp_path))
        assert type(ours) is NodeUnfitError
        assert str(ours) == "node w2 has no GPU"


def test_the_node_of_a_trial_is_that_of_its_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parameters(state.actors)[0] == "actor_id"
    assert '"NodeID": binary_to_hex(' in inspect.getsource(type(state.state)._gen_actor_info)
    trial = Trial("stub", stub=True)
    assert node_of(trial) is None
    trial.temporary_state.ray_actor = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "ab"))
    monkeypatch.setattr(state, "actors", lambda actor_id: {"Address": {"NodeID": f"of {actor_id}"}})
    assert node_of(trial) == "of ab"
    monkeypatch.setattr(state, "actors", lambda actor_id: {})
    assert node_of(trial) is None


def test_jobs_whose_driver_has_ended_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    table = inspect.getsource(state.GlobalState.job_table)
    assert 'job_info["JobID"] = entry.job_id.hex()' in table
    assert 'job_info["IsDead"] = entry.is_dead' in table
    jobs = [{"JobID": "01", "IsDead": False}, {"JobID": "02", "IsDead": True}]
    monkeypatch.setattr(state, "jobs", lambda: jobs)
    assert ray_internals.ended_jobs() == {"02"}


def test_workers_that_tune_would_keep_are_given_back() -> None:
    wanted = {"let go": False, "idle": False}
    with workers_let_go(lambda: wanted["let go"], lambda: wanted["idle"]):
        cache: Any = _ObjectCache()
        cache.increase_max("share", 2)
        assert cache.cache_object("share", "worker 1")
        wanted["let go"] = True
        assert not cache.cache_object("share", "worker 2")
        assert list(cache.flush_cached_objects()) == []
        wanted["idle"] = True
        assert list(cache.flush_cached_objects()) == ["worker 1"]
        assert cache.num_cached_objects == 0
    assert _ObjectCache().cache_object("share", "worker 3")
    # the one that Tune keeps and asks
    assert "self._actor_cache.cache_object(" in inspect.getsource(TuneController)
    assert "self._actor_cache.flush_cached_objects(" in inspect.getsource(TuneController)


def test_a_trial_of_tune_knows_its_actor_and_the_file_of_its_error() -> None:
    trial = Trial("stub", stub=True)
    assert actor_of(trial) is None
    trial.temporary_state.ray_actor = "the actor"
    assert "temporary_state.ray_actor = ray_actor" in inspect.getsource(Trial.set_ray_actor)
    assert actor_of(trial) == "the actor"
    assert isinstance(inspect.getattr_static(Trial, "pickled_error_file"), property)


def test_a_cluster_of_other_versions_is_told_apart() -> None:
    here = {"ray_version": ray.__version__, "python_version": sys.version.split()[0]}
    check_versions(here)
    with pytest.raises(RuntimeError, match=r"1\.0\.0"):
        check_versions({**here, "ray_version": "1.0.0"})


def test_a_gcs_is_asked_by_the_calls_that_the_probe_knows() -> None:
    # it hands every call on to the inner client
    assert {"__getattr__"} <= set(dir(GcsClient))
    assert {"namespace", "timeout"} <= set(parameters(InnerGcsClient.internal_kv_get))
    assert "timeout" in parameters(InnerGcsClient.get_all_node_info)
    assert {"warn_if_disabled"} <= set(
        parameters(tokens.maybe_enable_token_auth_if_token_available)
    )
    assert "create_token_if_missing" in parameters(tokens.ensure_token_if_auth_enabled)
    assert GcsNodeInfo.ALIVE != GcsNodeInfo.DEAD
    assert callable(services.find_node_ids)


def test_a_job_server_tells_its_version_and_hands_out_log_files() -> None:
    asked = []

    class Client:
        _server_ray_version = "2.60.0"

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            asked.append((method, endpoint, options))
            return SimpleNamespace(
                status_code=200, close=lambda: None, iter_content=lambda size: [b"a", b"b"]
            )

    client: Any = Client()
    assert version_of_server(client) == "2.60.0"
    assert list(job_log_chunks(client, "ab", "model.tar")) == [b"a", b"b"]
    assert asked[0][1].startswith("/api/v0/logs/file?node_id=ab&filename=model.tar&lines=-1")
    assert "_server_ray_version" in inspect.getsource(SubmissionClient)
    assert parameters(SubmissionClient._do_request)[1:3] == ["method", "endpoint"]
    assert parameters(SubmissionClient._raise_error) == ["self", "r"]


def test_the_token_of_this_machine_is_used_unless_the_mode_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parameters(tokens.maybe_enable_token_auth_if_token_available) == ["warn_if_disabled"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token_of_this_machine()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_what_a_job_has_booked_is_freed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def booked(number: int, job: str, now: int) -> bytes:
        return PlacementGroupTableData(
            placement_group_id=bytes([number] * 18), creator_job_id=bytes.fromhex(job), state=now
        ).SerializeToString()

    created, removed = PlacementGroupTableData.CREATED, PlacementGroupTableData.REMOVED
    rows = [
        booked(1, "01000000", created),
        booked(2, "02000000", created),
        booked(3, "02000000", removed),
        booked(4, "02000000", PlacementGroupTableData.PENDING),
    ]
    accessor = SimpleNamespace(get_placement_group_table=lambda: rows)
    monkeypatch.setattr(state.state, "_connect_and_get_accessor", lambda: accessor)
    freed: list[str] = []
    # its package has a function of the same name
    places = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(
        places, "remove_placement_group", lambda group: freed.append(group.id.hex())
    )
    free_places("02000000")
    assert freed == ["02" * 18, "04" * 18]
