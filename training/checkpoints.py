"""Writes and reads checkpoints."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from training.durable_write import durable_file
from training.errors import CheckpointError, reason_of

UNREADABLE = (
    *(OSError, RuntimeError, ValueError, KeyError, EOFError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""Exceptions that reading a damaged checkpoint raises."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, synced to the disk before they take the place of older ones."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint in full or not at all."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint to train on from it."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint whose every byte is as it was written (the checksums of its archive).

    Args:
        path: The checkpoint.
        mmap: Whether tensors stay in the file until they are looked at. For a look: a tensor that
            is kept would be lost with the file, on another node's disk say.

    Returns:
        What was saved; tensors are on the CPU.

    Raises:
        CheckpointError: if it is missing or damaged, or holds what only code could make.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(checkpoint, dict):
            raise ValueError(f"it holds a {type(checkpoint).__name__}, not a dict")
    except UNREADABLE as error:
        raise CheckpointError(reason_of(error)) from error
    return checkpoint


BEST_CHECKPOINT = "best"

LAST_CHECKPOINT = "last"


class EpochCheckpoint(ModelCheckpoint):
    """Saves the best and the last checkpoint between two epochs, where a run can be cut cleanly.

    Lightning's own ModelCheckpoint saves before the schedulers are stepped, so a resumed run
    trains its first epoch with the learning rate of the epoch before, and it renews the last
    checkpoint only together with the best one. Here everything that belongs to an epoch has
    happened when its checkpoint is written. An epoch whose score is not defined is never the best.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the epoch is not over."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the schedulers are stepped after this."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch before."""
        self._save_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last epoch."""
        self._save_epoch(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the state between two epochs, in which the next one has not begun."""
        # Lightning counts an epoch as ready before on_train_epoch_start and would take the
        # checkpoint for one of an epoch that was cut off after its last batch
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["completed"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, also when the folder has been moved with its checkpoints."""
        assert self.dirpath is not None
        folder = Path(self.dirpath)
        if (folder / f"{BEST_CHECKPOINT}.ckpt").is_file():

            def moved(path: str) -> str:
                return str(folder / Path(path).name) if path else path

            best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": best}
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state_dict[name] = moved(state_dict[name])
        super().load_state_dict(state_dict)

    def _save_epoch(self, trainer: Trainer) -> None:
        assert self.monitor is not None
        nothing_new = self.monitor not in trainer.callback_metrics
        if nothing_new or self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if not score_is_undefined(trainer, self.monitor):
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)


def score_is_undefined(trainer: Trainer, monitor: str) -> bool:
    """Whether an epoch's monitored score was logged, but is not finite."""
    value = trainer.callback_metrics.get(monitor)
    return value is not None and not math.isfinite(value)
