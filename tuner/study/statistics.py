"""Means over cases and seeds, their intervals, and whether two configs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student
from scipy.stats import wilcoxon

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

LEVEL = 0.05

METHOD = (
    "Means are over seeds and test cases. Intervals are 95 % t-intervals whose variance is that "
    "of the seeds' means over the seeds plus that of the cases' means (of a difference: of the "
    "paired differences) over the cases, with the degrees of freedom of Welch and Satterthwaite; "
    "p is that of the same t-test. Two configs are told apart if the interval of their difference "
    "leaves out 0 and Wilcoxon's signed-rank test over the cases (means over seeds, two-sided) has "
    "p < 0.05. A test over the cases alone would take a lucky seed for a difference."
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
        p_value: Of the t-test over seeds and cases.
        p_cases: Of Wilcoxon's signed-rank test over the cases.
        cases: How many cases.
    """

    difference: Interval
    p_value: float
    p_cases: float
    cases: int

    @property
    def distinguishable(self) -> bool:
        """Whether the difference is significant, see `METHOD`."""
        return self.p_value < LEVEL and self.p_cases < LEVEL


def interval(scores: Float[ndarray, "seeds cases"]) -> Interval:
    """Mean of scores and its t-interval, for other seeds and other cases.

    Args:
        scores: NaN where a seed's score of a case is not defined; such scores are left out of each
            mean, as `training.metrics` leaves them out. The mean is that of the seeds' means.
    """
    by_seed = _defined_means(scores, axis=1)
    return _t_interval(by_seed.mean(), [by_seed, _defined_means(scores, axis=0)])[0]


def compare(
    one: Float[ndarray, "seeds cases"], other: Float[ndarray, "other_seeds cases"]
) -> Comparison:
    """Compare two configs that were judged on the same cases, in the same order.

    Args:
        one: Scores, NaN where one is not defined; each case has one that is.
        other: Those of the other config, likewise.
    """
    by_case = _defined_means(one, axis=0) - _defined_means(other, axis=0)
    samples = [_defined_means(one, axis=1), _defined_means(other, axis=1), by_case]
    difference, p_value = _t_interval(by_case.mean(), samples)
    # without any difference there is nothing to rank
    p_cases = float(wilcoxon(by_case).pvalue) if np.any(by_case != 0) else 1.0
    return Comparison(difference, p_value, p_cases, len(by_case))


def paired_interval(differences: Float[ndarray, " cases"]) -> Interval:
    """Mean of the paired differences of two predictors over cases, and its t-interval.

    It holds for other cases, of the same trained networks. Differences that are NaN are left out;
    without any the mean is NaN.
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return Interval(math.nan, -math.inf, math.inf)
    return _t_interval(defined.mean(), [defined])[0]


def _defined_means(scores: Float[ndarray, "seeds cases"], axis: int) -> Float[ndarray, " n"]:
    """Means over the scores that are defined, without those of which none is."""
    defined = ~np.isnan(scores)
    counts = defined.sum(axis=axis)
    sums = np.where(defined, scores, 0.0).sum(axis=axis)
    means: Float[ndarray, " n"] = sums[counts > 0] / counts[counts > 0]
    return means


def _t_interval(mean: float, samples: Sequence[Float[ndarray, " n"]]) -> tuple[Interval, float]:
    """Interval of a mean whose error has the independent parts of `samples`; p of it being 0.

    A part that one value has is not known, and makes the interval infinite.
    """
    mean = float(mean)
    if any(len(sample) < 2 for sample in samples):
        return Interval(mean, -math.inf, math.inf), 1.0
    parts = [float(sample.var(ddof=1)) / len(sample) for sample in samples]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Interval(mean, mean, mean), float(mean == 0)
    shares = [part / sum(parts) for part in parts]
    freedom = 1 / sum(
        share**2 / (len(sample) - 1) for share, sample in zip(shares, samples, strict=True)
    )
    reach = float(student.ppf(1 - LEVEL / 2, freedom)) * error
    p_value = 2 * float(student.sf(abs(mean) / error, freedom))
    return Interval(mean, mean - reach, mean + reach), p_value
