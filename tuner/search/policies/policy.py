"""Base of policies: whether a trial goes on after an epoch, and which paused trial is next.

A policy keeps nothing: it answers from the study's record, so that a study that was resumed
decides as it would have without a break.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tuner.study.trial_entry import sign_of

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord


class Action(StrEnum):
    """What happens to a trial after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


@dataclass(frozen=True)
class Decision:
    """What happens to a trial, and the reason as text."""

    action: Action
    reason: str = ""


GO_ON = Decision(Action.CONTINUE)


def distinct_texts(one: float, other: float) -> tuple[str, str]:
    """Two scores as texts of four digits, or of as many more as it takes for them to differ."""
    for digits in range(4, 18):
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts if one != other else (f"{one:.4g}", f"{other:.4g}")


class Policy:
    """Every trial trains to the full budget; the base of all policies.

    Args:
        record: The study's record.
    """

    def __init__(self, record: StudyRecord) -> None:
        self._record = record
        self._sign = sign_of(record.mode)

    def judge(self, number: int, epoch: int) -> Decision:
        """Decide on a trial whose score at `epoch` was just recorded."""
        return GO_ON

    def promote(self, *, last: bool = False) -> int | None:
        """Number of the paused trial that goes on next, None if none does.

        Args:
            last: Whether nothing else is left to do: no new trial, and none runs.
        """
        return None

    def may_start(self) -> bool:
        """Whether a new trial may start, if no paused one goes on."""
        return True

    def keeps_paused(self) -> bool:
        """Whether trials stay paused when nothing is left to run, for a run with more time."""
        return False

    def never_promoted(self, number: int) -> str:
        """The reason of a trial that is still paused when the study ends."""
        entry = self._record.entries[number]
        return f"paused after epoch {entry.epochs}: never promoted: {entry.reason}"

    def _judged_score(self, number: int, epoch: int) -> str:
        """The score that a trial is judged by, as text."""
        score = self._record.entries[number].scores[epoch]
        text = f"{score:.4g}" if math.isfinite(score) else "which is not defined"
        return f"its score there, {text},"

    def _better_epoch(self, number: int, epoch: int) -> str:
        """The best score of a trial if it is not that of the epoch that it is judged at."""
        best = self._record.entries[number].best(self._record.mode)
        if best is None or best[0] == epoch:
            return ""
        return f"; its best, {best[1]:.4g}, was that of epoch {best[0]}"

    def _score(self, number: int, epoch: int) -> float:
        """Score at an epoch, greater is better; NaN for none."""
        return self._sign * self._record.entries[number].scores.get(epoch, math.nan)
