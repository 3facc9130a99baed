"""Explore: how a trial that copied another one's weights varies its values."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.spec.space import Space

FACTORS = (0.8, 1.2)
"""Factors that a number is multiplied by (Jaderberg et al., 2017)."""

HELD = frozenset({"seed"})
"""Fields that are copied unchanged, since no value of them is better than another."""


def perturbed(
    space: Space,
    values: Mapping[str, Any],
    rng: random.Random,
    resample_probability: float,
    kept: Collection[str] = HELD,
) -> dict[str, Any]:
    """Values near others: the explore step of population based training.

    With `resample_probability` a value is drawn anew. Else a number is multiplied by one of
    `FACTORS`, by the other one at a bound of its domain, and moves a step at least; a choice
    among numbers moves to a neighbour; any other choice stays, for it has none. A field that
    comes into play through a choice is drawn.

    Args:
        space: The space.
        values: A point of it.
        rng: Random numbers.
        resample_probability: See above.
        kept: Fields that do not change.
    """
    explored: dict[str, Any] = {}
    for name, domain in space.items():
        if not space.active(name, explored):
            continue
        if name in kept and name in values:
            explored[name] = values[name]
        elif name not in values or rng.random() < resample_probability:
            explored[name] = domain.sample(rng)
        else:
            explored[name] = domain.explore(values[name], rng, FACTORS)
    return explored
