"""Which checkpoint of a training is used: its last one, or its best."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from tuner.study.chosen_checkpoint import WINDOW, ChosenCheckpoint, choose_checkpoint

EPOCHS = 40


def training(folder: Path, *, last: bool = True, **config: object) -> Path:
    """The folder of a training with checkpoints and a config."""
    values = {"scheduler": "wsd", "max_epochs": EPOCHS, "ema_decay": None, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "best.ckpt").touch()
    if last:
        (folder / "last.ckpt").touch()
    return folder


def curve(seed: int = 0, noise: float = 0.02, drop: float = 0.0) -> dict[int, float]:
    """A score that comes close to 0.8, with noise; from the middle on it loses `drop` an epoch."""
    rng = np.random.default_rng(seed)
    return {
        epoch: 0.8 * (1 - math.exp(-epoch / 6))
        - drop * max(0, epoch - EPOCHS // 2)
        + noise * float(rng.normal())
        for epoch in range(1, EPOCHS + 1)
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_lucky_epoch_is_not_taken_for_a_better_one(tmp_path: Path, seed: int, mode: str) -> None:
    sign = 1 if mode == "max" else -1
    scores = {epoch: sign * score for epoch, score in curve(seed).items()}
    best = max(scores, key=lambda epoch: sign * scores[epoch])
    chosen = choose_checkpoint(training(tmp_path), scores, mode)
    if best == EPOCHS:
        tmp_path /= "best.ckpt"
    else:
        tmp_path /= "last.ckpt"
    assert chosen == ChosenCheckpoint(tmp_path, EPOCHS, best)


@pytest.mark.parametrize("seed", range(8))
def test_a_training_that_overfits_ends_at_its_best_epoch(tmp_path: Path, seed: int) -> None:
    scores = curve(seed, drop=0.02)
    chosen = choose_checkpoint(training(tmp_path), scores, "max")
    assert chosen is not None
    assert (chosen.path, chosen.epoch) == (tmp_path / "best.ckpt", chosen.best)
    assert chosen.epoch < 30


@pytest.mark.parametrize(
    "config",
    [
        {"scheduler": "none"},
        {"scheduler": "step"},
        # stopped early, or cut off
        {"max_epochs": EPOCHS + 1},
    ],
)
def test_a_rate_that_has_not_come_down_makes_no_last_epoch(
    tmp_path: Path, config: dict[str, object]
) -> None:
    scores = {**curve(), 30: 0.9}
    chosen = choose_checkpoint(training(tmp_path, **config), scores, "max")
    assert chosen == ChosenCheckpoint(tmp_path / "best.ckpt", 30, 30)


def test_averaged_weights_need_no_rate_that_comes_down(tmp_path: Path) -> None:
    folder = training(tmp_path, scheduler="none", ema_decay=0.99)
    chosen = choose_checkpoint(folder, {**curve(), 30: 0.9}, "max")
    assert chosen == ChosenCheckpoint(tmp_path / "last.ckpt", EPOCHS, 30)


def test_without_what_it_needs_the_best_is_taken(tmp_path: Path) -> None:
    best = ChosenCheckpoint(tmp_path / "best.ckpt", 30, 30)
    folder = training(tmp_path, last=False)
    assert choose_checkpoint(folder, {**curve(), 30: 0.9}, "max") == best
    training(folder)
    # its score is not defined
    assert choose_checkpoint(folder, {**curve(), 30: 0.9, EPOCHS: math.nan}, "max") == best
    short = 2 * WINDOW - 1
    training(folder, max_epochs=short)
    few = {epoch: 0.5 - 0.01 * epoch for epoch in range(1, short + 1)}
    assert choose_checkpoint(folder, few, "max") == ChosenCheckpoint(tmp_path / "best.ckpt", 1, 1)
    (folder / "best.ckpt").unlink()
    assert choose_checkpoint(folder, few, "max") is None
    assert choose_checkpoint(folder, {1: math.nan}, "max") is None
