"""What may vary in a study: domains, conditions between them, and sampling."""

from __future__ import annotations

import random
from collections.abc import ItemsView, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.spec.domain import Domain, same_kind

Condition = Mapping[str, Sequence[Any]]
"""Accepted values of other fields; a field takes part only where all of them hold."""


@dataclass(frozen=True)
class Space:
    """The fields that a study varies.

    Args:
        domains: Domain of each field.
        conditions: Condition of each field that has one, on other fields of the space.

    Raises:
        ValueError: if conditions go round in a circle.
    """

    domains: Mapping[str, Domain]
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered: dict[str, Domain] = {}
        waiting = dict(self.domains)
        while waiting:
            ready = [
                name
                for name in waiting
                if not any(parent in waiting for parent in self.conditions.get(name, {}))
            ]
            if not ready:
                raise ValueError(f"the conditions of {', '.join(waiting)} go round in a circle")
            for name in ready:
                ordered[name] = waiting.pop(name)
        object.__setattr__(self, "domains", ordered)

    def items(self) -> ItemsView[str, Domain]:
        """Fields and domains, each after those that its condition names."""
        return self.domains.items()

    def active(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a field takes part, given the `values` of those before it."""
        return all(
            parent in values
            and any(values[parent] == value and same_kind(values[parent], value) for value in good)
            for parent, good in self.conditions.get(name, {}).items()
        )

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """A point of the space, drawn at random."""
        values: dict[str, Any] = {}
        for name, domain in self.items():
            if self.active(name, values):
                values[name] = domain.sample(rng)
        return values

    def describe(self) -> list[tuple[str, str, str]]:
        """One line for each field: name, domain and condition."""
        return [
            (
                name,
                domain.describe(),
                " and ".join(
                    f"{parent} is {' or '.join(str(value) for value in values)}"
                    for parent, values in self.conditions.get(name, {}).items()
                ),
            )
            for name, domain in self.items()
        ]

    def to_yaml(self) -> dict[str, Any]:
        """As it is written in a search space."""
        written: dict[str, Any] = {}
        for name, domain in self.items():
            written[name] = domain.to_yaml()
            if name in self.conditions:
                written[name]["when"] = {
                    parent: list(values) for parent, values in self.conditions[name].items()
                }
        return written


def stored_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna and files keep them: a choice by its label."""
    return {name: space.domains[name].stored(value) for name, value in values.items()}


def restored_values(space: Space, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `stored_values` was given."""
    return {name: space.domains[name].restored(value) for name, value in stored.items()}
