"""Configurations judged on folds that have the published noise, as a problem for the simulator.

Of a data set three figures are known, computed from the results of nnU-Net's default and of its
residual encoder over five folds (Becktepe et al., 2025, arXiv 2505.16561): by how much folds
differ, by how much the difference of two configurations differs over folds, and by how much a
score differs from epoch to epoch. A score is the level of its configuration, plus how hard the
fold is, plus noise of configuration and fold, plus noise of the epoch. How far configurations are
apart is not published: they are as far as `spread` says.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.spec.domains import Uniform
from tuner.spec.space import Space


@dataclass(frozen=True)
class FoldNoise:
    """Standard deviations of a data set's scores.

    Attributes:
        folds: Of one configuration over folds.
        paired: Of the difference of two configurations over folds.
        epochs: Of a score over its last epochs.
    """

    folds: float
    paired: float
    epochs: float


PUBLISHED = {
    "Hippocampus": FoldNoise(0.0024, 0.0009, 0.0016),
    "Heart": FoldNoise(0.0082, 0.0018, 0.0015),
    "Prostate": FoldNoise(0.0925, 0.0079, 0.0144),
    "Liver": FoldNoise(0.0318, 0.0152, 0.0349),
    "Pancreas": FoldNoise(0.0172, 0.0265, 0.0400),
    "Lung": FoldNoise(0.0580, 0.0829, 0.0398),
    "Colon": FoldNoise(0.0596, 0.0422, 0.0457),
}
"""By data set of the Decathlon."""


class FoldedCurves:
    """Learning curves of configurations on several folds, one after the other.

    Args:
        noise: Of the data set.
        spread: Standard deviation of the levels of configurations.
        folds: Folds of the study.
        fold_epochs: Epochs of a fold.
    """

    fixed: Mapping[str, Any] = {}

    def __init__(self, noise: FoldNoise, spread: float, folds: int, fold_epochs: int) -> None:
        self.folds = folds
        self.fold_epochs = fold_epochs
        self.epochs = folds * fold_epochs
        # a difference has the noise of two
        self._own = noise.paired / math.sqrt(2)
        self._hardness = math.sqrt(max(0.0, noise.folds**2 - self._own**2))
        self._epochs_noise = noise.epochs
        self._spread = spread

    def space(self) -> Space:
        """What is searched: where a configuration is among all."""
        return Space({"learning_rate": Uniform(0.001, 1.0)})

    def true(self, values: Mapping[str, Any], epoch: int) -> float:
        """The level of a configuration after so many epochs, without noise."""
        own = (epoch - 1) % self.fold_epochs + 1
        rng = np.random.default_rng(_key(values))
        level, slow = rng.normal(0, self._spread), rng.uniform(0.5, 2)
        # those that rise slowly end no worse
        return float(0.7 + level - 0.3 * math.exp(-5 * own / self.fold_epochs / slow))

    def observed(self, values: Mapping[str, Any], epoch: int, seed: int) -> float:
        """The score as a trial reports it; the same for the same configuration and epoch."""
        fold, key = (epoch - 1) // self.fold_epochs, _key(values)
        hard = np.random.default_rng((seed, fold, 0xF01D)).normal(0, self._hardness)
        own = np.random.default_rng((seed, key, fold)).normal(0, self._own)
        jitter = np.random.default_rng((seed, key, fold, epoch)).normal(0, self._epochs_noise)
        return float(self.true(values, epoch) + hard + own + jitter)

    def seconds(self, values: Mapping[str, Any]) -> float:
        """Seconds of an epoch: from 0.7 to 1.3, by the configuration."""
        return 0.7 + 0.6 * float(np.random.default_rng((_key(values), 1)).uniform())


def _key(values: Mapping[str, Any]) -> int:
    return zlib.crc32(repr(values["learning_rate"]).encode())
