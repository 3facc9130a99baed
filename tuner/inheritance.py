"""How a trial takes over the weights of another: through a checkpoint that each keeps."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from training.callbacks import BEST_CHECKPOINT, LAST_CHECKPOINT
from training.checkpoint_io import DurableCheckpointIO
from tuner.resumption import UNREADABLE

OWN_STATES = ("EpochCheckpoint", "EpochGate")
"""Callbacks that know a trial's own past, which it keeps: its best score, its epochs."""


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where a trial keeps its checkpoint of an epoch for others."""
    return folder / f"epoch-{epoch:05d}.ckpt"


def keep_snapshot(folder: Path, epoch: int) -> None:
    """Keep the last checkpoint, which is that of `epoch`, under a name of its own.

    One that is there stays: it has the weights that the epoch's score is of, while the last one
    may have been taken over since.
    """
    last, snapshot = folder / f"{LAST_CHECKPOINT}.ckpt", snapshot_file(folder, epoch)
    if snapshot.is_file():
        return
    partial = snapshot.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        # no copy: the last checkpoint is never changed, only replaced
        os.link(last, partial)
    except OSError:
        # a file system without hard links
        shutil.copyfile(last, partial)
    partial.replace(snapshot)


def take_over(folder: Path, donor_folder: Path, epoch: int, metrics_file: Path) -> str:
    """Let a trial go on from the checkpoint that another one had at an epoch.

    Network, optimizer, schedule and early stopping are the other's. Its own remain the epochs
    that it reported and its best score, so that its `best.ckpt` stays what the record says.
    Nothing happens if it has trained on since; done twice, it is as if done once.

    Args:
        folder: The trial's folder.
        donor_folder: The other's.
        epoch: The epoch, which both have trained.
        metrics_file: The trial's epochs as it reported them.

    Returns:
        What is in the way, for people; empty if nothing is.
    """
    own = _own_checkpoint(folder)
    if own is not None and own["epoch"] > epoch:
        return ""
    try:
        checkpoint = _read(snapshot_file(donor_folder, epoch))
        history = _reported(metrics_file, epoch)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"the weights of trial {donor_folder.name} at epoch {epoch} cannot be taken over "
            f"({reason}): goes on with its own"
        )
    states = {
        key: state
        for key, state in checkpoint["callbacks"].items()
        if not key.startswith(OWN_STATES)
    }
    for key, state in (own or {"callbacks": {}})["callbacks"].items():
        if key.startswith(OWN_STATES):
            states[key] = state
    states["EpochGate"] = {"history": history}
    checkpoint["callbacks"] = states
    DurableCheckpointIO().save_checkpoint(checkpoint, folder / f"{LAST_CHECKPOINT}.ckpt")
    return ""


def _own_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a trial, or its best if that one is damaged."""
    for name in (LAST_CHECKPOINT, BEST_CHECKPOINT):
        path = folder / f"{name}.ckpt"
        if path.is_file():
            try:
                return _read(path)
            except UNREADABLE:
                continue  # it is told of, and left aside, where training goes on
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in {path.name} is damaged")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


def _reported(metrics_file: Path, epochs: int) -> list[dict[str, float]]:
    """The first epochs that a trial reported.

    Raises:
        ValueError: if there are not as many.
    """
    with metrics_file.open(newline="") as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ][:epochs]
    if len(rows) < epochs:
        raise ValueError(f"{metrics_file.name} has {len(rows)} epochs only")
    return [{**row, "epoch": int(row["epoch"])} for row in rows]
