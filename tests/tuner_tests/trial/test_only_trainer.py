"""Two processes that train one trial: the later one gets it, whatever the earlier one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_trial import QUIET, TINY, VALUES

from training.data import generate_phantom
from tuner.spec.study_spec import StudySpec
from tuner.study.data import prepare_data
from tuner.study.files import CLAIM_FILE, LOCK_FILE
from tuner.trial import only_trainer as module
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest
from tuner.trial.only_trainer import only_trainer
from tuner.trial.run import TrialRun

pytestmark = QUIET

HOLDER = """
import os, sys, time
from pathlib import Path
from tuner.trial.only_trainer import only_trainer
with only_trainer(Path(sys.argv[1]), lambda: None, lambda: os._exit(3)):
    print("trains", flush=True)
    sys.stdin.read()
"""
"""A process that trains a trial until it must make way or its input ends."""


def goes_on() -> None:
    """The trial need not end."""


def never() -> None:
    pytest.fail("nobody else has claimed the trial")


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "trains\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_still_trains_makes_way(tmp_path: Path) -> None:
    with holder(tmp_path) as earlier, only_trainer(tmp_path, goes_on, never):
        # its lock is free because it has ended, long before it would have been taken over
        assert earlier.wait(timeout=30) == 3


def test_a_process_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path) as earlier:
        earlier.kill()
        with only_trainer(tmp_path, never, never):
            assert (tmp_path / CLAIM_FILE).is_file()


def test_the_lock_of_a_process_that_does_not_run_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.0)
    with holder(tmp_path) as earlier:
        os.kill(earlier.pid, signal.SIGSTOP)
        with only_trainer(tmp_path, goes_on, never):
            assert earlier.poll() is None
            # it is a lock all the same
            assert not acquired(tmp_path)
            os.kill(earlier.pid, signal.SIGCONT)
            assert earlier.wait(timeout=30) == 3
            assert not acquired(tmp_path)
        assert acquired(tmp_path)


def acquired(folder: Path) -> bool:
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        with lock:
            return True
    except TimeoutError:
        return False


def test_a_trial_that_must_end_waits_no_longer(tmp_path: Path) -> None:
    class EndedError(Exception):
        pass

    def leave() -> None:
        raise EndedError

    with (
        FileLock(tmp_path / LOCK_FILE),
        pytest.raises(EndedError),
        only_trainer(tmp_path, leave, never),
    ):
        pytest.fail("another process has the lock")


def test_a_claim_that_cannot_be_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    looked = threading.Event()
    look: Callable[[Path], str | None] = module._claim_at

    def noted(path: Path) -> str | None:
        found = look(path)
        if found is None:
            looked.set()
        return found

    monkeypatch.setattr(module, "_claim_at", noted)
    with only_trainer(tmp_path, goes_on, never):
        (tmp_path / CLAIM_FILE).unlink()
        assert looked.wait(timeout=30)


def test_a_trial_between_two_epochs_leaves_it_and_its_process_trains_another(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    phantom = generate_phantom(tmp_path / "phantom", num_cases=5, seed=1)
    spec = {
        "config": {**TINY, "max_epochs": 3, "data_dir": str(phantom)},
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}},
    }
    data = prepare_data(StudySpec.from_dict(spec))
    (tmp_path / "study").mkdir()
    context = StudyContext(tmp_path / "study", data.spec, data.for_trials, gpus=0)

    def begin(number: int) -> TrialRun:
        return TrialRun(context, data.spec, TrialRequest(number, VALUES))

    earlier = begin(0)
    report = earlier.next_report()
    assert isinstance(report, EpochReport)
    later = begin(0)
    # waits for the earlier one, and has its epoch
    again = later.next_report()
    assert isinstance(again, EpochReport)
    assert (again.epoch, again.score) == (report.epoch, report.score)
    other = begin(1)
    assert isinstance(other.next_report(), EpochReport)
    second = later.next_report()
    assert isinstance(second, EpochReport)
    assert second.epoch == 2
    assert isinstance(later.next_report(), EpochReport)
    assert isinstance(later.next_report(), TrialEnd)
    for run in (earlier, later, other):
        run.close()
