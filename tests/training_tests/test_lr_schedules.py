from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, PolynomialLR

from training.config import ModelTrainingConfig, SchedulerName
from training.lr_schedules import LR_SCHEDULES, STEPPED_EACH_STEP, PlateauSchedule, get_scheduler

BY_EPOCH = sorted(set(LR_SCHEDULES) - {"plateau"})


def optimizer_of(learning_rate: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)


def step(optimizer: Any, scheduler: Any, metric: float | None = None) -> float:
    """The learning rate of an epoch or step, which is then ended."""
    rate = float(optimizer.param_groups[0]["lr"])
    optimizer.step()
    if isinstance(scheduler, PlateauSchedule):
        scheduler.step(metric)
    elif scheduler is not None:
        scheduler.step()
    return rate


def learning_rates(epochs: int, *, steps_per_epoch: int = 1, **fields: Any) -> list[float]:
    config = ModelTrainingConfig(**{"max_epochs": epochs, "learning_rate": 1.0, **fields})
    optimizer = optimizer_of(config.learning_rate)
    scheduler = get_scheduler(config, optimizer, steps_per_epoch)
    return [step(optimizer, scheduler, 0.0) for _ in range(epochs * steps_per_epoch)]


def torch_rates(scheduler: Any, steps: int) -> list[float]:
    return [step(scheduler.optimizer, scheduler) for _ in range(steps)]


def test_the_names_are_those_of_the_config() -> None:
    for name in LR_SCHEDULES:
        assert ModelTrainingConfig(scheduler=name).scheduler == name
    assert set(STEPPED_EACH_STEP) <= set(LR_SCHEDULES)


def test_none_is_constant() -> None:
    assert get_scheduler(ModelTrainingConfig(scheduler="none"), optimizer_of()) is None
    rates = learning_rates(5, scheduler="none", warmup_epochs=2)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_step_decays_every_few_epochs() -> None:
    rates = learning_rates(7, scheduler="step", step_size=3, lr_decay=0.5)
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])
    rates = learning_rates(7, scheduler="step", step_size=3, lr_decay=0.5, warmup_epochs=2)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 0.5, 0.5])


def test_exponential_passes_through_the_steps() -> None:
    rates = learning_rates(7, scheduler="exponential", step_size=3, lr_decay=0.5)
    assert rates[::3] == pytest.approx([1, 0.5, 0.25])
    optimizer = optimizer_of()
    same = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5 ** (1 / 3))
    assert rates == pytest.approx(torch_rates(same, 7))


def test_cosine_equals_torch() -> None:
    expected = torch_rates(CosineAnnealingLR(optimizer_of(), T_max=8), 8)
    assert learning_rates(8, scheduler="cosine") == pytest.approx(expected)


def test_cosine_with_warm_up() -> None:
    rates = learning_rates(10, scheduler="cosine", warmup_epochs=3)
    decay = [(1 + math.cos(math.pi * epoch / 7)) / 2 for epoch in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *decay])


def test_poly_equals_torch_and_is_nnunets_by_default() -> None:
    expected = torch_rates(PolynomialLR(optimizer_of(), total_iters=9, power=1.3), 9)
    assert learning_rates(9, scheduler="poly", poly_power=1.3) == pytest.approx(expected)
    nnunet = [1e-2 * (1 - epoch / 1000) ** 0.9 for epoch in range(50)]
    rates = learning_rates(50, scheduler="poly", max_epochs=1000, learning_rate=1e-2)
    assert rates == pytest.approx(nnunet)


@given(epochs=st.integers(1, 6), steps=st.integers(1, 9), peak=st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=60)
def test_one_cycle_equals_torch_at_every_step(epochs: int, steps: int, peak: float) -> None:
    total = epochs * steps
    # torch divides by the length of the rise
    assume(abs(peak * total - 1) > 0.01)
    cycle = OneCycleLR(
        optimizer_of(), max_lr=1.0, total_steps=total, pct_start=peak, cycle_momentum=False
    )
    # torch refuses the step after the last, which ends the training here
    expected = [*torch_rates(cycle, total - 1), cycle.get_last_lr()[0]]
    rates = learning_rates(
        epochs, steps_per_epoch=steps, scheduler="one_cycle", one_cycle_peak=peak
    )
    if peak * total > 1:
        assert rates == pytest.approx(expected)
    else:
        # torch lets a training without a rise begin above the peak's rate
        assert max(rates) <= 1 + 1e-9


def test_one_cycle_starts_after_the_warm_up() -> None:
    rates = learning_rates(6, steps_per_epoch=2, scheduler="one_cycle", warmup_epochs=1)
    assert rates[:2] == [0.5, 0.5]
    assert rates[2:] == learning_rates(5, steps_per_epoch=2, scheduler="one_cycle")


def test_wsd_is_constant_and_then_decays_by_one_minus_sqrt() -> None:
    rates = learning_rates(10, steps_per_epoch=2, scheduler="wsd", warmup_epochs=1)
    decay = [1 - math.sqrt(step / 4) for step in range(4)]
    assert rates == pytest.approx([0.5] * 2 + [1.0] * 14 + decay)
    assert learning_rates(1, steps_per_epoch=4, scheduler="wsd") == pytest.approx(
        [1 - math.sqrt(step / 4) for step in range(4)]
    )


@given(
    epochs=st.integers(2, 60),
    share=st.floats(0.05, 0.95),
    warmup=st.integers(0, 8),
    name=st.sampled_from(["wsd", "none", "step", "exponential"]),
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_a_training_that_is_ended_early_had_the_rates_of_a_shorter_one(
    epochs: int, share: float, warmup: int, name: SchedulerName, data: Any
) -> None:
    fields: dict[str, Any] = {
        "scheduler": name,
        "decay_share": share,
        "warmup_epochs": min(warmup, epochs - 1),
        "step_size": 3,
        "steps_per_epoch": 2,
    }
    at = data.draw(st.integers(0, epochs))
    config = ModelTrainingConfig(max_epochs=epochs, **fields)
    shorter = config.shortest_ending(at)
    assert at <= shorter <= epochs
    whole, ended = (learning_rates(count, **fields) for count in (epochs, shorter))
    assert ended[:at] == pytest.approx(whole[:at])
    if name == "wsd":
        assert shorter > at or shorter == epochs
        if fields["warmup_epochs"] < at <= config.stable_epochs:
            # one epoch less, and it would have decayed before
            assert ModelTrainingConfig(max_epochs=shorter - 1, **fields).stable_epochs < at


@pytest.mark.parametrize("name", ["poly", "cosine", "one_cycle", "my_schedules:own"])
def test_other_schedules_end_where_they_were_to_end(name: str) -> None:
    config = ModelTrainingConfig(scheduler=name, max_epochs=9)
    assert {config.shortest_ending(epoch) for epoch in range(10)} == {9}


def plateau_rates(values: list[float], **fields: Any) -> list[float]:
    config = ModelTrainingConfig(scheduler="plateau", learning_rate=1.0, **fields)
    optimizer = optimizer_of()
    scheduler = get_scheduler(config, optimizer)
    for value in values:
        step(optimizer, scheduler, value)
    return [float(rate) for rate in scheduler.get_last_lr()]  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["min", "max"])
@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=30), patience=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_plateau_equals_torch(mode: Any, values: list[float], patience: int) -> None:
    optimizer = optimizer_of()
    expected = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode=mode, factor=0.5, patience=patience, threshold_mode="abs", eps=0.0
    )
    for value in values:
        expected.step(value)
    found = plateau_rates(values, monitor_mode=mode, lr_decay=0.5, plateau_patience=patience)
    assert found == pytest.approx(expected.get_last_lr())


def test_plateau_watches_after_the_warm_up() -> None:
    rates = [
        plateau_rates([9, 8, 1, 1, 1][:epochs], plateau_patience=0, warmup_epochs=2)[0]
        for epochs in range(6)
    ]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.1, 0.01])


def saved_after(epochs: int, steps_per_epoch: int, **fields: Any) -> Any:
    """State of a scheduler, as a checkpoint has it, and the metric that plateau saw."""
    optimizer = optimizer_of()
    config = ModelTrainingConfig(**{"learning_rate": 1.0, **fields})
    scheduler = get_scheduler(config, optimizer, steps_per_epoch)
    for _ in range(epochs * steps_per_epoch):
        step(optimizer, scheduler, 0.0)
    return {"epoch": epochs} if scheduler is None else scheduler.state_dict()


def resumed_rates(state: Any, steps: int, steps_per_epoch: int, **fields: Any) -> list[float]:
    config = ModelTrainingConfig(**{"learning_rate": 1.0, **fields})
    optimizer = optimizer_of(config.learning_rate)
    scheduler = get_scheduler(config, optimizer, steps_per_epoch)
    if scheduler is not None:
        scheduler.load_state_dict(state)
    return [step(optimizer, scheduler, 0.0) for _ in range(steps)]


@pytest.mark.parametrize("name", sorted(LR_SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_resumed_schedule_goes_on(name: SchedulerName, warmup: int, epochs: int) -> None:
    steps = 3 if name in STEPPED_EACH_STEP else 1
    fields: dict[str, Any] = {
        "scheduler": name,
        "max_epochs": 8,
        "warmup_epochs": warmup,
        "step_size": 2,
        "plateau_patience": 0,
    }
    whole = learning_rates(8, steps_per_epoch=steps, **fields)
    state = saved_after(epochs, steps, **fields)
    assert resumed_rates(state, (8 - epochs) * steps, steps, **fields) == pytest.approx(
        whole[epochs * steps :]
    )


@pytest.mark.parametrize("before", sorted(LR_SCHEDULES))
@pytest.mark.parametrize("after", BY_EPOCH)
def test_a_resumed_schedule_is_that_of_the_new_config(
    before: SchedulerName, after: SchedulerName
) -> None:
    """Longer, with another learning rate and another scheduler: as if it had always been so."""
    state = saved_after(4, 3 if before in STEPPED_EACH_STEP else 1, scheduler=before, max_epochs=4)
    steps = 5 if after in STEPPED_EACH_STEP else 1
    fields: dict[str, Any] = {
        "scheduler": after,
        "max_epochs": 10,
        "learning_rate": 0.3,
        "warmup_epochs": 1,
        "step_size": 3,
    }
    whole = learning_rates(10, steps_per_epoch=steps, **fields)
    found = resumed_rates(state, 6 * steps, steps, **fields)
    assert found == pytest.approx(whole[4 * steps :])


def test_plateau_goes_on_from_another_schedule_with_nothing_seen() -> None:
    state = saved_after(4, 1, scheduler="cosine", max_epochs=10)
    found = resumed_rates(state, 4, 1, scheduler="plateau", max_epochs=10, plateau_patience=0)
    assert found == pytest.approx([1, 1, 0.1, 0.01])


def test_plateau_keeps_its_decays_with_a_new_factor_and_rate() -> None:
    state = saved_after(3, 1, scheduler="plateau", plateau_patience=0)
    assert state["reductions"] == 2
    found = resumed_rates(
        state, 1, 1, scheduler="plateau", plateau_patience=0, learning_rate=2.0, lr_decay=0.5
    )
    assert found == pytest.approx([0.5])
