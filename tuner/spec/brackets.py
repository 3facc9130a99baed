"""The brackets of Hyperband (Li et al., 2018): how many trials, and when they are compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """One run of successive halving.

    Attributes:
        size: Trials that it begins with.
        milestones: Epochs to which its rounds train, ascending; the last is the full budget.
    """

    size: int
    milestones: tuple[int, ...]


def hyperband_brackets(max_epochs: int, reduction_factor: int) -> tuple[Bracket, ...]:
    """One band: from few trials that train to the end to many that are compared early.

    Sizes and first milestones are those of Ray's `HyperBandScheduler`, in whole numbers, so that
    none is lost to rounding. The last round trains to the full budget, where Ray's ends at the
    greatest power of the factor below it.

    Args:
        max_epochs: The full budget.
        reduction_factor: One of so many trials survives a round.
    """
    count = round(math.log(max_epochs) / math.log(reduction_factor)) + 1
    brackets = []
    for halvings in range(count):
        first = max_epochs // reduction_factor**halvings
        if first == 0:
            break
        size = -(-count * reduction_factor**halvings // (halvings + 1))
        compared = [first * reduction_factor**power for power in range(halvings)]
        brackets.append(Bracket(size, (*compared, max_epochs)))
    return tuple(brackets)


def expected_epochs(brackets: Sequence[Bracket], reduction_factor: int, trials: int) -> int:
    """Epochs that a number of trials takes if none fails, in one band after another."""
    epochs = 0
    for bracket in itertools.cycle(brackets):
        if not trials:
            break
        going, before = min(bracket.size, trials), 0
        trials -= going
        for milestone in bracket.milestones:
            epochs += going * (milestone - before)
            going, before = -(-going // reduction_factor), milestone
    return epochs
