"""What a trial took over from another: weights at an epoch, and other values from there on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.record import TrialEntry

LINEAGE = "lineage"
"""Note of a trial: what it took over from others."""


@dataclass(frozen=True)
class Inheritance:
    """A trial took over the weights of another, and goes on with values of its own.

    Attributes:
        epoch: Epoch after which it did; both had trained as many.
        donor: Number of the other trial.
        values: All its values by field name, from the next epoch on.
        explored: What the donor's value was and what it is now, of each field that differs.
    """

    epoch: int
    donor: int
    values: Mapping[str, Any]
    explored: Mapping[str, Sequence[Any]]

    def describe(self) -> str:
        """In one line, for a person to read."""
        changes = ", ".join(
            f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in self.explored.items()
        )
        return f"trial {self.donor} at epoch {self.epoch}: {changes or 'nothing changed'}"

    def to_json(self) -> dict[str, Any]:
        """As the record keeps it."""
        return asdict(self)


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


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Old and new value of each field that differs; None where a field takes no part."""
    names = dict.fromkeys([*old, *new])
    return {
        name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)
    }


def values_at(
    proposed: Mapping[str, Any], lineage: Sequence[Inheritance], epoch: int
) -> dict[str, Any]:
    """The values with which a trial trained an epoch."""
    values = proposed
    for inheritance in lineage:
        if inheritance.epoch < epoch:
            values = inheritance.values
    return dict(values)


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


def _short(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
