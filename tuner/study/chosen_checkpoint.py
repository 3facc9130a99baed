"""Which checkpoint of a training is its network: that of its last epoch, or of its best one.

The best of many epochs by few validation cases is often one that was lucky. nnU-Net takes the last,
whose learning rate has come down (on the phantom: test Dice 0.881, the best of 60 epochs by four
cases 0.804). So here the last epoch is taken where the schedule came to its end, unless the
validation score was better before beyond its noise, as where a training overfits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from training.config.optimisation import OPEN_SCHEDULES
from tuner.study.files import BEST_FILE, CONFIG_FILE, LAST_FILE
from tuner.study.trial_entry import best_of, sign_of

WINDOW = 5
"""Epochs whose median score is compared."""

BEYOND_NOISE = 3.0
"""Standard errors of a difference of two such medians that are not noise."""


@dataclass(frozen=True)
class ChosenCheckpoint:
    """The checkpoint of a training that is used.

    Attributes:
        path: The file.
        epoch: Its epoch, counted from the start of the fold.
        best: The epoch with the best validation score.
    """

    path: Path
    epoch: int
    best: int

    @property
    def is_last(self) -> bool:
        """Whether it is that of the last epoch, and another was best."""
        return self.epoch != self.best


def choose_checkpoint(
    folder: Path, scores: Mapping[int, float], mode: str
) -> ChosenCheckpoint | None:
    """The checkpoint of a training that is used; None if no score is defined, or it has none.

    Args:
        folder: Folder of the trial, or of its fold, with config and checkpoints.
        scores: Validation score by epoch, from 1.
        mode: `max` if greater scores are better, or `min`.
    """
    found = best_of(scores, mode)
    if found is None:
        return None
    best, last = found[0], max(scores)
    if best != last and _has_ended(folder, last) and _is_as_good(scores, last, mode):
        return ChosenCheckpoint(folder / LAST_FILE, last, best)
    path = folder / BEST_FILE
    return ChosenCheckpoint(path, best, best) if path.is_file() else None


def _has_ended(folder: Path, last: int) -> bool:
    """Whether a training came to the end of a schedule that brings its learning rate down."""
    if not (folder / LAST_FILE).is_file():
        return False
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    averaged = config.get("ema_decay") is not None
    comes_down = averaged or config["scheduler"] not in OPEN_SCHEDULES
    return bool(comes_down and last == config["max_epochs"])


def _is_as_good(scores: Mapping[int, float], last: int, mode: str) -> bool:
    """Whether the last epochs are not worse than any before, beyond the noise between epochs."""
    sign = sign_of(mode)
    in_order = [sign * scores[epoch] for epoch in sorted(scores) if math.isfinite(scores[epoch])]
    if not math.isfinite(scores[last]) or len(in_order) < 2 * WINDOW:
        return False
    medians = [
        statistics.median(in_order[at : at + WINDOW]) for at in range(len(in_order) - WINDOW + 1)
    ]
    # by neighbours, in the second half, where a trend adds little to their difference
    half = in_order[len(in_order) // 2 :]
    steps = [abs(one - other) for one, other in pairwise(half)]
    # the median of the absolute difference of two draws is 0.954 standard deviations
    noise = statistics.median(steps) / 0.954
    # a median of normal draws has 1.25 times the standard error of their mean
    error = 1.25 * noise * math.sqrt(2 / WINDOW)
    return max(medians) - medians[-1] <= BEYOND_NOISE * error
