"""Converts domains of a space to Optuna's distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

if TYPE_CHECKING:
    from tuner.spec.domain import Domain


def distribution_of(domain: Domain) -> BaseDistribution:
    """The domain as a distribution of Optuna."""
    given = domain.distribution
    if given.choices is not None:
        return CategoricalDistribution(given.choices)
    if given.whole:
        step = int(given.step or 1)
        return IntDistribution(int(given.low), int(given.high), step=step, log=given.log)
    return FloatDistribution(given.low, given.high, step=given.step, log=given.log)
