"""Trains as a user's script does, for tests that need processes of their own.

`python training_process.py RUNS.json` makes each run of the file's list in a forked process (or
in this one, with `"processes": true`, where Lightning starts this script once a rank). A run is
`{"config": {...}, "resume": bool, "kill_at_step": int | null, "test": checkpoint | null,
"result": file}`; what it measured is written to its result file, by rank 0, unless it was killed.
With `test` it trains nothing and tests that checkpoint.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import monai.inferers
import monai.losses
import monai.networks.nets
import monai.transforms  # noqa: F401  imported once, before the forks
import pytorch_lightning as pl
import torch

from training.config import ModelTrainingConfig
from training.data import get_dataloaders
from training.models import build_model
from training.trainer import SegmentationTrainer


class Watch(pl.Callback):
    """Notes loss, learning rate and epoch of every step; kills the process after one of them."""

    def __init__(self, kill_at_step: int | None) -> None:
        self.kill_at_step = kill_at_step
        self.steps: list[list[float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        self.steps.append([float(loss), self.rate, trainer.current_epoch])
        if trainer.global_step == self.kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(run: dict[str, Any]) -> None:
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    config = ModelTrainingConfig(**run["config"])
    watch = Watch(run.get("kill_at_step"))
    trainer = SegmentationTrainer(
        config,
        build_model(config),
        *get_dataloaders(config),
        callbacks=[watch],
        progress_bar=False,
    )
    metrics = {} if "test" in run else trainer.fit(resume=run.get("resume", False))
    weights = [float(weight.double().norm()) for weight in trainer.module.model.parameters()]
    metrics |= trainer.test(checkpoint=Path(run["test"]) if "test" in run else None)
    if trainer.lightning.is_global_zero:
        result = {"metrics": metrics, "steps": watch.steps, "weights": weights}
        Path(run["result"]).write_text(json.dumps(result))


def main() -> None:
    torch.set_num_threads(1)
    runs = json.loads(Path(sys.argv[1]).read_text())
    for run in runs:
        if run.get("processes"):
            train(run)
            continue
        process = multiprocessing.get_context("fork").Process(target=train, args=(run,))
        process.start()
        process.join()
        expected = -signal.SIGKILL if run.get("kill_at_step") else 0
        if process.exitcode != expected:
            sys.exit(f"a run ended with {process.exitcode}, not {expected}: {run}")


if __name__ == "__main__":
    main()
