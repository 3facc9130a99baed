"""Names of the files of a study, and of those of a trial."""

from __future__ import annotations

from pathlib import Path

DRIVER_LOCK = "driver.lock"

GIVEN_SPEC = "spec.yaml"

RESOLVED_SPEC = "spec.resolved.yaml"

PROVENANCE = "provenance.json"

DATABASE = "optuna.db"

NODES_FILE = "nodes.json"

WARM_START = "warm_start.json"

CONFIRM_FOLDER = "confirm"

CONFIRM_PLAN = "plan.json"

TRIALS_FOLDER = "trials"

METRICS_FILE = "metrics.csv"

PLACEMENT_FILE = "placement.yaml"

ERROR_FILE = "error.txt"

HANG_FILE = "hang.txt"

LOCK_FILE = "trial.lock"

CLAIM_FILE = "trial.claim"

BEST_FILE = "best.ckpt"

LAST_FILE = "last.ckpt"

CHECKPOINT_FILES = (BEST_FILE, LAST_FILE)

SNAPSHOT_PATTERN = "epoch-[0-9][0-9][0-9][0-9][0-9].ckpt"


def trial_folder(study_folder: Path, number: int) -> Path:
    """Folder of trial `number` in a study folder."""
    return study_folder / TRIALS_FOLDER / f"{number:04d}"


FOLD_PATTERN = "fold-[1-9]*"
"""Folders that a trial has for its folds after the first."""


def fold_folder(folder: Path, fold: int) -> Path:
    """Where a trial keeps what it trained on a fold; the first one is in its own folder.

    Args:
        folder: The trial's folder.
        fold: The fold, from 0.
    """
    return folder / f"fold-{fold}" if fold else folder


def best_checkpoints(study_folder: Path, number: int, folds: int = 1) -> dict[int, Path]:
    """The best checkpoint of each fold of a trial, by fold from 0, of those that are there.

    The validation cases of one fold are training cases of the others: each checkpoint is to be
    judged on those of its own (`config.yaml` beside it has the `fold`).

    Args:
        study_folder: The study's folder.
        number: The trial.
        folds: Folds of the study.
    """
    folder = trial_folder(study_folder, number)
    found = {fold: fold_folder(folder, fold) / BEST_FILE for fold in range(folds)}
    return {fold: path for fold, path in found.items() if path.is_file()}


CONFIG_FILE = "config.yaml"

RAY_FOLDER = "ray"

CONFIRM_CSV = "confirm.csv"

REPORT = "report.html"

RESULTS = "results.csv"


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where a trial keeps its checkpoint of an epoch for others."""
    return folder / f"epoch-{epoch:05d}.ckpt"
