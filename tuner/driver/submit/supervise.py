"""Runs the driver of a study, and starts it again when a signal killed it; a program of its own.

`python -m tuner.driver.submit.supervise N ARGUMENTS...` runs `tune ARGUMENTS...`, and up to N times
more when it is killed: by the kernel for its memory, say, or with its terminal. `tune run` goes on
with the study of its name from its record. A study that ends by itself, also as failed, is not
run again; nor is one that SIGTERM or SIGINT ended in order, which are passed on.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`: the signal that a process gets when the one that started it ends."""


class Supervisor:
    """Runs a program until it ends by itself, or was killed too often.

    Args:
        program: The program and its arguments.
        most: How often it is started again.
    """

    def __init__(self, program: Sequence[str], most: int) -> None:
        self._program = program
        self._most = most
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run it.

        Returns:
            Its exit code, as a shell gives it: 128 and the signal where one killed it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        code = self._run_once()
        for again in range(1, self._most + 1):
            if code >= 0 or self._stopping:
                break
            sys.stdout.write(
                f"the driver was killed by {signal.Signals(-code).name}: the study goes on from "
                f"its record (start {again} of {self._most})\n"
            )
            sys.stdout.flush()
            code = self._run_once()
        return code if code >= 0 else 128 - code

    def _run_once(self) -> int:
        self._process = subprocess.Popen(self._program, preexec_fn=_end_with_parent)
        if self._stopping:
            self._process.terminate()
        return self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        # who stops a job signals all its processes: the driver takes a second signal within a
        # second for an echo
        self._stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def _end_with_parent() -> None:
    """End a driver in order when its supervisor is killed, else nobody could stop it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Supervise the command that the arguments name."""
    most, *arguments = sys.argv[1:]
    return Supervisor([sys.executable, "-m", "tuner", *arguments], int(most)).run()


if __name__ == "__main__":
    sys.exit(main())
