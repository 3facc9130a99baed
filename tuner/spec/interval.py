"""Domains of numbers between two bounds."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from tuner.spec.domain import Distribution, is_number

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray


@dataclass(frozen=True)
class Interval(ABC):
    """Base of the numbers from `low` to `high`, which have one coordinate.

    Raises:
        ValueError: unless `low < high`.
    """

    low: float
    high: float

    kind: ClassVar[str]
    may_be_condition: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    @classmethod
    def read(cls, arguments: Any) -> Self:
        """The domain of a list of its bounds (and its step)."""
        names = [field.name for field in fields(cls)]
        if not isinstance(arguments, list) or len(arguments) != len(names):
            raise ValueError(f"{cls.kind} needs [{', '.join(names)}], but got {arguments!r}")
        return cls(*arguments)

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        return {self.kind: [getattr(self, field.name) for field in fields(self)]}

    @abstractmethod
    def nearest(self, value: Any) -> float:
        """The number of the domain that comes nearest; the middle if there is none."""

    @property
    @abstractmethod
    def distribution(self) -> Distribution:
        """How its numbers are sampled."""

    @abstractmethod
    def at(self, position: float) -> float:
        """The number at a position from 0 to 1."""

    def place_of(self, example: Any) -> tuple[str | int, ...]:
        """Where the bounds are written."""
        return (self.kind,)

    def stored(self, value: Any) -> Any:
        """The number itself."""
        return value

    def restored(self, stored: Any) -> Any:
        """The number itself."""
        return stored

    @property
    def count(self) -> int | None:
        """How many numbers there are; None for a continuous domain."""
        return None

    @property
    def options(self) -> None:
        """Numbers have an order."""
        return

    @property
    def width(self) -> int:
        """One coordinate."""
        return 1

    def grid(self, points: int) -> list[Any]:
        """Numbers at even distances from bound to bound."""
        number = points if self.count is None else min(points, self.count)
        positions = map(float, np.linspace(0, 1, number))
        return list(dict.fromkeys(self.at(position) for position in positions))

    def explore(self, value: Any, rng: random.Random, factors: tuple[float, float]) -> Any:
        """The number times one of the factors, at least a step away."""
        factor = rng.choice(factors)
        # at a bound of its domain a number can only go the other way
        both = [self._moved(value, by) for by in (factor, sum(factors) - factor)]
        return next((moved for moved in both if moved != value), value)

    def _moved(self, value: float, factor: float) -> float:
        moved = self.nearest(value * factor)
        step = self.distribution.step
        if moved == value and step is not None:
            moved = self.nearest(value + math.copysign(step, factor - 1))
        return moved

    def from_unit(self, coordinates: Float[ndarray, " w"]) -> Any:
        """The number at a coordinate."""
        return self.at(min(max(float(coordinates[0]), 0.0), 1.0))

    def places(self, coordinates: Float[ndarray, "n w"]) -> Int[ndarray, " n"]:
        """Which of the numbers lie at coordinates."""
        assert self.count is not None
        clipped = np.clip(coordinates[:, 0], 0.0, 1.0)
        places: Int[ndarray, " n"] = np.minimum(clipped * self.count, self.count - 1).astype(int)
        return places

    def place(self, value: Any) -> int:
        """Which of the numbers a number is."""
        step = self.distribution.step
        assert step is not None
        place: int = round((value - self.low) / step)
        return place

    def snapped(self, coordinates: Float[ndarray, "n w"]) -> Float[ndarray, "n w"]:
        """Coordinates in the middle of the shares that the numbers have of the unit interval."""
        if self.count is None:
            clipped: Float[ndarray, "n w"] = np.clip(coordinates, 0.0, 1.0)
            return clipped
        middles: Float[ndarray, "n w"] = (self.places(coordinates)[:, None] + 0.5) / self.count
        return middles


@dataclass(frozen=True)
class Uniform(Interval):
    """A number from `low` to `high`, each as likely as another.

    Raises:
        ValueError: unless `low < high`.
    """

    kind: ClassVar[str] = "uniform"

    def nearest(self, value: Any) -> float:
        """The number between the bounds that comes nearest; the middle if there is none."""
        if not is_number(value):
            value = self._middle()
        return min(max(float(value), self.low), self.high)

    def _middle(self) -> float:
        return (self.low + self.high) / 2

    def contains(self, value: Any) -> bool:
        """Whether `value` lies between the bounds."""
        return is_number(value) and self.low <= value <= self.high

    def sample(self, rng: random.Random) -> float:
        """A number between the bounds."""
        return rng.uniform(self.low, self.high)

    def examples(self) -> tuple[Any, ...]:
        """The bounds, and a number between them that is not whole."""
        return self.low, self.high, self.low + (self.high - self.low) / math.pi

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low:g} to {self.high:g}"

    @property
    def distribution(self) -> Distribution:
        """A number between the bounds."""
        return Distribution(low=self.low, high=self.high)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """Its share of the way from bound to bound."""
        return np.array([(value - self.low) / (self.high - self.low)])

    def at(self, position: float) -> float:
        """The number at a share of the way from bound to bound."""
        return self.low + position * (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number from `low` to `high` whose logarithm is uniform.

    Raises:
        ValueError: unless `0 < low < high`.
    """

    kind: ClassVar[str] = "loguniform"

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

    @property
    def distribution(self) -> Distribution:
        """A number whose logarithm is uniform."""
        return Distribution(low=self.low, high=self.high, log=True)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """Its share of the way from bound to bound on a logarithmic scale."""
        low, high = math.log(self.low), math.log(self.high)
        return np.array([(math.log(value) - low) / (high - low)])

    def at(self, position: float) -> float:
        """The number at a share of the way on a logarithmic scale."""
        low, high = math.log(self.low), math.log(self.high)
        return min(max(math.exp(low + position * (high - low)), self.low), self.high)


@dataclass(frozen=True)
class RandInt(Interval):
    """A whole number from `low` to `high`, both included.

    Raises:
        ValueError: unless both are whole numbers and `low < high`.
    """

    low: int
    high: int

    kind: ClassVar[str] = "randint"
    may_be_condition: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(
                f"{self.kind} needs whole numbers, but got (low={self.low}, high={self.high})"
            )
        object.__setattr__(self, "low", int(self.low))
        object.__setattr__(self, "high", int(self.high))

    def nearest(self, value: Any) -> int:
        """The whole number between the bounds that comes nearest; the middle if there is none."""
        if not is_number(value):
            value = (self.low + self.high) / 2
        return int(min(max(round(value), self.low), self.high))

    def contains(self, value: Any) -> bool:
        """Whether `value` is a whole number between the bounds."""
        return is_number(value) and float(value).is_integer() and self.low <= value <= self.high

    def sample(self, rng: random.Random) -> int:
        """A whole number, each as likely as another."""
        return rng.randint(self.low, self.high)

    def examples(self) -> tuple[Any, ...]:
        """The bounds."""
        return self.low, self.high

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low} to {self.high}, whole"

    @property
    def count(self) -> int:
        """How many whole numbers there are."""
        return self.high - self.low + 1

    @property
    def distribution(self) -> Distribution:
        """A whole number between the bounds."""
        return Distribution(low=self.low, high=self.high, step=1, whole=True)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """The middle of its share of the unit interval."""
        return np.array([(value - self.low + 0.5) / self.count])

    def at(self, position: float) -> int:
        """The whole number whose share of the unit interval the position lies in."""
        return self.low + min(int(position * self.count), self.count - 1)


@dataclass(frozen=True)
class LogRandInt(RandInt):
    """A whole number from `low` to `high`, both included, whose logarithm is uniform.

    A number n has the share of the logarithmic scale from n - 1/2 to n + 1/2, as with Optuna.

    Raises:
        ValueError: unless both are whole numbers and `1 <= low < high`.
    """

    kind: ClassVar[str] = "lograndint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low < 1:
            raise ValueError(
                f"lograndint needs low >= 1, but got (low={self.low}, high={self.high})"
            )

    def nearest(self, value: Any) -> int:
        """The whole number between the bounds that comes nearest; the middle if there is none."""
        return super().nearest(value if is_number(value) else math.sqrt(self.low * self.high))

    def sample(self, rng: random.Random) -> int:
        """A whole number, small ones more often than large ones."""
        return self.at(rng.random())

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low} to {self.high}, whole, logarithmic"

    @property
    def distribution(self) -> Distribution:
        """A whole number whose logarithm is uniform."""
        return Distribution(low=self.low, high=self.high, step=1, log=True, whole=True)

    def grid(self, points: int) -> list[Any]:
        """Numbers at even distances on a logarithmic scale; all of them where they are few."""
        if self.count <= points:
            return list(range(self.low, self.high + 1))
        return super().grid(points)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """The middle of its share of the unit interval."""
        return np.array([self._middles(np.array(value))])

    def at(self, position: float) -> int:
        """The whole number whose share of the unit interval the position lies in."""
        return self.low + int(self.places(np.array([[position]]))[0])

    def places(self, coordinates: Float[ndarray, "n w"]) -> Int[ndarray, " n"]:
        """Which of the numbers lie at coordinates."""
        first, last = self._ends
        numbers = np.exp(first + np.clip(coordinates[:, 0], 0.0, 1.0) * (last - first))
        places: Int[ndarray, " n"] = np.clip(
            np.floor(numbers + 0.5).astype(int) - self.low, 0, self.count - 1
        )
        return places

    def snapped(self, coordinates: Float[ndarray, "n w"]) -> Float[ndarray, "n w"]:
        """Coordinates in the middle of the shares that the numbers have of the unit interval."""
        middles: Float[ndarray, "n w"] = self._middles(self.low + self.places(coordinates))[:, None]
        return middles

    @property
    def _ends(self) -> tuple[float, float]:
        """Logarithms of the ends of the scale."""
        return math.log(self.low - 0.5), math.log(self.high + 0.5)

    def _middles(self, numbers: Int[ndarray, "..."]) -> Float[ndarray, "..."]:
        """The middle of the share of the unit interval that each number has."""
        first, last = self._ends
        middles: Float[ndarray, "..."] = (
            (np.log(numbers - 0.5) + np.log(numbers + 0.5)) / 2 - first
        ) / (last - first)
        return middles


@dataclass(frozen=True)
class QUniform(Interval):
    """A number from `low` to `high` in steps of `step`, each as likely as another.

    Raises:
        ValueError: unless `low < high`, `step > 0`, and the steps end at `high`.
    """

    step: float

    kind: ClassVar[str] = "quniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.step) or self.step <= 0:
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

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self.steps + 1

    def nearest(self, value: Any) -> float:
        """The step that comes nearest; the middle one if there is none."""
        if not is_number(value):
            value = (self.low + self.high) / 2
        step = round((value - self.low) / self.step)
        return self._value(min(max(step, 0), self.steps))

    def _value(self, step: int) -> float:
        """The value of a step, from 0."""
        # the last step may come out a rounding error above the bound
        return min(self.low + self.step * step, self.high)

    def contains(self, value: Any) -> bool:
        """Whether `value` is one of the steps."""
        if not is_number(value) or not self.low - 1e-9 <= value <= self.high + 1e-9:
            return False
        steps = (value - self.low) / self.step
        return bool(abs(steps - round(steps)) <= 1e-6)

    def sample(self, rng: random.Random) -> float:
        """One of the steps."""
        return self._value(rng.randint(0, self.steps))

    def examples(self) -> tuple[Any, ...]:
        """The bounds, and the first step."""
        return self.low, self.high, self.low + self.step

    def describe(self) -> str:
        """The domain in one line."""
        return f"{self.low:g} to {self.high:g} in steps of {self.step:g}"

    @property
    def distribution(self) -> Distribution:
        """One of the steps."""
        return Distribution(low=self.low, high=self.high, step=self.step)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """The middle of its share of the unit interval."""
        share = (value - self.low + self.step / 2) / (self.high - self.low + self.step)
        return np.array([share])

    def at(self, position: float) -> float:
        """The step whose share of the unit interval the position lies in."""
        return self._value(min(int(position * self.count), self.steps))


def _check_bounds(low: Any, high: Any) -> None:
    for name, value in (("low", low), ("high", high)):
        if not is_number(value) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, but got {value!r}")
    if not low < high:
        raise ValueError(f"`low < high` must hold, but got (low={low:g}, high={high:g})")
