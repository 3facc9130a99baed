"""Points of a space as points of the unit cube, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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
            self._columns[name] = slice(start, start + domain.width)
            fields += [index] * domain.width
            start += domain.width
        self.fields = np.array(fields)
        self.size = start
        self._options = [
            self._columns[name] for name, domain in space.items() if domain.options is not None
        ]

    def field_names(self) -> list[str]:
        """Name of the field that each coordinate belongs to."""
        names = list(self._columns)
        return [names[field] for field in self.fields]

    def encode(self, values: Mapping[str, Any]) -> Float[ndarray, " d"]:
        """The vector of a point; coordinates of fields that take no part are in the middle."""
        vector = np.full(self.size, INACTIVE)
        for name, value in values.items():
            vector[self._columns[name]] = self._space.domains[name].to_unit(value)
        return vector

    def decode(self, vector: Float[ndarray, " d"]) -> dict[str, Any]:
        """The point that a vector comes nearest to, without fields that take no part."""
        values: dict[str, Any] = {}
        for name, domain in self._space.items():
            if self._space.active(name, values):
                values[name] = domain.from_unit(vector[self._columns[name]])
        return values

    def snapped(self, vectors: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Vectors rounded to points of the space, as `encode` gives them."""
        snapped: Float[ndarray, "n d"] = np.empty_like(vectors)
        places: dict[str, Any] = {}
        takes_part: dict[str, Any] = {}
        for name, domain in self._space.items():
            columns = self._columns[name]
            snapped[:, columns] = domain.snapped(vectors[:, columns])
            if domain.count is not None:
                places[name] = domain.places(vectors[:, columns])
            active = np.ones(len(snapped), dtype=bool)
            for parent, accepted in self._space.conditions.get(name, {}).items():
                known = [self._space.domains[parent].place(value) for value in accepted]
                active &= takes_part[parent] & np.isin(places[parent], known)
            takes_part[name] = active
            snapped[~active, columns] = INACTIVE
        return snapped

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
        return self.snapped(moved)


def _reflect(coordinates: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """Coordinates reflected at 0 and 1 into the interval between."""
    folded: Float[ndarray, "..."] = np.mod(coordinates, 2.0)
    folded[folded > 1.0] = 2.0 - folded[folded > 1.0]
    return folded
