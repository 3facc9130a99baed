"""The callback through which a trial reports its epochs and waits between them."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from training.durable_write import write_durably
from training.logged_names import RATE
from training.registry import is_plugin
from tuner.study.trial_entry import named_now


class EpochGate(Callback):
    """Reports each finished epoch, when its checkpoint is on disk and its metrics are known.

    The history of reported epochs travels in the checkpoint. A resumed trial first reports
    what its checkpoint holds, so an epoch that was trained is never lost between
    checkpoint and report.

    Args:
        report: Takes the metrics of an epoch, with `epoch` (from 1) and `seconds`; it may
            block, and raises to end the training.
        metrics_file: CSV of all epochs, rewritten after each.
        saved: Takes the number of an epoch whose checkpoint is the last one, before the epoch is
            reported.
        fold: Which of several folds is trained, from 0. Epochs are then reported as counted over
            all folds, and the last one of a fold as its full number, also if it ended early, so
            that the folds of all trials end at the same epochs. The CSV has them as they are.
        fold_epochs: Epochs of a fold; None where there is one.
    """

    def __init__(
        self,
        report: Callable[[Mapping[str, float]], None],
        metrics_file: Path,
        saved: Callable[[int], None] | None = None,
        *,
        fold: int = 0,
        fold_epochs: int | None = None,
    ) -> None:
        self._report = report
        self._saved = saved
        self._metrics_file = metrics_file
        self._fold_epochs = fold_epochs
        self._epochs_before = fold * (fold_epochs or 0)
        self._history: list[dict[str, float]] = []
        self._reported = 0
        self._started = time.monotonic()
        self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The metrics of all epochs so far."""
        return {"history": [dict(row) for row in self._history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs of the checkpoint."""
        self._history = [named_now(row) for row in state_dict["history"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epochs that the checkpoint brought along."""
        self._report_new()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch before, just before its checkpoint is written."""
        self._note_epoch(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Report the epoch before, now that its checkpoint is on disk."""
        if batch_idx == 0:
            self._report_new()
            self._started = time.monotonic()
            self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the last epoch, just before its checkpoint is written."""
        self._note_epoch(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last epoch."""
        self._report_new(ended=True)

    def _note_epoch(self, trainer: Trainer) -> None:
        # at both hooks current_epoch counts the finished epochs
        if trainer.current_epoch > len(self._history):
            self._history.append(
                {
                    "epoch": trainer.current_epoch,
                    "seconds": time.monotonic() - self._started,
                    **_metrics(trainer),
                    RATE: self._learning_rate,
                }
            )

    def _report_new(self, *, ended: bool = False) -> None:
        if self._reported < len(self._history):
            self._write()
        while self._reported < len(self._history):
            self._reported += 1
            if self._saved is not None and self._reported == len(self._history):
                self._saved(self._reported)
            row, epoch = self._history[self._reported - 1], self._reported
            if ended and self._fold_epochs is not None and self._reported == len(self._history):
                epoch = self._fold_epochs
            self._report({**row, "epoch": self._epochs_before + epoch})

    def _write(self) -> None:
        """Rewrite the CSV, whole or not at all."""
        rows = self._history
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_durably(self._metrics_file, table.getvalue())


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(("train_", "val_")) or is_plugin(name)
    }
