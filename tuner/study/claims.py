"""Claims of a trial: a file in its folder names the process that may train it, the last to write.

A process that trains it looks there, and ends when it is no longer the one. A trial's process
claims the trial that it begins. A driver that goes on with a study claims those that the driver
before left running, so that their processes free their share of the cluster: Ray ends them too, but
takes up to 100 s to miss a driver whose host is gone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from training.durable_write import write_durably
from tuner.study.files import CLAIM_FILE, trial_folder

DRIVER = "driver "
"""How the claim of a driver begins."""


def claim_trial(folder: Path) -> str:
    """Claim a trial for the process that is about to train it; the claim."""
    claim = f"trial {uuid.uuid4().hex}"
    write_durably(folder / CLAIM_FILE, claim)
    return claim


def end_left_behind(study_folder: Path, numbers: Iterable[int]) -> None:
    """Let processes end that still train trials of a study for a driver that is gone."""
    for number in numbers:
        folder = trial_folder(study_folder, number)
        if folder.is_dir():
            # without it, Ray ends them
            with suppress(OSError):
                write_durably(folder / CLAIM_FILE, f"{DRIVER}{uuid.uuid4().hex}")


def claim_of(folder: Path) -> str | None:
    """Who claims a trial; None if that cannot be read."""
    try:
        return (folder / CLAIM_FILE).read_text()
    except OSError:
        return None
