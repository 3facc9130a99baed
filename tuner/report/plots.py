"""A picture of a Pareto front: every trial a point, those of the front marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from tuner.report.states import COLOURS
from tuner.study.pareto import Objectives, metric_values
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.study.trial_entry import TrialEntry

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 320, 60, 20, 12, 46


def front_plot(
    entries: Sequence[TrialEntry], front: Sequence[TrialEntry], objectives: Objectives
) -> str:
    """SVG with the first metric upwards and the second to the right.

    Args:
        entries: All trials.
        front: Those of the front.
        objectives: Two metrics with their modes.
    """
    points = [
        (values, entry)
        for entry in entries
        if entry.state.usable and (values := metric_values(entry, objectives)) is not None
    ]
    if not points:
        return "<p>No trial has all of these metrics yet.</p>"
    (name_y, _), (name_x, _) = objectives
    low_y, span_y = _range([values[0] for values, _ in points])
    low_x, span_x = _range([values[1] for values, _ in points])

    def x(value: float) -> float:
        return LEFT + (value - low_x) / span_x * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (low_y + span_y - value) / span_y * (HEIGHT - TOP - BOTTOM)

    shapes = []
    for tick in range(5):
        at_y, at_x = low_y + span_y * tick / 4, low_x + span_x * tick / 4
        shapes.append(
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(at_y):.1f}' y2='{y(at_y):.1f}' "
            f"stroke='#e2e8f0'/><text x='{LEFT - 8}' y='{y(at_y) + 4:.1f}' "
            f"text-anchor='end'>{at_y:.3g}</text>"
            f"<text x='{x(at_x):.1f}' y='{HEIGHT - 24}' text-anchor='middle'>{at_x:.3g}</text>"
        )
    numbers = {entry.number for entry in front}
    for values, entry in points:
        on_front = entry.number in numbers
        shapes.append(
            f"<circle cx='{x(values[1]):.1f}' cy='{y(values[0]):.1f}' r='{6 if on_front else 4}' "
            f"fill='{'#0e7490' if on_front else '#cbd5e1'}'><title>trial {entry.number}: "
            f"{escape(name_y)} {values[0]:.4g}, {escape(name_x)} {values[1]:.4g}</title></circle>"
        )
        if on_front:
            shapes.append(
                f"<text x='{x(values[1]) + 8:.1f}' y='{y(values[0]) - 8:.1f}'>{entry.number}</text>"
            )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='100%' role='img'>{''.join(shapes)}"
        f"<text x='{WIDTH / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{escape(name_x)}</text>"
        f"<text x='{LEFT}' y='{TOP}' dx='4'>{escape(name_y)}</text></svg>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Where an axis begins, and how far it goes: a little more than the values need."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high - low + 2 * margin


WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 900, 346, 60, 46, 12


def learning_curves(entries: list[TrialEntry], best: TrialEntry | None) -> str:
    """Learning curves as SVG: a line a trial, the best one thick."""
    finite = [
        (entry, [(e, s) for e, s in sorted(entry.scores.items()) if math.isfinite(s)])
        for entry in entries
    ]
    points = [point for _, curve in finite for point in curve]
    if not points:
        return "<p>No scores yet.</p>"
    last = max(epoch for epoch, _ in points)
    low, high = min(score for _, score in points), max(score for _, score in points)
    span = (high - low) or 1.0

    def x(epoch: int) -> float:
        return LEFT + (epoch - 1) / max(1, last - 1) * (WIDTH - LEFT - 20)

    def y(score: float) -> float:
        return TOP + (high - score) / span * (HEIGHT - TOP - BOTTOM)

    shapes = []
    for tick in range(5):
        score = low + span * tick / 4
        shapes.append(
            f"<line x1='{LEFT}' x2='{WIDTH - 20}' y1='{y(score):.1f}' y2='{y(score):.1f}' "
            f"stroke='#e2e8f0'/><text x='{LEFT - 8}' y='{y(score) + 4:.1f}' "
            f"text-anchor='end'>{score:.3f}</text>"
        )
    step = max(1, last // 8)
    # no tick so close to the last one that their numbers would run into each other
    for epoch in sorted({1, *range(step, last - step // 2, step), last}):
        shapes.append(
            f"<text x='{x(epoch):.1f}' y='{HEIGHT - 20}' text-anchor='middle'>{epoch}</text>"
        )
    for entry, curve in finite:
        line = " ".join(f"{x(epoch):.1f},{y(score):.1f}" for epoch, score in curve)
        width = 3 if entry is best else 1.3
        title = f"<title>trial {entry.number}: {escape(entry.reason)}</title>"
        shapes.append(
            f"<polyline points='{line}' fill='none' stroke='{COLOURS[entry.state]}' "
            f"stroke-width='{width}'>{title}</polyline>"
        )
        if curve:
            epoch, score = curve[-1]
            shapes.append(
                f"<circle cx='{x(epoch):.1f}' cy='{y(score):.1f}' r='3' "
                f"fill='{COLOURS[entry.state]}'>{title}</circle>"
            )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='100%' role='img'>{''.join(shapes)}"
        f"<text x='{WIDTH / 2}' y='{HEIGHT - 4}' text-anchor='middle'>epoch</text></svg>"
    )


def state_legend(entries: list[TrialEntry]) -> str:
    """Which colour stands for which state of a trial."""
    states = [state for state in TrialState if any(entry.state is state for entry in entries)]
    return (
        "<p>"
        + " ".join(
            f"<span style='color:{COLOURS[state]}'>&#9632;</span> {state}&ensp;" for state in states
        )
        + "</p>"
    )
