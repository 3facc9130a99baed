"""Counts failed trials, and groups them by reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tuner.study.trial_entry import FAILURES, IN_PROGRESS, TrialState

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry

REASONS_SHOWN = 3


def most_failed(record: StudyRecord) -> bool:
    """Whether more than half of the trials that have ended, or pause, failed.

    Diverged trials do not count as failed: divergence is a finding about the config.
    """
    judged = [entry for entry in record.entries.values() if entry.state not in IN_PROGRESS]
    return 2 * len(record.with_state(*FAILURES)) > len(judged)


def failure_lines(record: StudyRecord) -> list[str]:
    """How many trials failed and how many diverged, each with the reasons; [] for none."""
    lines: list[str] = []
    total = len(record.entries)
    for word, states in (("failed", FAILURES), ("diverged", (TrialState.DIVERGED,))):
        entries = record.with_state(*states)
        if entries:
            lines.append(f"{len(entries)} of {total} trials {word}:")
            lines += _reasons(entries)
    if most_failed(record) and record.best() is not None:
        lines.append("most trials failed: read the reasons before you use the best of the others")
    return lines


def _reasons(entries: Iterable[TrialEntry]) -> list[str]:
    """A line a reason, the most frequent first; reasons that differ in numbers alone are one."""
    groups: dict[str, list[TrialEntry]] = {}
    for entry in entries:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", entry.reason), []).append(entry)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = []
    for group in ordered[:REASONS_SHOWN]:
        numbers = [entry.number for entry in group]
        trials = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {_first(numbers)}"
        lines.append(f"  {len(numbers)} x {group[0].reason} ({trials})")
    if len(ordered) > REASONS_SHOWN:
        lines.append(f"  and {len(ordered) - REASONS_SHOWN} more reasons")
    return lines


def _first(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, ..." if len(numbers) > 6 else shown
