"""What was chosen to be exported, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.bundle.case_scores import NOTHING
from training.bundle.postprocessing import Postprocessing

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.study.statistics import Interval

AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class ChosenMember:
    """A network of what is exported.

    Attributes:
        name: Whose it is, in words.
        config: The config that it was trained with.
        checkpoint: Its weights.
        weight: Its share of the mean of probabilities.
        mirror_axes: Axes that images are mirrored along.
    """

    name: str
    config: ModelTrainingConfig
    checkpoint: Path
    weight: float
    mirror_axes: tuple[int, ...]


@dataclass
class Choice:
    """What is exported, and why.

    Attributes:
        members: The networks, the one with the largest weight first.
        postprocessing: What is done to label maps.
        lines: What was chosen and why, in words.
        document: The same for `bundle.json`.
        metrics: Validation metrics `val_*` of what is exported; {} where these are the winner's.
    """

    members: list[ChosenMember]
    postprocessing: Postprocessing = NOTHING
    lines: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether it is the winner as it was trained and judged."""
        alone = len(self.members) == 1 and not self.members[0].mirror_axes
        return alone and not self.postprocessing.steps


def mirroring_text(axes: Sequence[int]) -> str:
    """Along which axes images are mirrored, in words."""
    if not axes:
        return "without mirroring"
    return f"mirroring along {', '.join(AXES[axis] for axis in axes)}"


def gain_text(gain: Interval) -> str:
    """A gain with its interval, where that is known."""
    if not np.isfinite(gain.low):
        return f"{gain.mean:+.4f}"
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def gain_document(gain: Interval) -> dict[str, Any]:
    """A gain with its interval, as JSON has it."""
    values = {"gain": gain.mean, "low": gain.low, "high": gain.high}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
