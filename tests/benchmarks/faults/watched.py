"""A study that runs on a host, and what its toy trials log meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hosts import Host

from tuner.study.open import open_study
from tuner.study.record import StudyRecord

ROOT = Path(__file__).parents[3]
TOY = ROOT / "tests" / "end_to_end" / "toy.py"
PACE = 0.5
"""Seconds of an epoch."""

PATIENCE = 600.0
"""How long anything may take before the benchmark gives up."""


class Watched:
    """A study that runs on a host, and what its toy trials log.

    Args:
        folder: The study's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: list[int] = []
        self.output = ""
        self._driver: subprocess.Popen[str] | None = None
        self.pace(PACE)

    def pace(self, seconds: float) -> None:
        """Let an epoch take so long from now on."""
        self.folder.with_name(f"{self.folder.name}.pace.txt").write_text(str(seconds))

    def start(
        self,
        host: Host,
        environment: dict[str, str],
        *words: str | Path,
        program: tuple[str | Path, ...] = (TOY,),
    ) -> None:
        """Start `tune run SPACE` or `tune resume` for it."""
        self._driver = host.start(
            *(sys.executable, *program, *words, "--studies-dir", self.folder.parent),
            environment=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> None:
        """Wait for the driver."""
        assert self._driver is not None
        self.output = self._driver.communicate(timeout=PATIENCE)[0]
        self.codes.append(self._driver.returncode)

    def wait(self, condition: Callable[[], Any]) -> float:
        """Wait until it is so, as long as the driver runs; when that was."""
        assert self._driver is not None
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._driver.poll() is not None:
                raise RuntimeError(f"the driver has ended:\n{self._driver.communicate()[0]}")
            if time.monotonic() > deadline:
                raise TimeoutError("it did not happen in time")
            time.sleep(0.05)
        return time.monotonic()

    def lines(self) -> list[tuple[str, str, int, str]]:
        """Trial, what (began or saved), epoch and process of each line that its trials logged."""
        found = []
        for log in sorted(self.folder.glob("trials/*/trained.log")):
            for line in log.read_text().splitlines():
                what, epoch, process = line.split()
                found.append((log.parent.name, what, int(epoch), process))
        return found

    def saved(self) -> int:
        """Epochs that are saved."""
        return sum(what == "saved" for _, what, _, _ in self.lines())

    def trains_on(self) -> str:
        """The host of the epoch that has begun last and is not saved."""
        open_epochs = {}
        for trial, what, _, process in self.lines():
            open_epochs[trial] = process.partition(":")[0] if what == "began" else ""
        return next(filter(None, open_epochs.values()), "")

    def begun(self, host: str = "") -> int:
        """Epochs that have begun, on a host or anywhere."""
        return sum(
            what == "began" and process.startswith(f"{host}:" if host else "")
            for _, what, _, process in self.lines()
        )

    @property
    def runs(self) -> bool:
        """Whether its driver runs."""
        return self._driver is not None and self._driver.poll() is None

    def record(self) -> StudyRecord:
        """Its record."""
        return open_study(self.folder.parent, self.folder.name).record
