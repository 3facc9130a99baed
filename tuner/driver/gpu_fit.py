"""How many trials may share a GPU, by what trials like them were measured to take of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.trial.memory import GpuUse

MARGIN = 1.1
"""Factor on the memory that a trial was measured to take."""

MOST = 4
"""Trials that share a GPU at most."""

UNKNOWN = 2
"""Trials that share a GPU at most where it does not tell how busy it is."""

WORTH = 1.1
"""How much more must be trained in the same time for trials to share a GPU."""

LOOSE = {
    "data_dir", "fold", "learning_rate", "weight_decay", "momentum", "nesterov", "scheduler",
    "warmup_epochs", "step_size", "lr_decay", "plateau_patience", "poly_power", "one_cycle_peak",
    "decay_share", "gradient_clip", "max_epochs", "seed", "class_weights", "foreground_fraction",
    "focal_gamma", "tversky_alpha", "tversky_beta", "effective_number_beta", "log_dir",
    "checkpoint_dir", "augmentation_strength", "early_stopping_patience",
}  # fmt: skip
"""Fields in which trials may differ that take the same of a GPU."""


def kind_of(config: ModelTrainingConfig) -> str:
    """What trials have in common that take the same of a GPU: all fields but those of `LOOSE`."""
    fields = {name: value for name, value in config.flat().items() if name not in LOOSE}
    return json.dumps(fields, sort_keys=True, default=str)


@dataclass
class _Kind:
    """What was measured of trials of a kind.

    Attributes:
        peak: The most memory that one of them held, in bytes.
        total: The memory of a GPU, in bytes.
        busy: Share of the time in which a GPU computed for one alone; None if that is not known.
        seconds: The least that an epoch took of one alone.
        most: How many share a GPU at most, by what was seen of those that did.
    """

    peak: float = 0.0
    total: float = math.inf
    busy: float | None = None
    seconds: float = math.inf
    most: int = MOST


class GpuFit:
    """How many trials of each kind share a GPU.

    Those of a kind of which none was measured alone have one for themselves. Then as many share one
    as its memory holds with a margin, if one alone leaves it idle for long enough; and no more
    than get through more together, by the seconds of their epochs, than one after the other.

    Args:
        limit: Trials that share a GPU at most, of any kind.
    """

    def __init__(self, limit: int = MOST) -> None:
        self._limit = limit
        self._kinds: dict[str, _Kind] = {}
        self.most = 1
        """Trials that share a GPU at most, of the kind that takes the least."""

    def at_once(self, kind: str) -> int:
        """Trials of a kind that may share a GPU; 1 for one that was not measured."""
        known = self._kinds.get(kind)
        if known is None or not known.peak or not math.isfinite(known.seconds):
            return 1
        by_memory = int(known.total / (MARGIN * known.peak))
        by_time = UNKNOWN if known.busy is None else int(1 / max(known.busy, 1 / MOST))
        return max(1, min(by_memory, by_time, known.most, self._limit))

    def alone(self, kind: str, use: GpuUse, seconds: float) -> None:
        """Take over what a trial took of a GPU that it had for itself.

        Args:
            kind: Its kind.
            use: What it took.
            seconds: How long an epoch took.
        """
        known = self._kinds.setdefault(kind, _Kind())
        known.peak, known.total = max(known.peak, use.peak), use.total
        known.busy = use.busy if known.busy is None else max(known.busy, use.busy or 0.0)
        known.seconds = min(known.seconds, seconds)
        self._look()

    def together(self, kind: str, trials: int, use: GpuUse, seconds: float) -> None:
        """Take over what a trial took that had a GPU together with others.

        Args:
            kind: Its kind.
            trials: Trials that had it, this one included.
            use: What it took.
            seconds: How long an epoch took.
        """
        known = self._kinds.setdefault(kind, _Kind())
        known.peak = max(known.peak, use.peak)
        if trials * known.seconds < WORTH * seconds:
            known.most = min(known.most, trials - 1)
        self._look()

    def outgrown(self, kind: str, trials: int) -> None:
        """Take over that a trial needed more than its part of a GPU for so many."""
        known = self._kinds.setdefault(kind, _Kind())
        known.most = min(known.most, trials - 1)
        self._look()

    def describe(self, kind: str) -> str:
        """What was measured of a kind, as text."""
        known = self._kinds[kind]
        taken = f"{known.peak / 2**30:.1f} of {known.total / 2**30:.1f} GiB"
        busy = "" if known.busy is None else f" and keeps it busy for {known.busy:.0%} of the time"
        return f"it takes {taken} of a GPU's memory{busy}"

    def _look(self) -> None:
        self.most = max(map(self.at_once, self._kinds), default=1)
