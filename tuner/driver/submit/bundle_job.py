"""Exports a model on a cluster and hands it over; a program of its own, run as a short job.

The bundle is packed into the folder of Ray's logs, where the dashboard can read it: it is the one
port that a laptop reaches. A line says that it is ready; SIGTERM, or an hour, ends the job, and the
file is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tuner.signals import sigterm_interrupts

PROGRAM = "tuner.driver.submit.bundle_job"

WAIT_SECONDS = 3600
"""How long a bundle is kept for a laptop that does not fetch it."""

MARK = "segtune-bundle "


@dataclass(frozen=True)
class Ready:
    """Says that a bundle can be fetched.

    Attributes:
        name: File name in the folder of Ray's logs.
        checksum: SHA-256 of the file.
    """

    name: str
    checksum: str

    @property
    def line(self) -> str:
        """The line to print."""
        return MARK + json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self | None:
        """What a line says; None for other lines."""
        if not line.startswith(MARK):
            return None
        return cls(**json.loads(line.removeprefix(MARK)))


def hand_over(bundle: Path, logs: Path) -> None:
    """Put a bundle where the dashboard reads it, say so, and wait to be ended.

    Args:
        bundle: Folder of the bundle.
        logs: Folder of Ray's logs.
    """
    # ended by SIGTERM in order: the file must not be left behind
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    descriptor, name = tempfile.mkstemp(prefix="segtune-bundle-", suffix=".tar", dir=logs)
    archive = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            with tarfile.open(fileobj=file, mode="w") as files:
                for entry in sorted(bundle.iterdir()):
                    files.add(entry, entry.name)
            file.seek(0)
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        sys.stdout.write(Ready(archive.name, checksum).line + "\n")
        sys.stdout.flush()
        signal.sigtimedwait(ending, WAIT_SECONDS)
    finally:
        archive.unlink()


def main() -> int:
    """Export the study that the arguments name."""
    # the log of a job is a file in that folder
    logs = Path(os.readlink("/proc/self/fd/1")).parent
    with sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="tune-export-") as scratch:
        export = [sys.executable, "-m", "tuner", "export", *sys.argv[1:], "-o", "bundle"]
        code = subprocess.run(export, cwd=scratch, check=False).returncode
        if code == 0:
            hand_over(Path(scratch, "bundle"), logs)
    return code


if __name__ == "__main__":
    sys.exit(main())
