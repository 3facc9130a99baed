"""A domain without an order: one of several values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from tuner.spec.domain import Distribution, is_number, same_kind

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray


@dataclass(frozen=True)
class Choice:
    """One of several values.

    A value that is not a plain number, text or boolean, such as a list of class weights, is
    known to the searcher by a label: its name, if the values were given by name, or its text.

    Attributes:
        values: What may be chosen.
        names: A name for each value, None to label each by itself.

    Raises:
        ValueError: if there is nothing to choose from, or a value comes twice.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...] | None = None

    kind: ClassVar[str] = "choice"
    may_be_condition: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice needs at least one value, but got []")
        labels = [repr(label) for label in self.labels]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise ValueError(f"choice has {', '.join(sorted(twice))} more than once")

    @classmethod
    def read(cls, arguments: Any) -> Self:
        """The choice of a list of values, or of values by name."""
        if isinstance(arguments, dict):
            return cls(tuple(arguments.values()), tuple(arguments))
        if not isinstance(arguments, list):
            raise ValueError(f"choice needs a list of values, but got {arguments!r}")
        return cls(tuple(arguments))

    @property
    def labels(self) -> list[Any]:
        """The label of each value, which the searcher sees."""
        if self.names is not None:
            return list(self.names)
        return [value if _is_plain(value) else str(value) for value in self.values]

    def restored(self, stored: Any) -> Any:
        """The value of a label."""
        return self.values[self.labels.index(stored)]

    def stored(self, value: Any) -> Any:
        """The label of a value.

        Raises:
            ValueError: if the value may not be chosen.
        """
        return self.labels[self.place(value)]

    def place(self, value: Any) -> int:
        """Which of the values it is.

        Raises:
            ValueError: if the value may not be chosen.
        """
        for place, known in enumerate(self.values):
            if _same(value, known):
                return place
        raise ValueError(f"{value!r} is not one of {self.describe()}")

    def nearest(self, value: Any) -> Any:
        """`value` if it may be chosen, else the first option."""
        return value if self.contains(value) else self.values[0]

    def contains(self, value: Any) -> bool:
        """Whether `value` may be chosen."""
        return any(_same(value, known) for known in self.values)

    def sample(self, rng: random.Random) -> Any:
        """A value, each as likely as another."""
        return rng.choice(self.values)

    def examples(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def place_of(self, example: Any) -> tuple[str | int, ...]:
        """Where a value is written: by its name or its place in the list."""
        place = self.place(example)
        return self.kind, self.names[place] if self.names is not None else place

    def grid(self, points: int) -> list[Any]:
        """All values."""
        return list(self.values)

    def explore(self, value: Any, rng: random.Random, factors: tuple[float, float]) -> Any:
        """A neighbour among numbers; the value itself where some are not numbers."""
        ordered = sorted(option for option in self.values if is_number(option))
        if len(ordered) < len(self.values):
            return value
        place = ordered.index(value) + rng.choice((-1, 1))
        return ordered[min(max(place, 0), len(ordered) - 1)]

    def describe(self) -> str:
        """The domain in one line."""
        return " | ".join(str(label) for label in self.labels)

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        if self.names is not None:
            return {self.kind: dict(zip(self.names, self.values, strict=True))}
        return {self.kind: list(self.values)}

    @property
    def distribution(self) -> Distribution:
        """A choice of the labels."""
        return Distribution(choices=tuple(self.labels))

    @property
    def options(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def width(self) -> int:
        """One coordinate a value: 1 for the chosen one."""
        return len(self.values)

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """1 for the value, 0 for the others."""
        coordinates: Float[ndarray, " w"] = np.eye(self.width)[self.place(value)]
        return coordinates

    def from_unit(self, coordinates: Float[ndarray, " w"]) -> Any:
        """The value of the greatest coordinate."""
        return self.values[int(np.argmax(coordinates))]

    def places(self, coordinates: Float[ndarray, "n w"]) -> Int[ndarray, " n"]:
        """The places of the greatest coordinates."""
        places: Int[ndarray, " n"] = coordinates.argmax(axis=1)
        return places

    def snapped(self, coordinates: Float[ndarray, "n w"]) -> Float[ndarray, "n w"]:
        """1 for the greatest coordinate, 0 for the others."""
        snapped: Float[ndarray, "n w"] = np.eye(self.width)[self.places(coordinates)]
        return snapped


def _same(value: Any, known: Any) -> bool:
    """Whether two values are one; NaN is itself, though it does not equal itself."""
    return value is known or (value == known and same_kind(value, known))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
