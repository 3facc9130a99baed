"""Domains and values of a space as Optuna knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.space import Choice, LogUniform, QUniform, RandInt, Uniform

if TYPE_CHECKING:
    from tuner.space import Domain, Space


def distribution_of(domain: Domain) -> BaseDistribution:
    """The domain as Optuna knows it."""
    match domain:
        case Choice():
            return CategoricalDistribution(domain.labels)
        case LogUniform():
            return FloatDistribution(domain.low, domain.high, log=True)
        case Uniform():
            return FloatDistribution(domain.low, domain.high)
        case QUniform():
            return FloatDistribution(domain.low, domain.high, step=domain.step)
        case RandInt():
            return IntDistribution(domain.low, domain.high)


def stored_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna and files keep them: a choice by its label."""
    return {
        name: domain.label_of(value) if isinstance(domain, Choice) else value
        for name, value in values.items()
        for domain in [space.domains[name]]
    }


def restored_values(space: Space, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `stored_values` was given."""
    return {
        name: domain.value_of(value) if isinstance(domain, Choice) else value
        for name, value in stored.items()
        for domain in [space.domains[name]]
    }
