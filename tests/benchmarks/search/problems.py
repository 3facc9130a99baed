"""What the simulator searches: curves of a score over epochs, by configuration.

mfHartmann: the Hartmann functions in 3 and 6 dimensions (negated, so greater is better) with a
fidelity, as in mf-prior-bench after Kandasamy et al. (2017): with z the logarithm of the epoch,
scaled to [0, 1], the coefficients are lowered by `bias * (1 - z)` and |N(0, 1)| * noise * (1 - z)
is taken off the score.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tuner.spec.domains import Uniform
from tuner.spec.space import Space

EPOCHS = 27

ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A3 = np.array([[3.0, 10, 30], [0.1, 10, 35], [3.0, 10, 30], [0.1, 10, 35]])
P3 = 1e-4 * np.array(
    [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
)
A6 = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


@dataclass(frozen=True)
class Hartmann:
    """mfHartmann over `EPOCHS` epochs, with observation noise and a corner that diverges.

    Attributes:
        dims: 3 or 6.
        bias: How much early epochs flatten the function.
        noise: How much they lower it at random.
        jitter: Standard deviation of the noise of every score.
        diverging: Share of the first coordinate's range where training diverges.
        epochs: Epochs of a full training.
    """

    dims: int
    bias: float = 1.0
    noise: float = 0.2
    jitter: float = 0.02
    diverging: float = 0.08
    epochs: int = EPOCHS
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"mfHartmann{self.dims}"

    @property
    def best(self) -> float:
        """The greatest value."""
        return 3.86278 if self.dims == 3 else 3.32237

    def space(self) -> Space:
        """What is searched; the middle of the cube counts as its default."""
        return Space({f"x{index}": Uniform(0.0, 1.0) for index in range(self.dims)})

    def true(self, values: Mapping[str, Any], epoch: int) -> float:
        """The score without noise; NaN where training diverges."""
        point = np.array([float(values[f"x{index}"]) for index in range(self.dims)])
        if epoch >= 2 and point[0] > 1.0 - self.diverging:
            return math.nan
        a, p = (A3, P3) if self.dims == 3 else (A6, P6)
        exponents = (a * (point - p) ** 2).sum(axis=1)
        alpha = ALPHA - self.bias * (1.0 - self._scaled(epoch))
        return float(alpha @ np.exp(-exponents))

    def observed(self, values: Mapping[str, Any], epoch: int, seed: int) -> float:
        """The score as a trial reports it; the same for the same configuration and epoch."""
        key = zlib.crc32(repr(sorted(values.items())).encode())
        early, always = np.random.default_rng((seed, key, epoch)).normal(size=2)
        lowered = abs(early) * self.noise * (1.0 - self._scaled(epoch))
        return self.true(values, epoch) - lowered + self.jitter * always

    def seconds(self, values: Mapping[str, Any]) -> float:
        """Seconds of an epoch, from 0.7 to 1.3."""
        return 0.7 + 0.6 * float(values[f"x{self.dims - 1}"])

    def _scaled(self, epoch: int) -> float:
        return math.log(epoch) / math.log(EPOCHS)
