"""Two studies on one cluster of four logical GPUs: each has its part from the next epoch on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import waiting

from tuner.study.open import open_study
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

TOY = Path(__file__).with_name("toy.py")
PACE = 0.5


def start(space: Path, studies: Path, name: str, cluster: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(TOY), "run", str(space), "--name", name, "--address", cluster]
    command += ["--studies-dir", str(studies), "--set", "policy=none", *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(TOY.parents[2])},
    )


def record_of(studies: Path, name: str) -> StudyRecord:
    return open_study(studies, name).record


def running(record: StudyRecord) -> int:
    """Trials that have a place: those that were proposed, or went on, and have not left it."""
    return len(record.with_state(TrialState.RUNNING))


wait_for = partial(waiting.wait_for, seconds=120)


def test_a_study_that_comes_has_its_part_at_the_next_epoch(
    cluster: str, space_file: Path, tmp_path: Path, toy: ModuleType
) -> None:
    for name in ("liver", "spleen"):
        toy.beside(tmp_path / name, toy.PACE).write_text(str(PACE))
    folder = tmp_path / "liver"
    # four trials of two minutes would keep all places until they end
    first = start(
        space_file, tmp_path, "liver", cluster, "--num-trials", "4", "--max-epochs", "200"
    )
    second = None
    try:
        wait_for((folder / "optuna.db").is_file, first)
        wait_for(lambda: running(record_of(tmp_path, "liver")) == 4, first)
        wait_for(
            lambda: all(e.scores for e in record_of(tmp_path, "liver").entries.values()), first
        )
        began = time.monotonic()
        more = ("--num-trials", "4", "--max-epochs", "12", "--set", "resources.priority=1")
        second = start(space_file, tmp_path, "spleen", cluster, *more)
        wait_for((tmp_path / "spleen" / "optuna.db").is_file, first, second)
        wait_for(
            lambda: any(e.scores for e in record_of(tmp_path, "spleen").entries.values()),
            first, second,
        )  # fmt: skip
        waited = time.monotonic() - began
        assert running(record_of(tmp_path, "liver")) == 2
        # no worker of the other study keeps a place without a trial
        wait_for(lambda: running(record_of(tmp_path, "spleen")) == 2, first, second)
        told = second.communicate(timeout=180)[0]
        assert second.returncode == 0, told
        # with no other study all places are its own again
        wait_for(lambda: running(record_of(tmp_path, "liver")) == 4, first)
        toy.beside(folder, toy.PACE).write_text("0")
        output = first.communicate(timeout=180)[0]
        assert first.returncode == 0, output
    finally:
        for driver in (first, second):
            if driver is not None:
                driver.kill()
    # its driver's start, the watch's look, an epoch, and the start of a worker
    assert waited < 90
    assert "shared with liver (priority 1); trials of this study (priority 1): 2 at once" in told
    assert "shared with spleen (priority 1)" in output
    assert "this study has the cluster to itself again" in output
    for name, epochs in (("liver", 200), ("spleen", 12)):
        entries = record_of(tmp_path, name).entries.values()
        assert {(e.state, e.epochs, e.failures) for e in entries} == {
            (TrialState.COMPLETED, epochs, 0)
        }
        for entry in entries:
            log = tmp_path / name / "trials" / f"{entry.number:04d}" / toy.TRAINED
            assert toy.repeated(log) == []
    made_room = {
        decision.trial
        for decision in record_of(tmp_path, "liver").decisions
        if "makes room for spleen" in decision.reason
    }
    assert len(made_room) == 2
