"""Lets the processes of one trial go on together after each epoch, or end together."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import distributed


class RankGate(Callback):
    """Keeps the further processes of a trial where its first one waits for the driver.

    The first one comes here when it may go on; when its trial must end, it says so with
    `end_others` instead. Both meet at the same places in every process, between two epochs.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on when the epochs of a checkpoint have been reported."""
        _agree(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on when the epoch before has been reported."""
        if batch_idx == 0:
            _agree(pl_module.device)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End when the last epoch has been reported."""
        _agree(pl_module.device)


class TrialEndedError(BaseException):
    """The first process has ended the trial; not an `Exception`, so that no handler catches it."""


def _agree(device: torch.device) -> None:
    """Wait for the first process.

    Raises:
        TrialEndedError: if it has ended the trial.
    """
    if not distributed.is_initialized():
        return
    goes_on = torch.ones(1, device=device)
    distributed.broadcast(goes_on, src=0)
    if not goes_on.item():
        raise TrialEndedError


def end_others(device: torch.device) -> None:
    """Tell the other processes, which wait, that the trial has ended."""
    distributed.broadcast(torch.zeros(1, device=device), src=0)
