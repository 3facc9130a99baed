from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tuner.cli.main import main
from tuner.spec.load import parse_spec
from tuner.study.create import create_study
from tuner.study.driver_lock import DRIVER_LOCK, driver_is_running
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

HOLD = """\
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
sys.stdin.read()
"""


def test_a_folder_that_nobody_ever_drove_is_left_as_it_is(tmp_path: Path) -> None:
    assert not driver_is_running(tmp_path)
    assert not driver_is_running(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_a_driver_is_known_by_its_lock(tmp_path: Path, mode: int) -> None:
    path = tmp_path / DRIVER_LOCK
    path.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        path.chmod(mode)
        assert driver_is_running(tmp_path)
        driver.kill()
    assert not driver_is_running(tmp_path)


def test_who_asks_keeps_nobody_from_driving(tmp_path: Path) -> None:
    with FileLock(tmp_path / DRIVER_LOCK):
        pass
    assert not driver_is_running(tmp_path)
    with FileLock(tmp_path / DRIVER_LOCK, timeout=0):
        assert driver_is_running(tmp_path)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A study with a trial that paused and one that its driver left running."""
    text = "space: {learning_rate: {uniform: [0.1, 1]}}"
    study = create_study(parse_spec(text, source="s.yaml"), tmp_path, "left")
    for rate in (0.2, 0.3):
        study.record.propose({"learning_rate": rate}, "test")
    study.record.report(0, 1, 0.5, {"val_dice": 0.5}, 1.0)
    study.record.pause(0, "at a rung")
    study.record.close()
    return study.folder


def test_trials_of_a_driver_that_is_gone_are_shown_as_cut_off(
    left: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies-dir", str(left.parent)]
    looks = (["status", "left"], ["list"])
    with FileLock(left / DRIVER_LOCK):
        for words in looks:
            assert main([*words, *where]) == 0
            shown = capsys.readouterr().out
            assert "1 running" in shown
            # it would be refused
            assert "tune resume" not in shown
    # also when the first look has put the record right
    for words in looks * 2:
        assert main([*words, *where]) == 0
        shown = capsys.readouterr().out
        assert "1 paused · 1 interrupted" in shown
        way_on = f"go on with `tune resume left {' '.join(where)}`"
        assert f"left was cut off: no process runs the study; {way_on}" in shown
    spec = parse_spec((left / "spec.resolved.yaml").read_text(), source="s.yaml")
    assert StudyRecord(left, spec.space, spec.mode).entries[1].state is TrialState.INTERRUPTED


def test_a_terminal_without_unicode_shows_a_study(
    left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["status", "left", "--studies-dir", str(left.parent)]) == 0
    sys.stdout.flush()
    assert "1 paused - 1 interrupted" in written.getvalue().decode("ascii")
