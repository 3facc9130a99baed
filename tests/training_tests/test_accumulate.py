"""Several batches an optimizer step: the step of one large batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.config import ModelTrainingConfig
from training.data import generate_phantom, get_dataloaders, prepare_dataset
from training.models import build_model
from training.trainer import SegmentationTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]

NETWORK: dict[str, Any] = {
    "model_name": "unet3d",
    "model_params": {"channels": [4, 8], "num_res_units": 1},
    "patch_size": (8, 8, 8),
    "gpus": 0,
}


class Notes(pl.Callback):
    """Weights, rate and what dropout would draw, after and in every batch."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.rates: list[float] = []
        self.drawn: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.drawn.append(float(torch.rand(1)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append([weight.detach().clone() for weight in pl_module.model.parameters()])
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(folder: Path, batch: int, items: int = 8, **fields: Any) -> tuple[Any, Notes]:
    values = {**NETWORK, "max_epochs": 2, "learning_rate": 0.02, "optimizer": "sgd", **fields}
    config = ModelTrainingConfig(
        log_dir=folder / "logs", checkpoint_dir=folder / "checkpoints", **values
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(items, 1, 8, 8, 8, generator=generator)
    data = [(image, (image[0] > 0.5).long() + (image[0] > 1).long()) for image in images]
    notes = Notes()
    trainer = SegmentationTrainer(
        config,
        build_model(config),
        DataLoader(data, batch_size=batch),  # type: ignore[arg-type]
        DataLoader(data[:1], batch_size=1),  # type: ignore[arg-type]
        callbacks=[notes],
        progress_bar=False,
    )
    trainer.fit()
    return trainer, notes


@pytest.mark.parametrize("scheduler", ["poly", "one_cycle"])
def test_four_batches_of_two_step_as_a_batch_of_eight(tmp_path: Path, scheduler: str) -> None:
    # cross-entropy and instance norms: a patch has no part in what its neighbours do
    fields = {"loss": "cross_entropy", "scheduler": scheduler, "gradient_clip": 0.1}
    whole, of_whole = train(tmp_path / "whole", 8, **fields)
    parts, of_parts = train(tmp_path / "parts", 2, accumulate=4, **fields)
    assert (len(of_whole.weights), len(of_parts.weights)) == (2, 8)
    for step in range(2):
        first = of_parts.weights[4 * step]
        for index in range(4 * step, 4 * step + 3):
            # nothing moves before the last batch of a step
            assert all(map(torch.equal, of_parts.weights[index], first))
        for one, other in zip(of_whole.weights[step], of_parts.weights[4 * step + 3], strict=True):
            torch.testing.assert_close(other, one)
    assert of_parts.rates[3::4] == of_whole.rates
    assert whole.lightning.global_step == parts.lightning.global_step == 2
    # each batch draws its own dropout, the first of a step as it did without accumulation
    assert len(set(of_parts.drawn)) == 8
    assert of_parts.drawn[::4] == of_whole.drawn


def test_the_average_of_the_weights_goes_by_steps(tmp_path: Path) -> None:
    trainer, notes = train(tmp_path, 2, accumulate=2, ema_decay=0.5)
    averaged = notes.weights[1]
    for count, index in enumerate((3, 5, 7), start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        averaged = [
            decay * mean + (1 - decay) * weight
            for mean, weight in zip(averaged, notes.weights[index], strict=True)
        ]
    for found, expected in zip(trainer.module.model.parameters(), averaged, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_rest_of_batches_ends_in_a_step(tmp_path: Path) -> None:
    trainer, notes = train(tmp_path, 2, items=6, accumulate=2)
    # two steps an epoch, of two batches and of one
    assert trainer.lightning.global_step == 4
    assert not all(map(torch.equal, notes.weights[1], notes.weights[2]))


def test_an_epoch_of_our_loaders_has_no_rest(tmp_path: Path) -> None:
    raw = generate_phantom(tmp_path / "raw", num_cases=6, seed=0)
    folder = prepare_dataset(raw, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    config = ModelTrainingConfig(data_dir=folder, **NETWORK, train_batch_size=2, accumulate=3)
    patches = {}
    for steps in (None, 4):
        for gpus in (0, 2):
            config = config.model_copy(update={"steps_per_epoch": steps, "gpus": gpus})
            patches[steps, gpus] = len(get_dataloaders(config)[0]) // max(gpus, 1)
    assert patches == {(None, 0): 3, (None, 2): 3, (4, 0): 12, (4, 2): 12}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_a_wrong_number_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="accumulate"):
        ModelTrainingConfig(accumulate=wrong)


def test_norms_see_each_batch_by_itself(tmp_path: Path) -> None:
    params = {**NETWORK["model_params"], "norm": "BATCH"}
    trainer, _ = train(tmp_path, 2, accumulate=4, model_params=params)
    norms = [part for part in trainer.module.model.modules() if isinstance(part, nn.BatchNorm3d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {8}  # type: ignore[arg-type]
