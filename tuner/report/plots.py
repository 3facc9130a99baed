"""Pictures of a study as SVG: learning curves, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tuner.report.numbers import metric, tick
from tuner.report.states import COLOURS
from tuner.study.pareto import Objectives, metric_values
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.study.trial_entry import TrialEntry

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 362, 60, 20, 28, 46


@dataclass(frozen=True)
class Range:
    """Values that an axis shows, from `low` to `high`.

    Attributes:
        low: The smallest.
        high: The largest, above `low`.
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], margin: float = 0.0) -> Range:
        """The range of values, wider by a share `margin` of it at either end.

        Example:
            >>> Range.of([1.0, 3.0], margin=0.25)
            Range(low=0.5, high=3.5)
            >>> Range.of([2.0])
            Range(low=1.8, high=2.2)
        """
        low, high = min(values), max(values)
        wider = margin * (high - low) if high > low else abs(high) * 0.1 or 1.0
        return cls(low - wider, high + wider)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Five values, evenly spaced."""
        return [self.low + (self.high - self.low) * step / 4 for step in range(5)]


@dataclass(frozen=True)
class Axes:
    """Maps values to pixels, and draws the axes with their numbers.

    Attributes:
        x: Values to the right.
        y: Values upwards.
    """

    x: Range
    y: Range

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn, in pixels from the upper left corner."""
        across = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
        down = TOP + (1 - self.y.share(y)) * (HEIGHT - TOP - BOTTOM)
        return across, down

    def draw(
        self, x_ticks: Iterable[tuple[float, str]], x_name: str, y_name: str, shapes: list[str]
    ) -> str:
        """The picture with `shapes` on it.

        Args:
            x_ticks: Values of the axis to the right that are named, with their names.
            x_name: What the axis to the right shows.
            y_name: What the axis upwards shows.
            shapes: SVG of what is drawn.
        """
        parts = []
        for value in self.y.ticks():
            _, y = self.place(self.x.low, value)
            parts.append(
                f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' "
                f"stroke='#e2e8f0'/><text x='{LEFT - 8}' y='{y + 4:.1f}' "
                f"text-anchor='end'>{tick(value)}</text>"
            )
        for value, text in x_ticks:
            x, _ = self.place(value, self.y.low)
            parts.append(f"<text x='{x:.1f}' y='{HEIGHT - 24}' text-anchor='middle'>{text}</text>")
        return (
            f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='100%' role='img'>"
            f"{''.join(parts)}{''.join(shapes)}"
            f"<text x='{WIDTH / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{escape(x_name)}</text>"
            f"<text x='{LEFT}' y='{TOP - 14}'>{escape(y_name)}</text></svg>"
        )


def front_plot(
    entries: Sequence[TrialEntry], front: Sequence[TrialEntry], objectives: Objectives
) -> str:
    """SVG with the first metric upwards and the second to the right; the front is marked.

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
    axes = Axes(
        Range.of([values[1] for values, _ in points], margin=0.06),
        Range.of([values[0] for values, _ in points], margin=0.06),
    )
    numbers = {entry.number for entry in front}
    shapes = []
    for values, entry in points:
        x, y = axes.place(values[1], values[0])
        on_front = entry.number in numbers
        shapes.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{6 if on_front else 4}' "
            f"fill='{'#0e7490' if on_front else '#cbd5e1'}'><title>trial {entry.number}: "
            f"{escape(name_y)} {metric(values[0])}, {escape(name_x)} {metric(values[1])}"
            "</title></circle>"
        )
        if on_front:
            shapes.append(f"<text x='{x + 8:.1f}' y='{y - 8:.1f}'>{entry.number}</text>")
    ticks = [(value, tick(value)) for value in axes.x.ticks()]
    return axes.draw(ticks, name_x, name_y, shapes)


def learning_curves(entries: Sequence[TrialEntry], best: TrialEntry | None, name: str) -> str:
    """Scores by epoch as SVG: a line a trial, the best one thick.

    Args:
        entries: The trials.
        best: The best of them, None for none.
        name: Name of the metric.
    """
    curves = [
        (entry, [(epoch, s) for epoch, s in sorted(entry.scores.items()) if math.isfinite(s)])
        for entry in entries
    ]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return "<p>No scores yet.</p>"
    last = max(epoch for epoch, _ in points)
    axes = Axes(Range(1, max(2, last)), Range.of([score for _, score in points]))
    shapes = []
    for entry, curve in curves:
        places = [axes.place(epoch, score) for epoch, score in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        width = 3 if entry is best else 1.3
        title = f"<title>trial {entry.number}: {escape(entry.reason)}</title>"
        shapes.append(
            f"<polyline points='{line}' fill='none' stroke='{COLOURS[entry.state]}' "
            f"stroke-width='{width}'>{title}</polyline>"
        )
        if places:
            x, y = places[-1]
            shapes.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' "
                f"fill='{COLOURS[entry.state]}'>{title}</circle>"
            )
    return axes.draw([(epoch, str(epoch)) for epoch in _epoch_ticks(last)], "epoch", name, shapes)


def _epoch_ticks(last: int) -> list[int]:
    """Epochs to label on the axis, without those whose numbers would touch the last one."""
    step = max(1, last // 8)
    return sorted({1, *range(step, last - step // 2, step), last})


def state_legend(entries: Sequence[TrialEntry]) -> str:
    """Legend: the colour of each trial state."""
    states = [state for state in TrialState if any(entry.state is state for entry in entries)]
    return (
        "<p>"
        + " ".join(
            f"<span style='color:{COLOURS[state]}'>&#9632;</span> {state}&ensp;" for state in states
        )
        + "</p>"
    )
