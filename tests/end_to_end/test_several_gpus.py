"""Trials on two GPUs each, here logical ones: two processes that train together on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tuner.cli.main import main
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState

PROGRAM = "tuner.trial.rank_process"


def further_processes() -> list[int]:
    """The processes of trials beside those of Ray, of any study on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if PROGRAM.encode() in command and state != "Z":
            found.append(int(entry.name))
    return found


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 30
    while set(processes) & set(further_processes()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def space(space_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    values = yaml.safe_load(space_file.read_text())
    # a validation case for each process
    values["config"] |= {"val_fraction": 0.5}
    values["resources"] |= {"gpu": 2, "cpu": 1}
    path.write_text(yaml.safe_dump(values))
    return path


def test_trials_pause_are_promoted_and_leave_no_process_behind(
    cluster: str, space: Path, tmp_path: Path
) -> None:
    before = further_processes()
    where = ["--name", "two", "--studies-dir", str(tmp_path)]
    assert main(["run", str(space), "--num-trials", "4", *where]) == 0
    study = open_study(tmp_path, "two")
    assert is_finished(study)
    entries = study.record.entries
    assert len(entries) == 4
    assert {entry.state for entry in entries.values()} <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert max(entry.epochs for entry in entries.values()) == 4
    for number in entries:
        folder = study.folder / "trials" / f"{number:04d}"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["gpus"] == 2
        placement = yaml.safe_load((folder / "placement.yaml").read_text())
        assert len(placement["gpu_ids"]) == 2
    wait_until_gone([process for process in further_processes() if process not in before])
    assert main(["export", "two", "--studies-dir", str(tmp_path), "-o", str(tmp_path / "b")]) == 0


def test_a_trial_that_loses_a_process_is_tried_again(
    cluster: str, space: Path, tmp_path: Path
) -> None:
    before = further_processes()
    command = [sys.executable, "-m", "tuner", "run", str(space), "--name", "killed"]
    command += ["--studies-dir", str(tmp_path), "--num-trials", "2", "--max-epochs", "20"]
    command += ["--set", "policy=none", "--address", cluster]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "killed" / "trials" / "0000" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.is_file():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    victim = next(process for process in further_processes() if process not in before)
    os.kill(victim, signal.SIGKILL)
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    study = open_study(tmp_path, "killed")
    entries = study.record.entries.values()
    assert {entry.state for entry in entries} == {TrialState.COMPLETED}
    assert sum(entry.failures for entry in entries) == 1
    retried = [d.reason for d in study.record.decisions if d.action == "retried"]
    assert len(retried) == 1
    assert "process 1 of the trial was ended by signal 9; retry 1 of" in retried[0]
    wait_until_gone([process for process in further_processes() if process not in before])
