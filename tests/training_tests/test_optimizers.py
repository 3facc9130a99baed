from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.config import ModelTrainingConfig, OptimizerName, SchedulerName
from training.optimizers import OPTIMIZERS, SCHEDULERS, get_optimizer


def build(**settings: Any) -> tuple[Any, Any]:
    return get_optimizer(ModelTrainingConfig(**settings), nn.Linear(2, 2))


def learning_rates(epochs: int, **settings: Any) -> list[float]:
    optimizer, scheduler = build(max_epochs=epochs, learning_rate=1.0, **settings)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_names_are_those_of_the_config() -> None:
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))
    assert set(SCHEDULERS) == set(get_args(SchedulerName))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_pair_lowers_a_loss(optimizer: str, scheduler: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    inputs = torch.randn(32, 4)
    config = ModelTrainingConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        scheduler=scheduler,  # type: ignore[arg-type]
        learning_rate=0.05,
        max_epochs=40,
    )
    built, schedule = get_optimizer(config, model)
    losses = []
    for _ in range(40):
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        losses.append(loss.item())
        built.zero_grad()
        loss.backward()
        built.step()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(loss.item())
        elif schedule is not None:
            schedule.step()
    assert losses[-1] < 0.7 * losses[0]


def test_settings_arrive() -> None:
    optimizer, scheduler = build(
        optimizer="sgd", momentum=0.95, nesterov=True, weight_decay=0.02, learning_rate=0.3
    )
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.95, True)
    assert (group["weight_decay"], group["lr"]) == (0.02, 0.3)
    assert scheduler is None
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimizer, _ = build(optimizer=name, weight_decay=0.02)
        assert type(optimizer) is kind
        assert optimizer.param_groups[0]["weight_decay"] == 0.02


def test_step() -> None:
    rates = learning_rates(7, scheduler="step", step_size=3, lr_decay=0.5)
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])


def test_cosine_with_warm_up() -> None:
    rates = learning_rates(10, scheduler="cosine", warmup_epochs=3)
    decay = [(1 + math.cos(math.pi * epoch / 7)) / 2 for epoch in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *decay])


def test_cosine_equals_torch() -> None:
    optimizer, _ = build(learning_rate=1.0)
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_cosine.step()
    assert learning_rates(8, scheduler="cosine") == pytest.approx(expected)


def test_poly_equals_torch() -> None:
    optimizer, _ = build(learning_rate=1.0)
    torch_poly = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=9, power=0.9)
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_poly.step()
    assert learning_rates(9, scheduler="poly", poly_power=0.9) == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_plateau_follows_the_monitored_metric(mode: str, sign: int) -> None:
    optimizer, scheduler = build(
        scheduler="plateau",
        plateau_patience=1,
        lr_decay=0.1,
        learning_rate=1.0,
        monitor_mode=mode,
    )
    rates = []
    for value in (1, 2, 3, 3, 3, 3):
        scheduler.step(sign * value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1])


def test_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer, _ = get_optimizer(ModelTrainingConfig(), model)
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert held == {id(parameter) for parameter in model[1].parameters()}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameter that requires a gradient"):
        get_optimizer(ModelTrainingConfig(), model)
