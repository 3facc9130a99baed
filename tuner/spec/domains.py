"""Domains of a search space: what values a field may take."""

from __future__ import annotations

from tuner.spec.choice import Choice
from tuner.spec.domain import Domain
from tuner.spec.interval import LogRandInt, LogUniform, QUniform, RandInt, Uniform

__all__ = [
    "DOMAINS",
    "Choice",
    "Domain",
    "LogRandInt",
    "LogUniform",
    "QUniform",
    "RandInt",
    "Uniform",
]

DOMAINS: dict[str, type[Domain]] = {
    kind.kind: kind for kind in (Choice, Uniform, LogUniform, RandInt, LogRandInt, QUniform)
}
"""Domains by the name that a search space gives them."""
