"""The interface of a domain of a search space, which the rest of the search uses.

A new domain of ours is a class with these members and one entry in `tuner.spec.domains.DOMAINS`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray


@dataclass(frozen=True)
class Distribution:
    """How a domain is sampled, for samplers such as Optuna's.

    Attributes:
        choices: Stored values of a choice, None for numbers from `low` to `high`.
        low: The least number.
        high: The greatest number.
        step: Distance of neighbouring numbers, None for a continuous domain.
        log: Whether the logarithm of the number is uniform.
        whole: Whether numbers are whole.
    """

    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    step: float | None = None
    log: bool = False
    whole: bool = False


@runtime_checkable
class Domain(Protocol):
    """The values that a field of a space may take."""

    kind: ClassVar[str]
    """Its name in a search space."""

    may_be_condition: ClassVar[bool]
    """Whether its values are exact, so that `when` can name them."""

    @classmethod
    def read(cls, arguments: Any) -> Self:
        """The domain of what a search space gives under `kind`.

        Raises:
            ValueError: if that is not a domain.
        """
        ...

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space: `kind` and its arguments."""
        ...

    def describe(self) -> str:
        """The domain in one line."""
        ...

    def sample(self, rng: random.Random) -> Any:
        """A value drawn at random."""
        ...

    def contains(self, value: Any) -> bool:
        """Whether `value` is one of its values."""
        ...

    def nearest(self, value: Any) -> Any:
        """Its value that comes nearest to any other one."""
        ...

    def examples(self) -> tuple[Any, ...]:
        """Values that must all be valid for the domain to be."""
        ...

    def place_of(self, example: Any) -> tuple[str | int, ...]:
        """Path of an example below the domain in a search space, for error messages."""
        ...

    def grid(self, points: int) -> list[Any]:
        """Values at even distances, `points` of them at most; all options of a choice."""
        ...

    def explore(self, value: Any, rng: random.Random, factors: tuple[float, float]) -> Any:
        """A value near another one, for population based training.

        Args:
            value: One of its values.
            rng: Random numbers.
            factors: What a number is multiplied by, down or up.
        """
        ...

    def stored(self, value: Any) -> Any:
        """A value as Optuna and files keep it."""
        ...

    def restored(self, stored: Any) -> Any:
        """The value that `stored` was made of."""
        ...

    @property
    def distribution(self) -> Distribution:
        """How stored values are sampled."""
        ...

    @property
    def options(self) -> tuple[Any, ...] | None:
        """Values without an order that it chooses from; None for numbers."""
        ...

    @property
    def count(self) -> int | None:
        """How many values it has; None for a continuous domain."""
        ...

    @property
    def width(self) -> int:
        """How many coordinates of the unit cube hold a value."""
        ...

    def to_unit(self, value: Any) -> Float[ndarray, " w"]:
        """The coordinates of a value."""
        ...

    def from_unit(self, coordinates: Float[ndarray, " w"]) -> Any:
        """The value at coordinates, which may lie a bit outside the unit cube."""
        ...

    def places(self, coordinates: Float[ndarray, "n w"]) -> Int[ndarray, " n"]:
        """Which of its `count` values lie at coordinates, from 0."""
        ...

    def place(self, value: Any) -> int:
        """Which of its `count` values a value is, from 0."""
        ...

    def snapped(self, coordinates: Float[ndarray, "n w"]) -> Float[ndarray, "n w"]:
        """Coordinates as `to_unit` gives them of the values that lie there."""
        ...


def is_number(value: Any) -> bool:
    """Whether a value is a number; a boolean is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_kind(one: Any, other: Any) -> bool:
    """True and 1 are equal in Python, but not in a search space."""
    return isinstance(one, bool) == isinstance(other, bool)
