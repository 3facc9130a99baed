"""A Gaussian process over configuration and budget."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

JITTER = 1e-6
TREND = 1.0
"""Variance of the trend that all configurations share over the budget."""

SIGNAL, NOISE, STEADYING, BUDGET, FIELDS = range(5)
"""Places in the hyperparameters: the logarithms of signal variance, of the noise variance at
budget 0, of what it is multiplied by up to budget 1, and of the budget's length scale; those of
the fields' length scales follow."""


@dataclass(frozen=True)
class GaussianProcess:
    """The posterior of `f(x, t)`, given noisy values.

    The covariance is `signal * matern52(x, x') * rbf(t, t') + TREND * rbf(t, t')`, with a
    length scale a field: configurations that are alike have like learning curves, and all
    curves share a trend. The noise changes with the budget: the score of a whole training says
    more than the same score after an epoch, however many of the latter there are.

    Attributes:
        points: Observed configurations, in the unit cube.
        budgets: Their budgets, from 0 to 1.
        fields: Index of the field that each coordinate belongs to.
        logs: Logarithms of the hyperparameters.
        inverse: Inverse of the covariance of the values.
        weights: Covariance's inverse times the values.
    """

    points: Float[ndarray, "n d"]
    budgets: Float[ndarray, " n"]
    fields: Int[ndarray, " d"]
    logs: Float[ndarray, " p"]
    inverse: Float[ndarray, "n n"]
    weights: Float[ndarray, " n"]

    @classmethod
    def fit(
        cls,
        points: Float[ndarray, "n d"],
        budgets: Float[ndarray, " n"],
        values: Float[ndarray, " n"],
        fields: Int[ndarray, " d"],
        iterations: int = 15,
    ) -> GaussianProcess:
        """Choose hyperparameters of greatest posterior density.

        Args:
            points: Configurations, in the unit cube.
            budgets: Budgets, from 0 to 1.
            values: Values, of mean 0 and variance 1.
            fields: Index of the field that each coordinate belongs to.
            iterations: Steps of L-BFGS-B at most.
        """
        means, spreads = hyperparameter_prior(int(fields.max()) + 1)
        squares = np.stack(
            [
                ((points[:, None, fields == field] - points[None, :, fields == field]) ** 2).sum(-1)
                for field in range(len(means) - FIELDS)
            ]
        )
        found = minimize(
            loss_and_gradient,
            means,
            args=(squares, budgets, values, means, spreads),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(means - 4 * spreads, means + 4 * spreads, strict=True)),
            options={"maxiter": iterations},
        )
        return cls._given(found.x, points, budgets, values, fields)

    @classmethod
    def _given(
        cls,
        logs: Float[ndarray, " p"],
        points: Float[ndarray, "n d"],
        budgets: Float[ndarray, " n"],
        values: Float[ndarray, " n"],
        fields: Int[ndarray, " d"],
    ) -> GaussianProcess:
        covariance = _covariance(points, budgets, points, budgets, fields, logs)
        covariance[np.diag_indices_from(covariance)] += _noise(budgets, logs) + JITTER
        inverse = _inverse(cholesky(covariance, lower=True, check_finite=False))
        return cls(points, budgets, fields, logs, inverse, inverse @ values)

    def with_values(
        self,
        points: Float[ndarray, "n d"],
        budgets: Float[ndarray, " n"],
        values: Float[ndarray, " n"],
    ) -> GaussianProcess:
        """The process of the same hyperparameters, given other values."""
        return self._given(self.logs, points, budgets, values, self.fields)

    def predict(
        self, points: Float[ndarray, "m d"], budgets: Float[ndarray, " m"]
    ) -> tuple[Float[ndarray, " m"], Float[ndarray, " m"]]:
        """Mean and standard deviation of `f`, without the noise."""
        cross = _covariance(self.points, self.budgets, points, budgets, self.fields, self.logs)
        known = np.einsum("nm,nm->m", cross, self.inverse @ cross)
        variance = math.exp(self.logs[SIGNAL]) + TREND - known
        return cross.T @ self.weights, np.sqrt(np.maximum(variance, 1e-12))


def hyperparameter_prior(num_fields: int) -> tuple[Float[ndarray, " p"], Float[ndarray, " p"]]:
    """Mean and standard deviation of the normal priors of the logarithms.

    Length scales grow with the root of the number of fields (Hvarfner et al., 2024).
    """
    scale = math.log(0.4 * math.sqrt(num_fields))
    means = np.array([0.0, math.log(1e-2), -1.0, 0.0, *[scale] * num_fields])
    spreads = np.array([1.0, 1.5, 1.5, 0.5, *[0.8] * num_fields])
    return means, spreads


def _noise(budgets: Float[ndarray, " n"], logs: Float[ndarray, " p"]) -> Float[ndarray, " n"]:
    """Variance of the noise of scores at budgets."""
    variance: Float[ndarray, " n"] = np.exp(logs[NOISE] + logs[STEADYING] * budgets)
    return variance


def _inverse(factor: Float[ndarray, "n n"]) -> Float[ndarray, "n n"]:
    """Inverse of the matrix of a lower Cholesky factor."""
    lower, failed = dpotri(factor, lower=True)
    assert not failed
    inverse: Float[ndarray, "n n"] = np.tril(lower) + np.tril(lower, -1).T
    return inverse


def _matern(squares: Float[ndarray, "..."]) -> tuple[Float[ndarray, "..."], Float[ndarray, "..."]]:
    """Matérn 5/2 of squared distances, and its derivative by them."""
    root = np.sqrt(5.0 * squares)
    decay = np.exp(-root)
    return (1.0 + root + root**2 / 3.0) * decay, -5.0 / 6.0 * (1.0 + root) * decay


def _covariance(
    points: Float[ndarray, "n d"],
    budgets: Float[ndarray, " n"],
    others: Float[ndarray, "m d"],
    other_budgets: Float[ndarray, " m"],
    fields: Int[ndarray, " d"],
    logs: Float[ndarray, " p"],
) -> Float[ndarray, "n m"]:
    scales = np.exp(logs[FIELDS:])[fields]
    scaled, other_scaled = points / scales, others / scales
    squares = (
        (scaled**2).sum(1)[:, None]
        + (other_scaled**2).sum(1)[None, :]
        - 2 * scaled @ other_scaled.T
    )
    similarity, _ = _matern(np.maximum(squares, 0.0))
    times = (budgets[:, None] - other_budgets[None, :]) ** 2
    trend = np.exp(-0.5 * times / math.exp(2 * logs[BUDGET]))
    covariance: Float[ndarray, "n m"] = (math.exp(logs[SIGNAL]) * similarity + TREND) * trend
    return covariance


def loss_and_gradient(
    logs: Float[ndarray, " p"],
    squares: Float[ndarray, "f n n"],
    budgets: Float[ndarray, " n"],
    values: Float[ndarray, " n"],
    means: Float[ndarray, " p"],
    spreads: Float[ndarray, " p"],
) -> tuple[float, Float[ndarray, " p"]]:
    """Negative log posterior density of hyperparameters, and its gradient."""
    signal, noise = math.exp(logs[SIGNAL]), _noise(budgets, logs)
    inverse_scales = np.exp(-2 * logs[FIELDS:])
    similarity, slope = _matern(np.tensordot(inverse_scales, squares, 1))
    scaled_times = (budgets[:, None] - budgets[None, :]) ** 2 * math.exp(-2 * logs[BUDGET])
    trend = np.exp(-0.5 * scaled_times)
    covariance = (signal * similarity + TREND) * trend
    factor = cholesky(covariance + np.diag(noise + JITTER), lower=True, check_finite=False)
    weights = cho_solve((factor, True), values, check_finite=False)
    inner = 0.5 * (_inverse(factor) - np.outer(weights, weights))
    by_signal = (inner * signal * similarity * trend).sum()
    by_noise = np.diag(inner) * noise
    by_budget = (inner * covariance * scaled_times).sum()
    weighted = inner * signal * slope * trend
    by_scales = -2 * inverse_scales * np.tensordot(squares, weighted, 2)
    gaps = (logs - means) / spreads
    loss = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * (gaps**2).sum()
    gradient = np.array([by_signal, by_noise.sum(), by_noise @ budgets, by_budget, *by_scales])
    return float(loss), gradient + gaps / spreads


def single_blas_thread() -> AbstractContextManager[None]:
    """Keep BLAS to one thread in the block.

    The matrices of a searcher are small: threads that wait for each other make a proposal several
    times slower, and they take the cores of the trials. Ray hands the variables that would do the
    same (`OMP_NUM_THREADS`) on to the trials, which are to have theirs.
    """
    limited: AbstractContextManager[None] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
