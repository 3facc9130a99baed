"""Means over cases and seeds, their intervals, and whether two configs differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import wilcoxon

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

RESAMPLES = 10_000

CONFIDENCE = 0.95

METHOD = (
    "Means are over seeds and test cases. Intervals are 95 % percentile bootstrap intervals, "
    "seeds and cases drawn anew together (10,000 times; differences with the same cases for both "
    "configs). Two configs are told apart if the interval of their difference leaves out 0 and "
    "Wilcoxon's signed-rank test over the cases (means over seeds, two-sided) has p < 0.05."
)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two configs on the same cases.

    Attributes:
        difference: Mean of the first minus that of the second.
        p_value: Of Wilcoxon's signed-rank test over the cases.
    """

    difference: Interval
    p_value: float

    @property
    def distinguishable(self) -> bool:
        """Whether the two can be told apart."""
        excludes_zero = self.difference.low > 0 or self.difference.high < 0
        return excludes_zero and self.p_value < 1 - CONFIDENCE


def interval(scores: Float[ndarray, "seeds cases"]) -> Interval:
    """Mean of scores and its bootstrap interval over seeds and cases."""
    rng = np.random.default_rng(0)
    cases = _weights(scores.shape[1], rng)
    return _interval(float(scores.mean()), _resampled(scores, cases, rng))


def compare(
    one: Float[ndarray, "seeds cases"], other: Float[ndarray, "other_seeds cases"]
) -> Comparison:
    """Compare two configs that were judged on the same cases, in the same order."""
    rng = np.random.default_rng(0)
    cases = _weights(one.shape[1], rng)
    drawn = _resampled(one, cases, rng) - _resampled(other, cases, rng)
    by_case = one.mean(axis=0) - other.mean(axis=0)
    difference = _interval(float(by_case.mean()), drawn)
    # without any difference there is nothing to rank
    p_value = float(wilcoxon(by_case).pvalue) if np.any(by_case != 0) else 1.0
    return Comparison(difference, p_value)


def _weights(number: int, rng: np.random.Generator) -> Float[ndarray, "resamples n"]:
    """How often each of `number` things is drawn, as a share, in each resample."""
    return rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES) / number


def _resampled(
    scores: Float[ndarray, "seeds cases"],
    cases: Float[ndarray, "resamples cases"],
    rng: np.random.Generator,
) -> Float[ndarray, " resamples"]:
    """Mean score of each resample."""
    seeds = _weights(scores.shape[0], rng)
    means: Float[ndarray, " resamples"] = ((seeds @ scores) * cases).sum(axis=1)
    return means


def _interval(mean: float, drawn: Float[ndarray, " resamples"]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(mean, float(low), float(high))
