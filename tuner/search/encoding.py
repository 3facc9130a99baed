"""Points of a space as points of the unit cube, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.spec.domains import Choice, Domain, LogUniform, QUniform, RandInt, Uniform, value_at
from tuner.spec.space import Space

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

INACTIVE = 0.5
"""Coordinate of a field that takes no part in a point."""


class SpaceEncoding:
    """Maps points of a space to vectors in the unit cube.

    A number is one coordinate on its own (possibly logarithmic) scale; a choice is one
    coordinate an option, 1 for the chosen one.

    Args:
        space: The space.

    Attributes:
        fields: Index of the field that each coordinate belongs to.
        size: Number of coordinates.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._columns: dict[str, slice] = {}
        start = 0
        fields: list[int] = []
        for index, (name, domain) in enumerate(space.items()):
            width = len(domain.values) if isinstance(domain, Choice) else 1
            self._columns[name] = slice(start, start + width)
            fields += [index] * width
            start += width
        self.fields = np.array(fields)
        self.size = start
        self._options = [
            self._columns[name] for name, domain in space.items() if isinstance(domain, Choice)
        ]

    def field_names(self) -> list[str]:
        """Name of the field that each coordinate belongs to."""
        names = list(self._columns)
        return [names[field] for field in self.fields]

    def encode(self, values: Mapping[str, Any]) -> Float[ndarray, " d"]:
        """The vector of a point; coordinates of fields that take no part are in the middle."""
        vector = np.full(self.size, INACTIVE)
        for name, value in values.items():
            vector[self._columns[name]] = _to_unit(self._space.domains[name], value)
        return vector

    def decode(self, vector: Float[ndarray, " d"]) -> dict[str, Any]:
        """The point that a vector comes nearest to, without fields that take no part."""
        values: dict[str, Any] = {}
        for name, domain in self._space.items():
            if self._space.active(name, values):
                values[name] = value_at(domain, vector[self._columns[name]])
        return values

    def settled(self, vectors: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Vectors as `encode` gives them: options 0 or 1, steps met, no field out of place."""
        settled: Float[ndarray, "n d"] = np.clip(vectors, 0.0, 1.0)
        options: dict[str, Any] = {}
        takes_part: dict[str, Any] = {}
        for name, domain in self._space.items():
            columns = self._columns[name]
            count = _count(domain)
            if isinstance(domain, Choice):
                options[name] = vectors[:, columns].argmax(axis=1)
                settled[:, columns] = np.eye(count)[options[name]]
            elif count:
                options[name] = np.minimum(settled[:, columns.start] * count, count - 1).astype(int)
                settled[:, columns.start] = (options[name] + 0.5) / count
            active = np.ones(len(settled), dtype=bool)
            for parent, accepted in self._space.conditions.get(name, {}).items():
                known = [_option(self._space.domains[parent], value) for value in accepted]
                active &= takes_part[parent] & np.isin(options[parent], known)
            takes_part[name] = active
            settled[~active, columns] = INACTIVE
        return settled

    def neighbours(
        self, vector: Float[ndarray, " d"], spread: float, number: int, rng: np.random.Generator
    ) -> Float[ndarray, "n d"]:
        """Points near another: numbers moved by a normal step, options changed now and then.

        Args:
            vector: The point to start from.
            spread: Standard deviation of a step, as a share of the domain.
            number: How many points.
            rng: Random numbers.
        """
        moved = _reflect(vector + rng.normal(0, spread, (number, self.size)))
        for columns in self._options:
            moved[:, columns] = vector[columns]
            # one option in as many as there are fields, so that a point differs in about one
            changed = rng.uniform(size=number) < 1 / len(self._columns)
            moved[changed, columns] = rng.uniform(size=(changed.sum(), vector[columns].size))
        return self.settled(moved)


def _count(domain: Domain) -> int:
    """How many values a domain has, 0 for a continuous one."""
    match domain:
        case Choice():
            return len(domain.values)
        case RandInt():
            return domain.high - domain.low + 1
        case QUniform():
            return domain.steps + 1
        case _:
            return 0


def _option(domain: Domain, value: Any) -> int:
    """Place of a value among those of its domain, which conditions may name."""
    if isinstance(domain, Choice):
        return domain.labels.index(domain.label_of(value))
    assert isinstance(domain, RandInt)
    return int(value) - domain.low


def _reflect(coordinates: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Coordinates thrown back into [0, 1] at its walls."""
    folded: Float[ndarray, "..."] = np.mod(coordinates, 2.0)
    folded[folded > 1.0] = 2.0 - folded[folded > 1.0]
    return folded


def _to_unit(domain: Domain, value: Any) -> Any:
    match domain:
        case Choice():
            chosen = domain.labels.index(domain.label_of(value))
            return np.eye(len(domain.values))[chosen]
        case LogUniform():
            low, high = math.log(domain.low), math.log(domain.high)
            return (math.log(value) - low) / (high - low)
        case Uniform():
            return (value - domain.low) / (domain.high - domain.low)
        case QUniform():
            return (value - domain.low + domain.step / 2) / (domain.high - domain.low + domain.step)
        case RandInt():
            return (value - domain.low + 0.5) / (domain.high - domain.low + 1)
