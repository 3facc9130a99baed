"""Epochs whose monitored score is not defined: what training makes of them, and of divergence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.config import ModelTrainingConfig
from training.errors import TrainingDivergedError
from training.trainer import SegmentationTrainer

SHAPE = (4, 8, 8)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        yield


class Shy(nn.Module):
    """It does not learn, and finds a lesion in every voxel once its bias is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("bias", torch.tensor(-1.0))

    def forward(self, image: Tensor) -> Tensor:
        lesion = 0 * self.scale * image + self.bias
        return torch.cat([torch.zeros_like(lesion), lesion], dim=1)


class Finds(pl.Callback):
    """Lets the network find false lesions in some epochs, so that their Dice is 0."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network = pl_module.model
        assert isinstance(network, Shy)
        network.bias.fill_(1.0 if trainer.current_epoch in self.epochs else -1.0)


class Breaks(pl.Callback):
    """Makes the weights infinite after the last step of an epoch, whose loss is still finite."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.model.scale.fill_(torch.inf)


def cases(lesions: Sequence[bool]) -> list[dict[str, Tensor]]:
    found = []
    for number, lesion in enumerate(lesions):
        label = torch.zeros(SHAPE, dtype=torch.int64)
        label[1:3, 2:5, 2:5] = int(lesion)
        generator = torch.Generator().manual_seed(number)
        found.append({"image": torch.randn((1, *SHAPE), generator=generator), "label": label})
    return found


def trainer_of(folder: Path, *callbacks: pl.Callback, **values: Any) -> SegmentationTrainer:
    settings: dict[str, Any] = {
        "num_classes": 2,
        "patch_size": SHAPE,
        "max_epochs": 5,
        "learning_rate": 0.5,
        "optimizer": "sgd",
        "gpus": 0,
        "log_dir": folder / "logs",
        "checkpoint_dir": folder / "checkpoints",
    }
    config = ModelTrainingConfig(**{**settings, **values})
    train: DataLoader[Any] = DataLoader(cases([True]), batch_size=1)  # type: ignore[arg-type]
    healthy: DataLoader[Any] = DataLoader(cases([False, False]), batch_size=1)  # type: ignore[arg-type]
    return SegmentationTrainer(
        config, Shy(), train, healthy, callbacks=callbacks, progress_bar=False
    )


def epoch_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["epoch"])


def test_healthy_validation_cases_do_not_end_a_good_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(
        tmp_path, early_stopping_patience=1, scheduler="plateau", plateau_patience=0
    )
    with caplog.at_level(logging.WARNING, logger="training"):
        metrics = trainer.fit()
    assert trainer.lightning.current_epoch == 5
    assert metrics["val_dice"] != metrics["val_dice"]
    assert metrics["val_accuracy"] == 1.0
    assert caplog.text.count("val_dice is not defined at epoch") == 5
    # no epoch is the best, none lacks improvement
    assert not trainer.best_checkpoint.exists()
    assert epoch_of(trainer.last_checkpoint) == 5
    assert trainer.lightning.optimizers[0].param_groups[0]["lr"] == 0.5


def test_only_epochs_with_a_score_are_compared(tmp_path: Path) -> None:
    """Dice is undefined in epochs 0, 2 and 4, and 0 in epochs 1 and 3."""
    trainer = trainer_of(
        tmp_path,
        Finds([1, 3]),
        early_stopping_patience=2,
        scheduler="plateau",
        plateau_patience=0,
        lr_decay=0.1,
    )
    trainer.fit()
    assert trainer.lightning.current_epoch == 5
    # a checkpoint counts the epochs that are done: that of epoch 1 has two
    assert epoch_of(trainer.best_checkpoint) == 2
    # epoch 3 alone was no better than epoch 1
    assert trainer.lightning.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
    resumed = trainer_of(
        tmp_path,
        Finds([1, 3, 5]),
        early_stopping_patience=2,
        scheduler="plateau",
        plateau_patience=0,
        lr_decay=0.1,
        max_epochs=8,
    )
    resumed.fit(resume=True)
    # epoch 5 is the second one without improvement
    assert resumed.lightning.current_epoch == 6
    assert epoch_of(resumed.best_checkpoint) == 2


class Overflows(Precision):
    """As mixed precision with a scale that is too large: infinite gradients, and no step."""

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        return super().pre_backward(tensor, module) * torch.inf

    def optimizer_step(self, optimizer: Any, model: Any, closure: Any, **_: Any) -> None:
        closure()
        assert not all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_step_that_the_gradient_scaler_leaves_out_is_no_divergence(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, scheduler="none")
    trainer.lightning.strategy._precision_plugin = Overflows()
    trainer.fit()
    assert trainer.lightning.current_epoch == 5


def test_weights_that_are_not_finite_end_the_run_in_their_epoch(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"the weight model\.scale is inf at epoch 2"):
        trainer_of(tmp_path, Breaks()).fit()


def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """It is checked whatever is monitored: here a score that is not defined anyway."""
    trainer = trainer_of(tmp_path)
    broken = cases([False])
    broken[0]["image"][0, 0, 0, 0] = torch.nan
    trainer.val_loader = DataLoader(broken, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(TrainingDivergedError, match="val_loss is nan at epoch 1"):
        trainer.fit()
