"""Names of what is logged, which must not be those of hyperparameters."""

from __future__ import annotations

from training.config import ModelTrainingConfig

RATE = "lr"
"""The learning rate that an epoch begins with. `learning_rate` is what the config asks for."""

EPOCH = "step"
"""By this name Lightning takes a logged number for the x axis of all that is logged with it."""


def best_name(monitor: str) -> str:
    """Name of the best value so far of the monitored metric."""
    return f"best_{monitor}"


def check_logged_name(name: str, monitor: str) -> None:
    """Check that a metric can have a name.

    Args:
        name: The name.
        monitor: The monitored metric.

    Raises:
        ValueError: if it is that of a config field, or of something that is logged already.
    """
    if name in ModelTrainingConfig.model_fields:
        raise ValueError(
            f"the metric {name!r} cannot be logged: the config has a field of that name, and "
            f"tables and plots could not tell them apart; log it as e.g. {'logged_' + name!r}"
        )
    if name in {RATE, EPOCH, best_name(monitor)}:
        raise ValueError(
            f"the metric {name!r} cannot be logged: the training logs something by that name "
            f"already; log it as e.g. {'my_' + name!r}"
        )
