"""How many trials share a GPU, by what they were measured to take of it."""

from __future__ import annotations

import pytest

from training.config import ModelTrainingConfig
from tuner.driver.gpu_fit import LOOSE, MOST, GpuFit, kind_of
from tuner.trial.memory import GpuUse

GIB = 2**30


def use(gib: float, busy: float | None = 0.1) -> GpuUse:
    return GpuUse(gib * GIB, 80 * GIB, busy)


def test_the_kind_of_a_trial_is_what_its_memory_and_speed_depend_on() -> None:
    config = ModelTrainingConfig()
    assert set(config.flat()) >= LOOSE
    for other in ({"learning_rate": 0.5}, {"max_epochs": 7}, {"seed": 3}, {"scheduler": "none"}):
        assert kind_of(config.model_copy(update=other)) == kind_of(config)
    for other in (
        {"patch_size": (8, 16, 16)},
        {"train_batch_size": 7},
        {"model_params": {"embed_dim": 12}},
        {"optimizer": "sgd"},
    ):
        assert kind_of(config.model_copy(update=other)) != kind_of(config)


@pytest.mark.parametrize(
    ("gib", "busy", "limit", "at_once"),
    [
        (10, 0.1, MOST, MOST),
        (25, 0.1, MOST, 2),
        (37, 0.1, MOST, 1),
        (10, 0.5, MOST, 2),
        (10, 0.51, MOST, 1),
        (10, 0.3, MOST, 3),
        (10, 0.0, MOST, MOST),
        # it does not tell
        (10, None, MOST, 2),
        (10, 0.1, 3, 3),
        (10, 0.1, 1, 1),
        # more than there is, by a wrong estimate of what CUDA takes
        (90, 0.1, MOST, 1),
    ],
)
def test_memory_and_time_limit_it(gib: float, busy: float | None, limit: int, at_once: int) -> None:
    fit = GpuFit(limit)
    assert (fit.at_once("a"), fit.most) == (1, 1)
    fit.alone("a", use(gib, busy), 10.0)
    assert (fit.at_once("a"), fit.most) == (at_once, at_once)
    assert fit.at_once("b") == 1


def test_the_largest_that_was_measured_of_a_kind_counts() -> None:
    fit = GpuFit()
    fit.alone("a", use(10), 10.0)
    fit.alone("a", use(30), 10.0)
    fit.alone("a", use(10), 10.0)
    assert fit.at_once("a") == 2
    fit.together("a", 2, use(37), 10.0)
    assert fit.at_once("a") == 1


def test_those_that_are_slower_together_share_no_more() -> None:
    fit = GpuFit()
    fit.alone("a", use(10), 10.0)
    # three epochs in 20 seconds, and not two
    fit.together("a", 3, use(10), 20.0)
    assert fit.at_once("a") == MOST
    # three in 29 instead of 30: not worth it
    fit.together("a", 3, use(10), 29.0)
    assert fit.at_once("a") == 2
    fit.together("a", 2, use(10), 30.0)
    assert fit.at_once("a") == 1


def test_those_of_a_kind_that_was_never_alone_are_not_called_slow() -> None:
    fit = GpuFit()
    fit.together("a", 2, use(10), 30.0)
    assert fit.at_once("a") == 1
    fit.alone("a", use(10), 20.0)
    assert fit.at_once("a") == MOST


def test_what_outgrew_its_part_has_a_larger_one() -> None:
    fit = GpuFit()
    fit.alone("a", use(10), 10.0)
    fit.outgrown("a", MOST)
    assert fit.at_once("a") == MOST - 1
    assert (
        fit.describe("a")
        == "it takes 10.0 of 80.0 GiB of a GPU's memory and keeps it busy for 10% of the time"
    )
