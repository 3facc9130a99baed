"""Learning-rate schedules by the name that a config gives them.

A schedule is a function of the epoch: `learning_rate` times a factor. A linear warm-up comes
before any of them, (e + 1) / (w + 1) in epoch e of w, and the schedule has the epochs that are
left. Only `plateau` looks at more than the epoch, at the monitored metric.

A checkpoint holds the epoch and what plateau has seen, not the rates. So a resumed run has the
learning rate that its config gives for that epoch, also when `learning_rate`, `scheduler`,
`max_epochs` or any other setting has been changed in between.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from training.registry import LR_SCHEDULES, call, is_plugin

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

__all__ = [
    "LR_SCHEDULES",
    "EpochSchedule",
    "PlateauSchedule",
    "get_scheduler",
    "is_stepped_each_step",
]

Scheduler = LRScheduler | ReduceLROnPlateau

ONE_CYCLE_START = 1 / 25
"""Share of the peak that one_cycle begins with, torch's default."""

ONE_CYCLE_END = ONE_CYCLE_START / 1e4
"""Share of the peak that one_cycle ends with, torch's default."""


class EpochSchedule(LambdaLR):
    """The learning rate as a function of the epoch.

    Args:
        optimizer: Its groups' learning rates are those of factor 1.
        factor: Factor of the learning rate at an epoch, from 0, whole or not.
        steps_per_epoch: How often it is stepped in an epoch.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Callable[[float], float], steps_per_epoch: int = 1
    ) -> None:
        self.steps_per_epoch = steps_per_epoch
        super().__init__(optimizer, lambda step: factor(step / steps_per_epoch))

    def state_dict(self) -> dict[str, Any]:
        """The next epoch."""
        return {"epoch": self.last_epoch / self.steps_per_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the learning rates that the optimizer has at the epoch of a checkpoint."""
        self.last_epoch = round(state_dict["epoch"] * self.steps_per_epoch)
        factor = self.lr_lambdas[0](self.last_epoch)
        self._last_lr = [rate * factor for rate in self.base_lrs]
        _set_rates(self.optimizer, self._last_lr)


class PlateauSchedule(ReduceLROnPlateau):
    """Decay by a factor when the monitored metric stops improving, after a warm-up.

    Args:
        optimizer: Its groups' learning rates are those before any decay.
        warmup_epochs: Epochs of warm-up, in which the metric is not watched.
        mode: Whether a greater or a smaller metric is better.
        factor: Factor of a decay.
        patience: Epochs without improvement before a decay.
    """

    def __init__(
        self, optimizer: Optimizer, *, warmup_epochs: int, mode: Any, factor: float, patience: int
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.reductions = 0
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        # torch's relative threshold takes standing still for progress below zero
        super().__init__(
            optimizer, mode=mode, factor=factor, patience=patience, threshold_mode="abs"
        )
        self._apply()

    def step(  # type: ignore[override]  # as torch's own is
        self, metrics: SupportsFloat, epoch: int | None = None
    ) -> None:
        """End an epoch with its metric; an undefined one is ignored."""
        if self.last_epoch < self.warmup_epochs or not math.isfinite(metrics):
            self.last_epoch += 1
        else:
            super().step(metrics)
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The next epoch, the best metric, and the reductions so far."""
        return {
            "epoch": self.last_epoch,
            "best": self.best,
            "num_bad_epochs": self.num_bad_epochs,
            "reductions": self.reductions,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; one of another schedule has seen no metric."""
        self.last_epoch = round(state_dict["epoch"])
        self.best = state_dict.get("best", self.best)
        self.num_bad_epochs = state_dict.get("num_bad_epochs", 0)
        self.reductions = state_dict.get("reductions", 0)
        self._apply()

    def _reduce_lr(self, epoch: int) -> None:
        self.reductions += 1

    def _apply(self) -> None:
        warm = _warmup(self.last_epoch, self.warmup_epochs)
        factor = warm * self.factor**self.reductions
        self._last_lr = [rate * factor for rate in self.base_rates]
        _set_rates(self.optimizer, self._last_lr)


class _OwnRates(LRScheduler):
    """A scheduler of torch's in a plug-in, which goes on with the learning rate of its config.

    Many of torch's multiply the rate that they find in the optimizer, and a resumed optimizer has
    the rate of its config.
    """

    steps_per_epoch: int

    def state_dict(self) -> dict[str, Any]:
        """Torch's state, and the epoch that comes next, for schedules of ours."""
        return {**super().state_dict(), "epoch": self.last_epoch / self.steps_per_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; of another schedule it has the epoch alone."""
        rates = list(getattr(self, "base_lrs", []))
        if "_last_lr" not in state_dict:
            if isinstance(self, ReduceLROnPlateau):
                # it has seen no metric
                return
            with warnings.catch_warnings():
                # that the optimizer has made no step
                warnings.simplefilter("ignore", UserWarning)
                for _ in range(round(state_dict["epoch"] * self.steps_per_epoch)):
                    self.step()
            return
        steps = self.steps_per_epoch
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "epoch"})
        self.steps_per_epoch = steps
        if rates:
            shares = [
                own / saved if saved else 1.0
                for own, saved in zip(rates, self.base_lrs, strict=True)
            ]
            self._last_lr = [s * rate for s, rate in zip(shares, self._last_lr, strict=True)]
            self.base_lrs = rates
        _set_rates(self.optimizer, self._last_lr)


def _with_own_rates(scheduler: Scheduler | None, steps_per_epoch: int) -> None:
    """Let a scheduler that resumes as torch's do go on with the learning rate of its config."""
    if not isinstance(scheduler, LRScheduler):
        return
    kind = type(scheduler)
    if kind.load_state_dict.__module__.startswith("torch."):
        scheduler.__class__ = type(kind.__name__, (_OwnRates, kind), {})
        scheduler.steps_per_epoch = steps_per_epoch  # type: ignore[attr-defined]


def _set_rates(optimizer: Optimizer, rates: list[Any]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _warmup(epoch: float, warmup_epochs: int) -> float:
    return (int(epoch) + 1) / (warmup_epochs + 1) if epoch < warmup_epochs else 1.0


def _after_warmup(
    config: ModelTrainingConfig,
    optimizer: Optimizer,
    decay: Callable[[float, int], float],
    steps_per_epoch: int = 1,
) -> Scheduler:
    """Warm up, then the factor `decay(epoch, epochs)` of the epochs that are left."""
    warmup = config.warmup_epochs
    left = config.max_epochs - warmup

    def factor(epoch: float) -> float:
        if epoch < warmup:
            return _warmup(epoch, warmup)
        return decay(epoch - warmup, left)

    return EpochSchedule(optimizer, factor, steps_per_epoch)


def no_scheduler(
    config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int
) -> Scheduler | None:
    """A constant learning rate; None without a warm-up."""
    if not config.warmup_epochs:
        return None
    return _after_warmup(config, optimizer, lambda epoch, epochs: 1.0)


def step(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Decay by `lr_decay` every `step_size` epochs."""
    return _after_warmup(
        config, optimizer, lambda epoch, epochs: config.lr_decay ** (epoch // config.step_size)
    )


def exponential(
    config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int
) -> Scheduler:
    """Decay a little every epoch, by `lr_decay` in `step_size` epochs."""
    return _after_warmup(
        config, optimizer, lambda epoch, epochs: config.lr_decay ** (epoch / config.step_size)
    )


def plateau(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Decay by `lr_decay` when the monitored metric stops improving."""
    return PlateauSchedule(
        optimizer,
        warmup_epochs=config.warmup_epochs,
        mode=config.monitor_mode,
        factor=config.lr_decay,
        patience=config.plateau_patience,
    )


def cosine(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Half a cosine down to 0 at `max_epochs` (Loshchilov and Hutter, 2017)."""
    return _after_warmup(
        config,
        optimizer,
        lambda epoch, epochs: (1 + math.cos(math.pi * min(1.0, epoch / epochs))) / 2,
    )


def poly(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """The factor (1 - epoch / max_epochs) ** poly_power, as in nnU-Net with 0.9."""
    return _after_warmup(
        config,
        optimizer,
        lambda epoch, epochs: float((1 - min(1.0, epoch / epochs)) ** config.poly_power),
    )


def one_cycle(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Up from 1/25 to `learning_rate`, then down to 4e-6 of it, by cosines, every step.

    Smith and Topin, 2018, as torch's `OneCycleLR` with `cycle_momentum=False`: the momentum
    stays what its field says.
    """

    def factor(epoch: float, epochs: int) -> float:
        last = epochs * steps_per_epoch - 1
        peak = config.one_cycle_peak * epochs * steps_per_epoch - 1
        at = min(round(epoch * steps_per_epoch), last)
        if at < peak:
            return _cosine_between(ONE_CYCLE_START, 1.0, at / peak)
        # a training of a step or two may begin behind its peak
        return _cosine_between(1.0, ONE_CYCLE_END, (at - peak) / (last - peak))

    return _after_warmup(config, optimizer, factor, steps_per_epoch)


def wsd(config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int) -> Scheduler:
    """Warm-up, stable, decay: constant, then 1 - sqrt down to 0 in the last `decay_share`.

    Hu et al., 2024 (MiniCPM, arXiv 2404.06395); the form of the decay is the best of those that
    Haegele et al., 2024 (arXiv 2405.18392) compare. Until it decays the schedule is the same for
    every `max_epochs`, so a training can be ended at any time by a shorter one
    (`ModelTrainingConfig.shortest_ending`).
    """
    stable = config.stable_epochs - config.warmup_epochs

    def factor(epoch: float, epochs: int) -> float:
        if epoch <= stable:
            return 1.0
        return 1 - math.sqrt(min(1.0, (epoch - stable) / (epochs - stable)))

    return _after_warmup(config, optimizer, factor, steps_per_epoch)


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


STEPPED_EACH_STEP = ("one_cycle", "wsd")
"""Schedules of ours that are stepped after every optimizer step; the others once an epoch."""


def is_stepped_each_step(name: str) -> bool:
    """Whether a schedule is stepped after every optimizer step, rather than once an epoch.

    A plug-in says so by an attribute `each_step = True` of its function.
    """
    return name in STEPPED_EACH_STEP or (
        is_plugin(name) and bool(getattr(LR_SCHEDULES.resolve(name), "each_step", False))
    )


def get_scheduler(
    config: ModelTrainingConfig, optimizer: Optimizer, steps_per_epoch: int = 1
) -> Scheduler | None:
    """The scheduler of a config, None for a constant learning rate.

    Args:
        config: Names the scheduler and its settings.
        optimizer: Its learning rates are set to those of the first epoch.
        steps_per_epoch: How often the scheduler is stepped in an epoch, where
            `is_stepped_each_step`.
    """
    schedule = LR_SCHEDULES.resolve(config.scheduler)
    scheduler: Scheduler | None = call(
        schedule,
        config.scheduler,
        config=config,
        optimizer=optimizer,
        steps_per_epoch=steps_per_epoch,
    )
    _with_own_rates(scheduler, steps_per_epoch if is_stepped_each_step(config.scheduler) else 1)
    return scheduler
