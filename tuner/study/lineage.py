"""Lineage of a PBT trial: whose weights it inherited, and which values it trained with since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.study.trial_entry import TrialEntry


@dataclass(frozen=True)
class Stretch:
    """Epochs that one trial trained with the same values.

    Attributes:
        first: The first of them.
        last: The last of them.
        trial: Number of the trial.
        values: Its values by field name.
    """

    first: int
    last: int
    trial: int
    values: Mapping[str, Any]


def schedule(entries: Mapping[int, TrialEntry], number: int, epoch: int) -> list[Stretch]:
    """Which trial trained the weights of an epoch with which values, from epoch 1 on.

    Args:
        entries: The trials of the study by number.
        number: The trial that has the weights.
        epoch: The epoch that they are of.
    """
    stretches: list[Stretch] = []
    while epoch:
        entry = entries[number]
        step = next((step for step in reversed(entry.lineage) if step.epoch < epoch), None)
        first = step.epoch + 1 if step else 1
        stretches.insert(0, Stretch(first, epoch, number, entry.trained_values_at(epoch)))
        number, epoch = (step.donor, step.epoch) if step else (number, 0)
    return stretches
