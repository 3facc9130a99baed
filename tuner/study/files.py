"""Names of the files of a study, and of those of a trial."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from training.durable_write import DAMAGED, PARTIAL

GIVEN_SPEC = "spec.yaml"

RESOLVED_SPEC = "spec.resolved.yaml"

PROVENANCE = "provenance.json"

DATABASE = "optuna.db"

WARM_START = "warm_start.json"

CONFIRM_FOLDER = "confirm"

TRIALS_FOLDER = "trials"

METRICS_FILE = "metrics.csv"

PLACEMENT_FILE = "placement.yaml"

ERROR_FILE = "error.txt"

HANG_FILE = "hang.txt"

LOCK_FILE = "trial.lock"

BEST_FILE = "best.ckpt"

LAST_FILE = "last.ckpt"

CHECKPOINT_FILES = (BEST_FILE, LAST_FILE)

SNAPSHOT_PATTERN = "epoch-[0-9][0-9][0-9][0-9][0-9].ckpt"


def trial_folder(study_folder: Path, number: int) -> Path:
    """Folder of trial `number` in a study folder."""
    return study_folder / TRIALS_FOLDER / f"{number:04d}"


CONFIG_FILE = "config.yaml"

RAY_FOLDER = "ray"

CONFIRM_CSV = "confirm.csv"

REPORT = "report.html"

RESULTS = "results.csv"


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where a trial keeps its checkpoint of an epoch for others."""
    return folder / f"epoch-{epoch:05d}.ckpt"


def remove_checkpoints(
    study_folder: Path, number: int, names: Sequence[str] = CHECKPOINT_FILES
) -> int:
    """Remove a trial's checkpoints, with those left partly written or found damaged.

    Returns:
        Bytes that this made free.
    """
    freed = 0
    for path in own_checkpoints(study_folder, number, names):
        freed += path.stat().st_size
        path.unlink()
    return freed


def own_checkpoints(study_folder: Path, number: int, patterns: Sequence[str]) -> list[Path]:
    """Checkpoints of a trial that the program wrote, by name: a `best.ckpt.mine` is the user's."""
    folder = trial_folder(study_folder, number)
    if not folder.is_dir():
        return []
    own = [pattern + suffix for pattern in patterns for suffix in ("", DAMAGED, PARTIAL)]
    return [
        path
        for path in folder.iterdir()
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in own) and path.is_file()
    ]
