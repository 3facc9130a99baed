"""Domains and values of a space as Optuna knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.spec.domains import Choice, LogUniform, QUniform, RandInt, Uniform

if TYPE_CHECKING:
    from tuner.spec.domains import Domain


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
