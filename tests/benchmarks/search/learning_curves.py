"""Learning curves of a small D-Former, looked up between the configurations that were trained.

learning_curves.csv holds the validation Dice of 256 configurations by epoch (make_curves.py). A
curve is split into what is steady, its mean over five epochs, and what is not. The noise of a
score is drawn from the latter, around the same epoch: it falls with the learning rate, to a tenth
and less, and a training that collapses now and then falls below its mean more than it rises above.
Steady curves are interpolated over configurations by kernel regression
(Nadaraya and Watson, 1964) on the encoded configuration, with a precision a field. The
precisions below have the least leave-one-out error, which `fitted_precisions` finds and
`leave_one_out` measures.
"""

from __future__ import annotations

import csv
import json
import math
import random
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from tuner.search.encoding import SpaceEncoding
from tuner.spec.load import load_spec
from tuner.spec.space import Space

HERE = Path(__file__).parent
SPACE = HERE / "learning_curves.yaml"
TABLE = HERE / "learning_curves.csv"

PRECISIONS = {
    "optimizer": 1.88,
    "learning_rate": 414.23,
    "weight_decay": 0.45,
    "scheduler": 0.44,
    "loss": 0.51,
    "class_weights": 0.64,
    "foreground_fraction": 8.1,
    "momentum": 2.29,
    "nesterov": 0.17,
    "step_size": 0.09,
    "lr_decay": 9.38,
    "warmup_epochs": 5.27,
    "poly_power": 4.24,
}
"""What a squared distance in each field is multiplied by."""

WINDOW = 5
JUDGED_AT = (1, 3, 9, 27)
"""Epochs at which precisions are judged."""

UNLUCKY = 0.05
"""Share of trials that diverge at some epoch through no fault of their configuration."""


class LearningCurves:
    """The table as a problem for the simulator.

    Attributes:
        vectors: Encoded configurations of the table.
        steady: Their curves without noise.
        noise: What the scores differ by from those.
        diverged_at: Epoch at which each diverged, infinite for never.
    """

    name = "learning curves"

    def __init__(self) -> None:
        spec = load_spec(SPACE)
        self.epochs = spec.max_epochs
        self.fixed = {key: spec.config[key] for key in spec.config if key != "max_epochs"}
        self._space = spec.space
        self._encoding = SpaceEncoding(spec.space)
        with TABLE.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self.configurations: list[dict[str, Any]] = [json.loads(row[0]) for row in rows]
        self.vectors = np.stack([self._encoding.encode(c) for c in self.configurations])
        curves = [[float(cell) for cell in row[2:] if cell] for row in rows]
        self.diverged_at = np.array(
            [len(curve) + 1 if len(curve) < self.epochs else math.inf for curve in curves]
        )
        self.scores = np.array([[*c, *[0.0] * (self.epochs - len(c))] for c in curves])
        self.steady = np.stack([_steady(curve) for curve in self.scores])
        # a mean over the window holds a share of the noise itself
        self.noise = (self.scores - self.steady) / math.sqrt(1 - 1 / WINDOW)
        names = list(self._space.domains)
        self._scales = np.sqrt([PRECISIONS[names[field]] for field in self._encoding.fields])
        self._known: dict[str, tuple[Any, Any, float]] = {}
        self.best = self._best()

    def space(self) -> Space:
        """What is searched."""
        return self._space

    def true(self, values: Mapping[str, Any], epoch: int) -> float:
        """The score without noise; NaN where the nearest trainings diverged."""
        curve, _, diverges_at = self._look_up(values)
        return math.nan if epoch >= diverges_at else float(curve[epoch - 1])

    def observed(self, values: Mapping[str, Any], epoch: int, seed: int) -> float:
        """The score as a trial reports it; the same for the same configuration and epoch."""
        key = zlib.crc32(repr(sorted(values.items())).encode())
        luck = random.Random(f"{seed} {key}")
        if luck.random() < UNLUCKY and epoch > luck.random() * self.epochs:
            return math.nan
        rng = np.random.default_rng((seed, key, epoch))
        half = WINDOW // 2
        near = rng.choice(len(self.noise), p=self._look_up(values)[1])
        at = np.clip(epoch - 1 + rng.integers(-half, half + 1), 0, self.epochs - 1)
        return self.true(values, epoch) + float(self.noise[near, at])

    def seconds(self, values: Mapping[str, Any]) -> float:
        """Seconds of an epoch, from 0.7 to 1.3, by chance.

        Those of the table tell what else the machine did.
        """
        return 0.7 + 0.6 * random.Random(repr(sorted(values.items()))).random()

    def _look_up(self, values: Mapping[str, Any]) -> tuple[Any, Any, float]:
        """Curve of a configuration, shares of those trained in it, epoch at which it diverges."""
        taken = {name: value for name, value in values.items() if name in self._space.domains}
        key = repr(sorted(taken.items()))
        if key not in self._known:
            weights = self._weights(self._encoding.encode(taken)[None])[0]
            fails = np.isfinite(self.diverged_at)
            at = self.diverged_at[weights.argmax()] if weights[fails].sum() > 0.5 else math.inf
            self._known[key] = (weights @ self.steady, weights, float(at))
        return self._known[key]

    def _weights(self, vectors: Any) -> Any:
        """Share of each trained configuration in the curve of each of `vectors`."""
        gaps = ((vectors[:, None] - self.vectors[None]) * self._scales) ** 2
        distances = gaps.sum(axis=2)
        kernel = np.exp(distances.min(axis=1, keepdims=True) - distances)
        return kernel / kernel.sum(axis=1, keepdims=True)

    def _best(self) -> float:
        """The best score of a long search: draws, then neighbours of the best."""
        rng = np.random.default_rng(0)
        drawn = self._encoding.snapped(rng.uniform(size=(5_000, self._encoding.size)))
        points = np.vstack([self.vectors, drawn])
        for spread in (0.1, 0.1, 0.05, 0.02, 0.01, 0.005):
            scores = np.concatenate(
                [
                    (self._weights(part) @ self.steady).max(axis=1)
                    for part in np.array_split(points, max(1, len(points) // 1000))
                ]
            )
            top = points[np.argsort(-scores)[:10]]
            near = [self._encoding.neighbours(point, spread, 200, rng) for point in top]
            points = np.vstack([top, *near])
        return float(scores.max())

    def leave_one_out(self, precisions: Mapping[str, float] = PRECISIONS) -> Any:
        """R² of each epoch of `JUDGED_AT`, each configuration predicted by the others."""
        logs = np.log([precisions[name] for name in self._space.domains])
        return 1.0 - self._errors(logs)

    def fitted_precisions(self) -> dict[str, float]:
        """Precisions of the least leave-one-out error, gently held near 1."""
        found = minimize(
            lambda logs: float(self._errors(logs).mean() + 2e-4 * (logs**2).mean()),
            np.ones(len(PRECISIONS)),
            method="L-BFGS-B",
            bounds=[(-4.0, 7.0)] * len(PRECISIONS),
        )
        return dict(zip(self._space.domains, np.exp(found.x).round(2).tolist(), strict=True))

    def _errors(self, logs: Any) -> Any:
        """Leave-one-out squared error at each of `JUDGED_AT`, as a share of the variance."""
        scaled = self.vectors * np.exp(0.5 * logs)[self._encoding.fields]
        kernel = np.exp(-((scaled[:, None] - scaled[None]) ** 2).sum(axis=2))
        np.fill_diagonal(kernel, 0.0)
        scores = self.steady[:, [epoch - 1 for epoch in JUDGED_AT]]
        scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
        predicted = kernel @ scores / np.maximum(kernel.sum(axis=1, keepdims=True), 1e-9)
        return ((predicted - scores) ** 2).mean(axis=0)


def _steady(curve: Any) -> Any:
    """The mean over a window around each epoch."""
    half = WINDOW // 2
    return [curve[max(0, at - half) : at + half + 1].mean() for at in range(len(curve))]
