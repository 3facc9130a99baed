"""Domains of a search space: what values a field may take."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One of several values.

    A value that is no plain number, text or boolean, such as a list of class weights, is
    known to the searcher by a label: its name, if the values were given by name, or its text.

    Attributes:
        values: What may be chosen.
        names: A name for each value, None to label each by itself.

    Raises:
        ValueError: if there is nothing to choose from, or a value comes twice.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice needs at least one value, but got []")
        labels = [repr(label) for label in self.labels]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise ValueError(f"choice has {', '.join(sorted(twice))} more than once")

    @property
    def labels(self) -> list[Any]:
        """What the searcher sees for each value."""
        if self.names is not None:
            return list(self.names)
        return [value if _is_plain(value) else str(value) for value in self.values]

    def value_of(self, label: Any) -> Any:
        """The value that a label stands for."""
        return self.values[self.labels.index(label)]

    def nearest(self, value: Any) -> Any:
        """`value` if it may be chosen, else the first option."""
        return value if self.contains(value) else self.values[0]

    def label_of(self, value: Any) -> Any:
        """The label of a value.

        Raises:
            ValueError: if the value may not be chosen.
        """
        for label, known in zip(self.labels, self.values, strict=True):
            if value == known and same_kind(value, known):
                return label
        raise ValueError(f"{value!r} is none of {self.describe()}")

    def contains(self, value: Any) -> bool:
        """Whether `value` may be chosen."""
        return any(value == known and same_kind(value, known) for known in self.values)

    def sample(self, rng: random.Random) -> Any:
        """A value, each as likely as another."""
        return rng.choice(self.values)

    def examples(self) -> tuple[Any, ...]:
        """Values that must all be valid for the domain to be."""
        return self.values

    def describe(self) -> str:
        """The domain in one line."""
        return " | ".join(str(label) for label in self.labels)

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        if self.names is not None:
            return {"choice": dict(zip(self.names, self.values, strict=True))}
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class Uniform:
    """A number from `low` to `high`, each as likely as another.

    Raises:
        ValueError: unless `low < high`.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    def nearest(self, value: Any) -> float:
        """The number between the bounds that comes nearest; the middle for no number."""
        if not _is_number(value):
            value = self._middle()
        return min(max(float(value), self.low), self.high)

    def _middle(self) -> float:
        return (self.low + self.high) / 2

    def contains(self, value: Any) -> bool:
        """Whether `value` lies between the bounds."""
        return _is_number(value) and self.low <= value <= self.high

    def sample(self, rng: random.Random) -> float:
        """A number between the bounds."""
        return rng.uniform(self.low, self.high)

    def examples(self) -> tuple[Any, ...]:
        """The bounds, and a number between them that is not whole."""
        return self.low, self.high, self.low + (self.high - self.low) / math.pi

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low:g} to {self.high:g}"

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        return {"uniform": [self.low, self.high]}


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number from `low` to `high` whose logarithm is uniform.

    Raises:
        ValueError: unless `0 < low < high`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(
                f"loguniform needs low > 0, but got (low={self.low:g}, high={self.high:g})"
            )

    def _middle(self) -> float:
        return math.sqrt(self.low * self.high)

    def sample(self, rng: random.Random) -> float:
        """A number between the bounds."""
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low:g} to {self.high:g}, logarithmic"

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        return {"loguniform": [self.low, self.high]}


@dataclass(frozen=True)
class RandInt:
    """A whole number from `low` to `high`, both included.

    Raises:
        ValueError: unless both are whole numbers and `low < high`.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(
                f"randint needs whole numbers, but got (low={self.low}, high={self.high})"
            )
        object.__setattr__(self, "low", int(self.low))
        object.__setattr__(self, "high", int(self.high))

    def nearest(self, value: Any) -> int:
        """The whole number between the bounds that comes nearest; the middle for no number."""
        if not _is_number(value):
            value = (self.low + self.high) / 2
        return int(min(max(round(value), self.low), self.high))

    def contains(self, value: Any) -> bool:
        """Whether `value` is a whole number between the bounds."""
        return _is_number(value) and float(value).is_integer() and self.low <= value <= self.high

    def sample(self, rng: random.Random) -> int:
        """A whole number, each as likely as another."""
        return rng.randint(self.low, self.high)

    def examples(self) -> tuple[Any, ...]:
        """The bounds."""
        return self.low, self.high

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low} to {self.high}, whole"

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        return {"randint": [self.low, self.high]}


@dataclass(frozen=True)
class QUniform:
    """A number from `low` to `high` in steps of `step`, each as likely as another.

    Raises:
        ValueError: unless `low < high`, `step > 0`, and the steps end at `high`.
    """

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if not _is_number(self.step) or self.step <= 0:
            raise ValueError(f"quniform needs step > 0, but got step={self.step!r}")
        steps = (self.high - self.low) / self.step
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            reached = self.low + self.step * max(1, round(steps))
            raise ValueError(
                f"steps of {self.step:g} from {self.low:g} do not end at high={self.high:g}: "
                f"choose high={reached:g} or another step"
            )

    @property
    def steps(self) -> int:
        """Steps from `low` to `high`."""
        return round((self.high - self.low) / self.step)

    def nearest(self, value: Any) -> float:
        """The step that comes nearest; the middle one for no number."""
        if not _is_number(value):
            value = (self.low + self.high) / 2
        step = round((value - self.low) / self.step)
        return self.at(min(max(step, 0), self.steps))

    def at(self, step: int) -> float:
        """The value of a step, from 0."""
        # the last step may come out a rounding error above the bound
        return min(self.low + self.step * step, self.high)

    def contains(self, value: Any) -> bool:
        """Whether `value` is one of the steps."""
        if not _is_number(value) or not self.low - 1e-9 <= value <= self.high + 1e-9:
            return False
        steps = (value - self.low) / self.step
        return bool(abs(steps - round(steps)) <= 1e-6)

    def sample(self, rng: random.Random) -> float:
        """One of the steps."""
        return self.at(rng.randint(0, self.steps))

    def examples(self) -> tuple[Any, ...]:
        """The bounds, and the first step."""
        return self.low, self.high, self.low + self.step

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low:g} to {self.high:g} in steps of {self.step:g}"

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        return {"quniform": [self.low, self.high, self.step]}


Domain = Choice | Uniform | LogUniform | RandInt | QUniform

DOMAINS: dict[str, type[Domain]] = {
    "choice": Choice,
    "uniform": Uniform,
    "loguniform": LogUniform,
    "randint": RandInt,
    "quniform": QUniform,
}
"""Domains by the name that a search space gives them."""


def _check_bounds(low: Any, high: Any) -> None:
    for name, value in (("low", low), ("high", high)):
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but got {value!r}")
    if not low < high:
        raise ValueError(f"`low < high` must hold, but got (low={low:g}, high={high:g})")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def same_kind(one: Any, other: Any) -> bool:
    """True and 1 are equal in Python, but not in a search space."""
    return isinstance(one, bool) == isinstance(other, bool)


def value_at(domain: Domain, coordinates: Any) -> Any:
    """The value of a domain at coordinates of the unit cube, which may lie a bit outside."""
    coordinates = np.atleast_1d(coordinates)
    if isinstance(domain, Choice):
        return domain.values[int(np.argmax(coordinates))]
    unit = min(max(float(coordinates[0]), 0.0), 1.0)
    match domain:
        case LogUniform():
            low, high = math.log(domain.low), math.log(domain.high)
            return min(max(math.exp(low + unit * (high - low)), domain.low), domain.high)
        case Uniform():
            return domain.low + unit * (domain.high - domain.low)
        case QUniform():
            return domain.at(min(int(unit * (domain.steps + 1)), domain.steps))
        case RandInt():
            span = domain.high - domain.low
            return domain.low + min(int(unit * (span + 1)), span)
