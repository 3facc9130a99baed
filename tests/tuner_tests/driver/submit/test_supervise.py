"""A driver that a signal killed is started again, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SUPERVISE = """\
import sys
from tuner.driver.submit.supervise import Supervisor
sys.exit(Supervisor([sys.executable, "-c", sys.argv[1], sys.argv[2]], int(sys.argv[3])).run())
"""

STARTED = "import os, pathlib, signal, sys, time; log = pathlib.Path(sys.argv[1]); "
COUNTED = STARTED + "log.write_text(log.read_text() + 'x') if log.exists() else log.write_text('x')"


def supervised(program: str, log: Path, most: int) -> list[str]:
    return [sys.executable, "-c", SUPERVISE, program, str(log), str(most)]


@pytest.mark.parametrize(
    ("end", "starts", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 3, 128 + 9),
        ("sys.exit(1)", 1, 1),
        ("sys.exit(0)", 1, 0),
        ("os.kill(os.getpid(), signal.SIGKILL) if len(log.read_text()) == 1 else 0", 2, 0),
    ],
)
def test_only_a_killed_driver_is_started_again(
    tmp_path: Path, end: str, starts: int, code: int
) -> None:
    log = tmp_path / "log"
    result = subprocess.run(
        supervised(f"{COUNTED}; {end}", log, 2), capture_output=True, text=True, check=False
    )
    assert (log.read_text(), result.returncode) == ("x" * starts, code), result.stderr
    assert result.stdout.count("the driver was killed by SIGKILL") == starts - 1


def test_sigterm_is_passed_on_and_ends_the_study(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(tmp_path / "ready")
    program = (
        f"{COUNTED}; pathlib.Path({str(tmp_path / 'ready')!r}).write_text('1'); signal.pause()"
    )
    with subprocess.Popen(supervised(program, log, 5)) as process:
        (tmp_path / "ready").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert log.read_text() == "x"
