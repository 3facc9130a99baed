"""What is killed, hung, full, damaged or gone, and that a study goes on as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from tuner.cli.main import main
from tuner.driver.cluster_check import check_cluster
from tuner.errors import ResourceError
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

TOY = Path(__file__).with_name("toy.py")
TRIALS = 6


@pytest.fixture(scope="session")
def toy_space(tmp_path_factory: pytest.TempPathFactory, space_file: Path) -> Path:
    """A space for toy trials, one at a time."""
    head, _, _ = space_file.read_text().partition("space:\n")
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    path.write_text(
        head
        + "space:\n  learning_rate: {loguniform: [1e-4, 1e-1]}\n"
        + f"search: {{num_trials: {TRIALS}, searcher: random, seed: 2}}\n"
        + "policy: {name: asha, grace_period: 1, reduction_factor: 2, promotion: true}\n"
        + "resources: {max_concurrent: 1, cpu: 1, gpu: 0}\n"
    )
    return path


def trace(record: StudyRecord) -> list[tuple[int, int, str, str]]:
    """All decisions but those to stop and go on again."""
    return [
        (decision.trial, decision.epoch, decision.action, decision.reason)
        for decision in record.decisions
        if decision.action not in {"interrupted", "resumed"}
    ]


def scores(record: StudyRecord) -> list[dict[int, float]]:
    return [record.entries[number].scores for number in sorted(record.entries)]


@pytest.fixture(scope="session")
def undisturbed(
    cluster: str, toy_space: Path, tmp_path_factory: pytest.TempPathFactory
) -> StudyRecord:
    """The record of the toy study when nothing goes wrong."""
    studies = tmp_path_factory.mktemp("undisturbed")
    driver = start(["run", str(toy_space), "--name", "calm", "--address", cluster], studies)
    assert driver.wait(timeout=180) == 0, output_of(driver)
    return open_study(studies, "calm").record


def start(words: list[str], studies: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(TOY), *words, "--studies-dir", str(studies)],
        # a group of its own, as a shell and `timeout` make one
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(TOY.parents[2])},
    )


def output_of(driver: subprocess.Popen[str]) -> str:
    return driver.communicate(timeout=120)[0]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def wait_for_epochs(study: Path, number: int, driver: subprocess.Popen[str]) -> None:
    """Wait until a study has saved so many epochs."""

    def saved() -> bool:
        assert driver.poll() is None, output_of(driver)
        logs = study.glob("trials/*/trained.log")
        return sum(log.read_text().count("saved") for log in logs) >= number

    wait_for(saved)


def wait_for_no_trainer(study: Path) -> None:
    """Wait until no process trains a trial of a study."""
    wait_for(lambda: not trainers(study))


def assert_nothing_lost(study: Study, undisturbed: StudyRecord, toy: ModuleType) -> None:
    assert is_finished(study)
    assert trace(study.record) == trace(undisturbed)
    assert scores(study.record) == scores(undisturbed)
    for log in study.folder.glob("trials/*/trained.log"):
        assert toy.repeated(log) == [], log.read_text()


def truncate(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def empty(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def test_a_killed_driver_loses_nothing_and_decides_the_same(
    cluster: str, toy_space: Path, tmp_path: Path, undisturbed: StudyRecord, toy: ModuleType
) -> None:
    """Killed three times, with Ray's files truncated, emptied, then gone, and moved once."""
    folder = tmp_path / "before" / "cut"
    folder.parent.mkdir()
    toy.beside(folder, toy.PACE).write_text("0.3")
    words = ["run", str(toy_space), "--name", "cut"]
    for after, harm in ((2, truncate), (5, empty), (8, shutil.rmtree)):
        driver = start([*words, "--address", cluster], folder.parent)
        wait_for_epochs(folder, after, driver)
        if after == 2:
            # a second driver is refused while the first one runs
            assert main(["resume", "cut", "--studies-dir", str(folder.parent)]) == 2
        driver.kill()
        driver.communicate(timeout=60)
        harm(folder / "ray")
        words = ["resume", "cut"]
        moved = tmp_path / f"after {after}" / "cut"
        moved.parent.mkdir()
        # what an orphaned worker writes, it writes into the folder that it knows
        wait_for_no_trainer(folder)
        toy.beside(folder, toy.PACE).rename(toy.beside(moved, toy.PACE))
        folder = folder.rename(moved)
    assert main(["resume", "cut", "--studies-dir", str(folder.parent)]) == 0
    assert_nothing_lost(open_study(folder.parent, "cut"), undisturbed, toy)


def trainers(study: Path) -> list[int]:
    """Processes that train a trial of a study now."""
    found = []
    for placement in study.glob("trials/*/placement.yaml"):
        pid = yaml.safe_load(placement.read_text())["pid"]
        command = Path(f"/proc/{pid}/cmdline")
        if command.is_file() and b"Trainable" in command.read_bytes():
            found.append(pid)
    return found


def test_a_killed_driver_takes_the_workers_of_its_own_cluster_along(
    toy_space: Path, tmp_path: Path, undisturbed: StudyRecord, toy: ModuleType
) -> None:
    folder = tmp_path / "own"
    toy.beside(folder, toy.PACE).write_text("0.3")
    driver = start(["run", str(toy_space), "--name", "own"], tmp_path)
    wait_for_epochs(folder, 3, driver)
    driver.kill()
    # resumed at once: a worker that is still there has to end before its trial goes on
    resumed = start(["resume", "own"], tmp_path)
    output = output_of(resumed)
    assert resumed.returncode == 0, output
    assert_nothing_lost(open_study(tmp_path, "own"), undisturbed, toy)
    wait_for_no_trainer(folder)


@pytest.mark.parametrize(
    ("cut", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)]
)
def test_a_signal_ends_the_driver_in_order(
    cluster: str,
    toy_space: Path,
    tmp_path: Path,
    undisturbed: StudyRecord,
    toy: ModuleType,
    cut: signal.Signals,
    times: int,
) -> None:
    folder = tmp_path / "cut"
    toy.beside(folder, toy.PACE).write_text("0.2")
    driver = start(["run", str(toy_space), "--name", "cut", "--address", cluster], tmp_path)
    wait_for_epochs(folder, 3, driver)
    for _ in range(times):
        driver.send_signal(cut)
        time.sleep(0.02)
    output = output_of(driver)
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    assert main(["resume", "cut", "--studies-dir", str(tmp_path)]) == 0
    assert_nothing_lost(open_study(tmp_path, "cut"), undisturbed, toy)


def own_daemons(driver: subprocess.Popen[str]) -> dict[str, int]:
    """The processes of Ray that a driver started, by their program."""
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    return {program_of(int(pid)): int(pid) for pid in children}


def program_of(pid: int) -> str:
    """Name of the program that a process runs; nothing when it has ended."""
    command = Path(f"/proc/{pid}/cmdline")
    return Path(command.read_bytes().split(b"\0")[0].decode()).name if command.is_file() else ""


def test_a_signal_to_the_whole_group_ends_a_study_with_its_own_cluster_in_order(
    toy_space: Path, tmp_path: Path, toy: ModuleType
) -> None:
    """As `timeout` and SLURM send it, to the process and to its group; an epoch is going on."""
    folder = tmp_path / "group"
    driver = start(["run", str(toy_space), "--name", "group"], tmp_path)
    wait_for_epochs(folder, 1, driver)
    toy.beside(folder, toy.PACE).write_text("600")
    wait_for(lambda: any("began" in line for line in last_lines(folder)))
    daemons = own_daemons(driver)
    assert {"gcs_server", "raylet"} <= set(daemons)
    driver.send_signal(signal.SIGTERM)
    os.killpg(driver.pid, signal.SIGTERM)
    output = output_of(driver)
    assert driver.returncode == 130, output
    assert "why it ended" in output
    assert "interrupted by the user" in output
    assert "tune resume group" in output
    assert "Traceback" not in output
    record = open_study(tmp_path, "group").record
    assert TrialState.RUNNING not in {entry.state for entry in record.entries.values()}
    wait_for(lambda: not any(program_of(pid) == name for name, pid in daemons.items()))
    wait_for_no_trainer(folder)


def last_lines(study: Path) -> list[str]:
    """The last line of each trial's log."""
    return [log.read_text().splitlines()[-1] for log in study.glob("trials/*/trained.log")]


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_process_of_ray_that_ends_halts_the_study(
    toy_space: Path, tmp_path: Path, toy: ModuleType, name: str
) -> None:
    folder = tmp_path / "halted"
    toy.beside(folder, toy.PACE).write_text("0.3")
    driver = start(["run", str(toy_space), "--name", "halted"], tmp_path)
    wait_for_epochs(folder, 2, driver)
    os.kill(own_daemons(driver)[name], signal.SIGKILL)
    output = output_of(driver)
    assert driver.returncode == 2, output
    assert f"Ray's process {name} ended" in output
    assert "tune resume halted" in output
    assert "Traceback" not in output
    record = open_study(tmp_path, "halted").record
    assert TrialState.RUNNING not in {entry.state for entry in record.entries.values()}


def test_a_driver_that_was_killed_is_known_to_status_and_list(
    cluster: str,
    toy_space: Path,
    tmp_path: Path,
    toy: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "gone"
    toy.beside(folder, toy.PACE).write_text("0.3")
    where = ["--studies-dir", str(tmp_path)]
    # every trial runs from its start to its end
    options = ["--set", "policy=none", "--address", cluster]
    driver = start(["run", str(toy_space), "--name", "gone", *options], tmp_path)
    wait_for_epochs(folder, 1, driver)
    assert main(["list", *where]) == 0
    assert "1 running" in capsys.readouterr().out
    driver.kill()
    driver.communicate(timeout=60)
    for words in (["status", "gone"], ["list"]):
        assert main([*words, *where]) == 0
        shown = capsys.readouterr().out
        assert "1 interrupted" in shown
        assert "running" not in shown
        assert f"go on with `tune resume gone --studies-dir {tmp_path}`" in shown
    # the first look has put the record right
    record = open_study(tmp_path, "gone").record
    assert record.with_state(TrialState.RUNNING) == []
    assert len(record.with_state(TrialState.INTERRUPTED)) == 1
    wait_for_no_trainer(folder)


def faulty(
    folder: Path, space: Path, faults: dict[int, dict[str, Any]], *options: str
) -> tuple[int, Study]:
    """Run a toy study in which faults happen."""
    folder.with_name(f"{folder.name}.faults.json").write_text(json.dumps(faults))
    where = ["--studies-dir", str(folder.parent)]
    code = main(["run", str(space), "--name", folder.name, *options, *where])
    return code, open_study(folder.parent, folder.name)


def test_a_trial_that_fails_is_tried_again(
    cluster: str, toy_space: Path, tmp_path: Path, toy: ModuleType
) -> None:
    faults = {
        0: {"epoch": 3, "what": "kill", "times": 2},
        1: {"epoch": 2, "what": "exception", "times": 1},
        2: {"epoch": 3, "what": "hang", "times": 1},
        3: {"epoch": 1, "what": "freeze", "times": 1},
        4: {"epoch": 2, "what": "out of memory", "times": 9},
        5: {"epoch": 3, "what": "exception", "times": 9},
    }
    options = [
        *("--set", "policy=none", "--set", "failures.hang_timeout=15", "--max-concurrent", "3"),
        *("--set", "failures.on_out_of_memory=smaller_batch", "--set", "train_batch_size=4"),
    ]
    code, study = faulty(tmp_path / "faulty", toy_space, faults, *options)
    assert code == 0
    entries = study.record.entries
    for number in range(5):
        assert entries[number].state is TrialState.COMPLETED, entries[number]
        assert list(entries[number].scores) == [1, 2, 3, 4]
    assert [entries[number].failures for number in range(6)] == [2, 1, 1, 1, 2, 2]
    assert entries[5].state is TrialState.FAILED
    assert "a fault of this machine (after 3 tries)" in entries[5].reason
    retried = {d.trial: d.reason for d in study.record.decisions if d.action == "retried"}
    assert "worker process died" in retried[0]
    assert "retry 2 of 2" in retried[0]
    assert "no epoch ended within 15 s" in retried[2]
    assert "no epoch ended within 15 s" in retried[3]
    assert entries[4].overrides == {"train_batch_size": 1, "val_batch_size": 2}
    folder = study.folder / "trials" / "0004"
    assert yaml.safe_load((folder / "config.yaml").read_text())["train_batch_size"] == 1
    with (study.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # its best epoch came after the last retry
    assert rows[4]["params_train_batch_size"] == "1"
    assert rows[4]["params_val_batch_size"] == "2"
    # where it hung
    assert "in happen" in (study.folder / "trials" / "0002" / "hang.txt").read_text()
    for log in study.folder.glob("trials/*/trained.log"):
        begun = [line.split()[1] for line in log.read_text().splitlines() if "saved" in line]
        assert begun == sorted(set(begun)), log.read_text()


def test_a_study_most_of_whose_trials_failed_is_no_success(
    cluster: str,
    toy_space: Path,
    tmp_path: Path,
    toy: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = {
        0: {"epoch": 1, "what": "exception", "times": 9},
        1: {"epoch": 1, "what": "out of memory", "times": 9},
    }
    options = [
        *("--set", "policy=none", "--set", "failures.max_failures=0", "--num-trials", "3"),
        *("--set", "train_batch_size=4", "--max-epochs", "1"),
    ]
    code, study = faulty(tmp_path / "failed", toy_space, faults, *options)
    assert code == 1
    best = study.record.best()
    assert best is not None
    _, _, summary = capsys.readouterr().out.partition("\n\n")
    lines = summary.splitlines()
    assert lines[:3] == [
        "2 of 3 trials failed:",
        "  1 x RuntimeError: a fault of this machine (trial 0)",
        "  1 x MemoryError: a batch of 4 is too large (trial 1)",
    ]
    where = ["--studies-dir", str(tmp_path)]
    assert main(["resume", "failed", *where]) == 1
    assert "2 of 3 trials failed:" in capsys.readouterr().out


def test_a_full_disk_of_a_machine_ends_its_study_and_no_trial(
    cluster: str, toy_space: Path, tmp_path: Path, undisturbed: StudyRecord, toy: ModuleType
) -> None:
    faults = {2: {"epoch": 1, "what": "disk full", "times": 1}}
    (tmp_path / "full.faults.json").write_text(json.dumps(faults))
    # with a cluster of its own, which has no other node
    driver = start(["run", str(toy_space), "--name", "full"], tmp_path)
    output = output_of(driver)
    assert driver.returncode == 2, output
    assert "No space left on device" in output
    assert "tune resume full" in output
    entry = open_study(tmp_path, "full").record.entries[2]
    assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, 0)
    assert main(["resume", "full", "--studies-dir", str(tmp_path)]) == 0
    assert_nothing_lost(open_study(tmp_path, "full"), undisturbed, toy)


def test_a_node_whose_disk_is_full_costs_its_trial_nothing(
    cluster: str, toy_space: Path, tmp_path: Path, undisturbed: StudyRecord, toy: ModuleType
) -> None:
    faults = {2: {"epoch": 1, "what": "disk full", "times": 1}}
    code, study = faulty(tmp_path / "moved", toy_space, faults, "--set", "failures.max_failures=0")
    assert code == 0
    reasons = [decision.reason for decision in study.record.decisions if decision.trial == 2]
    assert any("a disk of its own that is full" in reason for reason in reasons)
    assert any(reason.endswith("it goes on elsewhere") for reason in reasons)
    assert study.record.entries[2].failures == 0
    assert_nothing_lost(study, undisturbed, toy)


def test_a_lost_node_costs_no_trial(
    nodes: Cluster, toy_space: Path, tmp_path: Path, toy: ModuleType
) -> None:
    big = {"num_cpus": 4, "object_store_memory": 100 * 2**20}
    node = nodes.add_node(**big)
    folder = tmp_path / "lost"
    toy.beside(folder, toy.PACE).write_text("0.3")
    # only the new node has room for such a trial
    options = ["--cpus-per-trial", "4", "--num-trials", "2", "--set", "policy=none"]
    driver = start(
        ["run", str(toy_space), "--name", "lost", "--address", nodes.address, *options], tmp_path
    )
    wait_for_epochs(folder, 2, driver)
    nodes.remove_node(node, allow_graceful=False)
    another = nodes.add_node(**big)
    try:
        output = output_of(driver)
        assert driver.returncode == 0, output
    finally:
        nodes.remove_node(another)
    record = open_study(tmp_path, "lost").record
    assert [entry.state for entry in record.entries.values()] == [TrialState.COMPLETED] * 2
    assert sum(entry.failures for entry in record.entries.values()) == 0
    reasons = [decision.reason for decision in record.decisions]
    assert any(socket.gethostname() in reason and "was lost" in reason for reason in reasons)
    for log in folder.glob("trials/*/trained.log"):
        assert toy.repeated(log) == []


@contextmanager
def cluster_of_its_own(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """A cluster in a process of its own; its address is what it prints."""
    program = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 2,"
        " 'include_dashboard': False, 'object_store_memory': 100 * 2**20})\n"
        "print(cluster.address, flush=True); sys.stdin.read(); cluster.shutdown()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    yield process
    process.communicate("", timeout=60)


@pytest.fixture
def passing_cluster() -> Iterator[subprocess.Popen[str]]:
    """A cluster that can go away."""
    with cluster_of_its_own() as process:
        yield process


def test_a_cluster_that_refuses_the_token_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "0123456789abcdef0123456789abcdef"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with cluster_of_its_own(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(ResourceError, match=r"refuses the .*token .*set RAY_AUTH_MODE=token"):
            check_cluster(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
        with pytest.raises(ResourceError, match="refuses the authentication token"):
            check_cluster(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        check_cluster(address)


def test_a_cluster_that_goes_away_interrupts_its_trials(
    cluster: str,
    passing_cluster: subprocess.Popen[str],
    toy_space: Path,
    tmp_path: Path,
    undisturbed: StudyRecord,
    toy: ModuleType,
) -> None:
    assert passing_cluster.stdout is not None
    address = passing_cluster.stdout.readline().strip()
    folder = tmp_path / "gone"
    toy.beside(folder, toy.PACE).write_text("0.3")
    driver = start(["run", str(toy_space), "--name", "gone", "--address", address], tmp_path)
    wait_for_epochs(folder, 3, driver)
    passing_cluster.communicate("", timeout=60)
    output = output_of(driver)
    assert driver.returncode != 0, output
    left = open_study(tmp_path, "gone").record.entries.values()
    assert {entry.state for entry in left} <= {
        *(TrialState.RUNNING, TrialState.INTERRUPTED),
        *(TrialState.PAUSED, TrialState.COMPLETED),
    }
    assert ray.is_initialized()
    assert main(["resume", "gone", "--studies-dir", str(tmp_path)]) == 0
    study = open_study(tmp_path, "gone")
    # a worker may be missed before the head is; its trial is tried again then
    study.record.decisions[:] = [d for d in study.record.decisions if d.action != "retried"]
    assert_nothing_lost(study, undisturbed, toy)
