"""How a trial that took over another one's weights varies its values."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tuner.spec.domains import Choice, QUniform, RandInt, Uniform

if TYPE_CHECKING:
    from tuner.spec.domains import Domain
    from tuner.spec.space import Space

FACTORS = (0.8, 1.2)
"""What a number is multiplied by (Jaderberg et al., 2017)."""

HELD = frozenset({"seed"})
"""Fields that are taken over as they are: a change would be no better and no worse."""


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
            explored[name] = _neighbour(domain, values[name], rng)
    return explored


def _neighbour(domain: Domain, value: Any, rng: random.Random) -> Any:
    if not isinstance(domain, Choice):
        factor = rng.choice(FACTORS)
        # at a bound of its domain a number can only go the other way
        both = [_moved(domain, value, by) for by in (factor, sum(FACTORS) - factor)]
        return next((moved for moved in both if moved != value), value)
    ordered = sorted(option for option in domain.values if _is_number(option))
    if len(ordered) < len(domain.values):
        return value
    place = ordered.index(value) + rng.choice((-1, 1))
    return ordered[min(max(place, 0), len(ordered) - 1)]


def _moved(domain: Uniform | RandInt | QUniform, value: float, factor: float) -> float:
    moved = domain.nearest(value * factor)
    if moved == value and not isinstance(domain, Uniform):
        step = domain.step if isinstance(domain, QUniform) else 1
        moved = domain.nearest(value + math.copysign(step, factor - 1))
    return moved


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
