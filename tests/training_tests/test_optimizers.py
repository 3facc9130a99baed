from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from training.config import ModelTrainingConfig
from training.lr_schedules import LR_SCHEDULES
from training.optimizers import OPTIMIZERS, get_optimizer


def build(**settings: Any) -> tuple[Any, Any]:
    return get_optimizer(ModelTrainingConfig(**settings), nn.Linear(2, 2))


def test_the_names_are_those_of_the_config() -> None:
    for name in OPTIMIZERS:
        assert ModelTrainingConfig(optimizer=name).optimizer == name


@pytest.mark.parametrize("scheduler", sorted(LR_SCHEDULES))
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
        optimizer="sgd",
        momentum=0.95,
        nesterov=True,
        weight_decay=0.02,
        learning_rate=0.3,
        scheduler="none",
    )
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.95, True)
    assert (group["weight_decay"], group["lr"]) == (0.02, 0.3)
    assert scheduler is None
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimizer, _ = build(optimizer=name, weight_decay=0.02)
        assert type(optimizer) is kind
        assert optimizer.param_groups[0]["weight_decay"] == 0.02


def test_frozen_parameters_stay_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer, _ = get_optimizer(ModelTrainingConfig(), model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in model[1].parameters()}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameter that requires a gradient"):
        get_optimizer(ModelTrainingConfig(), model)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("decay_all", [False, True])
def test_norms_and_biases_decay_only_if_asked(optimizer: Any, decay_all: bool) -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.PReLU())
    config = ModelTrainingConfig(
        optimizer=optimizer, weight_decay=0.1, decay_norms_and_biases=decay_all
    )
    built, _ = get_optimizer(config, model)
    decay = {id(p): g["weight_decay"] for g in built.param_groups for p in g["params"]}
    expected = 0.1 if decay_all else 0.0
    assert decay.pop(id(model[0].weight)) == 0.1
    assert len(decay) == 4
    assert set(decay.values()) == {expected}


def trained(**fields: Any) -> tuple[Any, nn.Module]:
    """An optimizer that has made a few steps, and its model."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    built, _ = get_optimizer(ModelTrainingConfig(**fields), model)
    for _ in range(3):
        built.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        built.step()
    return built, model


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_loaded_state_brings_moments_and_no_settings(optimizer: Any) -> None:
    saved, model = trained(optimizer=optimizer, learning_rate=0.1, weight_decay=0.3, momentum=0.8)
    config = ModelTrainingConfig(
        optimizer=optimizer,
        learning_rate=0.02,
        weight_decay=0.4,
        momentum=0.7,
        scheduler="poly",
        decay_norms_and_biases=True,
    )
    resumed, _ = get_optimizer(config, model)
    resumed.load_state_dict(saved.state_dict())
    for group in resumed.param_groups:
        assert group["lr"] == 0.02
        assert group["weight_decay"] == 0.4
        assert group.get("momentum", 0.7) == 0.7
    for parameter in model.parameters():
        for name, moment in saved.state[parameter].items():
            assert torch.equal(torch.as_tensor(resumed.state[parameter][name]), moment), name
    resumed.step()


@pytest.mark.parametrize(("before", "after"), [("sgd", "adam"), ("adamw", "sgd")])
def test_moments_of_another_optimizer_begin_anew(before: Any, after: Any) -> None:
    saved, model = trained(optimizer=before)
    resumed, _ = get_optimizer(ModelTrainingConfig(optimizer=after, learning_rate=0.5), model)
    resumed.load_state_dict(saved.state_dict())
    assert not resumed.state
    model(torch.randn(4, 3)).sum().backward()
    resumed.step()
    assert resumed.param_groups[0]["lr"] == 0.5
