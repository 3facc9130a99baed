"""Numbers as text: each kind of number has one format, wherever it is shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.study.statistics import Interval


def score(value: float) -> str:
    """A metric that trials are compared by, with four decimals.

    Example:
        >>> score(0.81236), score(float("nan"))
        ('0.8124', 'not defined')
    """
    return decimals(value, 4)


def decimals(value: float, places: int) -> str:
    """A number with a fixed number of decimals; `not defined` for NaN.

    Example:
        >>> decimals(3.14159, 2)
        '3.14'
    """
    return "not defined" if math.isnan(value) else f"{value:.{places}f}"


def difference(value: float) -> str:
    """A difference of two scores, with its sign.

    Example:
        >>> difference(0.0123)
        '+0.0123'
    """
    return f"{value:+.4f}"


def interval(bounds: Interval) -> str:
    """The bounds of an interval of scores."""
    return f"[{score(bounds.low)}, {score(bounds.high)}]"


def p_value(value: float) -> str:
    """A p-value with two digits.

    Example:
        >>> p_value(0.01234)
        '0.012'
    """
    return f"{value:.2g}"


def progress(epoch: int, max_epochs: int, folds: int = 1) -> str:
    """How far a trial has come.

    Args:
        epoch: The epoch that it trained last, counted over all folds.
        max_epochs: Epochs of a full training.
        folds: How many folds it trains on.

    Example:
        >>> progress(12, 27), progress(39, 27, 3)
        ('12/27', '12/27 of fold 2/3')
    """
    if folds == 1:
        return f"{epoch}/{max_epochs}"
    fold, before = divmod(max(epoch, 1) - 1, max_epochs)
    own = before + 1 if epoch else 0
    return f"{own}/{max_epochs} of fold {fold + 1}/{folds}"


def mean_of_folds(scores: Sequence[float]) -> str:
    """Mean of the folds' scores, with their standard deviation where there are several.

    Example:
        >>> mean_of_folds([0.8, 0.7, 0.75]), mean_of_folds([0.8])
        ('0.7500 ± 0.0500', '0.8000')
    """
    known = [each for each in scores if math.isfinite(each)]
    if not known:
        return ""
    spread = f" ± {score(statistics.stdev(known))}" if len(known) > 1 else ""
    return f"{score(statistics.mean(known))}{spread}"


def number_of(count: int, thing: str) -> str:
    """How many things, in words.

    Example:
        >>> number_of(1, "fold"), number_of(3, "fold")
        ('1 fold', '3 folds')
    """
    return f"{count} {thing}{'' if count == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent.

    Example:
        >>> share(3, 8)
        '38%'
    """
    return f"{part / whole:.0%}"


def times(larger: float, smaller: float) -> str:
    """How many times as large one number is as the other.

    Example:
        >>> times(90, 40)
        '2.2 times as many'
    """
    return f"{larger / smaller:.1f} times as many"


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`.

    Example:
        >>> duration(75), duration(3675)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def value(sampled: Any) -> str:
    """A value of a field: floats with three digits, null as YAML has it.

    Example:
        >>> value(0.00123456), value(None), value([64, 96])
        ('0.00123', 'null', '[64, 96]')
    """
    if sampled is None:
        return "null"
    return f"{sampled:.3g}" if isinstance(sampled, float) else str(sampled)


def exact(sampled: Any) -> str:
    """A value of a field with every digit, null as YAML has it.

    Example:
        >>> exact(0.00123456), exact(None)
        ('0.00123456', 'null')
    """
    return "null" if sampled is None else str(sampled)


def values(sampled: Mapping[str, Any]) -> str:
    """Sampled values on one line.

    Example:
        >>> values({"optimizer": "sgd", "momentum": 0.91234})
        'optimizer=sgd  momentum=0.912'
    """
    return "  ".join(f"{name}={value(each)}" for name, each in sampled.items())


def metric(number: float) -> str:
    """A metric of any kind, with four digits.

    Example:
        >>> metric(0.812361), metric(44650000.0)
        ('0.8124', '4.465e+07')
    """
    return f"{number:.4g}"


def tick(number: float) -> str:
    """A number at an axis of a picture, with three digits.

    Example:
        >>> tick(0.81236)
        '0.812'
    """
    return f"{number:.3g}"
