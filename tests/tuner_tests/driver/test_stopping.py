from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

SPACE = "space: {learning_rate: {uniform: [0.1, 1]}}"

STUCK = """\
import signal, sys, threading
from contextlib import contextmanager
from pathlib import Path
from tuner.driver import stopping
from tuner.study.record import StudyRecord
from tuner.spec.load import parse_spec

@contextmanager
def lost_at_once(on_lost, ended):
    threading.Thread(target=on_lost, args=["Ray's process raylet ended"], daemon=True).start()
    yield

stopping.cluster_watch = lost_at_once
stopping.RAY_CALL_TIMEOUT = 0.5
spec = parse_spec(sys.argv[2], source="s.yaml")
record = StudyRecord(Path(sys.argv[1]), spec.space, spec.mode)
record.propose({"learning_rate": 0.5}, "test")
stopper = stopping.StudyStopper(None)
# as in a call that does not come back for a signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with stopping.leave_when_stuck(stopper, record):
    threading.Event().wait()
"""


def test_a_call_into_ray_that_does_not_come_back_ends_with_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "stuck"
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, str(folder), SPACE],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert "error: Ray's process raylet ended: every finished epoch is kept" in ended.stderr
    assert "tune resume stuck" in ended.stderr
    spec = parse_spec(SPACE, source="s.yaml")
    entry = StudyRecord(folder, spec.space, spec.mode).entries[0]
    assert (entry.state, entry.reason) == (TrialState.INTERRUPTED, "Ray's process raylet ended")


LEFTOVER = """\
import gc, os, sys
from contextlib import nullcontext
from pathlib import Path
from tuner.driver import stopping
from tuner.study.record import StudyRecord
from tuner.spec.load import parse_spec

class Leftover:
    def __del__(self):
        # as one of Tune's that calls a GCS which is gone
        os._exit(7)

stopping.cluster_watch = lambda *_: nullcontext()
gc.disable()
spec = parse_spec(sys.argv[2], source="s.yaml")
record = StudyRecord(Path(sys.argv[1]), spec.space, spec.mode)
stopper = stopping.StudyStopper(None)
with stopping.leave_when_stuck(stopper, record):
    leftover = Leftover()
    leftover.itself = leftover
    del leftover
    stopper.gave_up = True
    raise KeyboardInterrupt
gc.collect()
"""


def test_what_tune_leaves_behind_calls_no_cluster_that_is_gone(tmp_path: Path) -> None:
    start = [sys.executable, "-c", LEFTOVER, str(tmp_path), SPACE]
    ended = subprocess.run(start, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
