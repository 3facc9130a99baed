from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.bundle.member import load_checkpoint
from training.config import ModelTrainingConfig
from training.ema import WeightMovingAverage
from training.models import build_model
from training.trainer import SegmentationTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]


class Notes(pl.Callback):
    """The weights after every step, and those that each epoch was validated with."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []
        self.validated: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.steps.append([weight.detach().clone() for weight in pl_module.model.parameters()])

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.validated.append([weight.clone() for weight in pl_module.model.parameters()])


def trainer_of(folder: Path, **fields: Any) -> tuple[SegmentationTrainer, Notes]:
    config = ModelTrainingConfig(
        **{
            "model_name": "unet3d",
            "model_params": {"channels": [4, 8], "num_res_units": 1, "norm": "BATCH"},
            "patch_size": (8, 8, 8),
            "max_epochs": 3,
            "learning_rate": 0.05,
            "gpus": 0,
            "log_dir": folder / "logs",
            "checkpoint_dir": folder / "checkpoints",
            **fields,
        }
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 8, 8, 8, generator=generator)
    items = [(image, (image[0] > 0.5).long() + (image[0] > 1).long()) for image in images]
    notes = Notes()
    train, cases = DataLoader(items, batch_size=2), DataLoader(items[:1], batch_size=1)  # type: ignore[arg-type, var-annotated]
    trainer = SegmentationTrainer(
        config, build_model(config), train, cases, cases, callbacks=[notes], progress_bar=False
    )
    return trainer, notes


def average(steps: list[list[Tensor]], decay: float) -> list[Tensor]:
    """The moving average in closed form, one step after the other."""
    averaged = steps[0]
    for count, weights in enumerate(steps[1:], start=1):
        d = min(decay, (1 + count) / (10 + count))
        averaged = [d * a + (1 - d) * w for a, w in zip(averaged, weights, strict=True)]
    return averaged


def assert_equal(found: Any, expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_the_average_is_validated_tested_and_exported(tmp_path: Path, decay: float) -> None:
    trainer, notes = trainer_of(tmp_path, ema_decay=decay, monitor="val_loss", monitor_mode="min")
    trainer.fit()
    assert len(notes.steps) == 6
    averages = [average(notes.steps[:steps], decay) for steps in (2, 4, 6)]
    for validated, expected in zip(notes.validated, averages, strict=True):
        assert_equal(validated, expected)
    assert not torch.allclose(averages[-1][0], notes.steps[-1][0])
    # what is left when the training has ended, and what a checkpoint gives to an export
    assert_equal(trainer.module.model.parameters(), averages[-1])
    exported = load_checkpoint(trainer.last_checkpoint, trainer.config)
    assert_equal(exported.model.parameters(), averages[-1])
    checkpoint = torch.load(trainer.last_checkpoint, weights_only=True)
    weights = dict(trainer.module.named_parameters())
    current = [checkpoint["current_model_state"][name] for name in weights]
    assert_equal(current, notes.steps[-1])

    fitted = trainer.lightning.callback_metrics["val_loss"]
    tested = trainer.test(checkpoint=trainer.last_checkpoint)
    assert tested["test_loss"] == pytest.approx(float(fitted), rel=1e-5)


def test_training_itself_is_the_same_with_an_average(tmp_path: Path) -> None:
    plain, without = trainer_of(tmp_path / "a")
    averaged, with_average = trainer_of(tmp_path / "b", ema_decay=0.9)
    plain.fit()
    averaged.fit()
    for one, other in zip(without.steps, with_average.steps, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_average_begins_with_the_weights_of_a_plain_checkpoint(tmp_path: Path) -> None:
    plain, before = trainer_of(tmp_path, max_epochs=1)
    plain.fit()
    resumed, notes = trainer_of(tmp_path, max_epochs=2, ema_decay=0.9)
    resumed.fit(resume=True)
    assert_equal(notes.validated[-1], average(notes.steps, 0.9))
    assert not torch.allclose(notes.steps[0][0], before.steps[0][0])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
def test_without_it_a_run_goes_on_from_the_average(tmp_path: Path) -> None:
    averaged, _ = trainer_of(tmp_path, max_epochs=1, ema_decay=0.9)
    averaged.fit()
    expected = copy.deepcopy(list(averaged.module.model.parameters()))
    resumed, notes = trainer_of(tmp_path, max_epochs=2, learning_rate=1e-12, optimizer="sgd")
    resumed.fit(resume=True)
    assert_equal(notes.steps[0], [weight.detach() for weight in expected])


def test_counts_of_a_batch_norm_are_copied(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, ema_decay=0.9)
    trainer.fit()
    norms = [part for part in trainer.module.model.modules() if isinstance(part, nn.BatchNorm3d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == 6 for norm in norms)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_wrong_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, but got {decay}"):
        WeightMovingAverage(decay)
