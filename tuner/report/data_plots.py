"""Pictures of a dataset as SVG: a dot a case, and the range of intensities of each case.

Colours come from the style sheet of the page, so that they fit a light and a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tuner.report.plots import Range

WIDTH, LEFT, RIGHT, ROW = 900, 150, 24, 34

HEIGHT, BOTTOM, TOP = 240, 24, 10
"""Pixels of the picture of intensities."""

MOST_DOTS = 400
"""Dots of a row at most; of more cases the extreme ones and evenly chosen others are shown."""


@dataclass(frozen=True)
class Strip:
    """A row of dots.

    Attributes:
        name: What it shows.
        values: Value of each case.
        cases: Name of each case.
        colour: Colour of the dots; that of the page by default.
    """

    name: str
    values: Sequence[float]
    cases: Sequence[str]
    colour: str = ""


def strip_plot(strips: Sequence[Strip], unit: str, *, logarithmic: bool = False) -> str:
    """Rows of dots on one axis, a dot a case, with a mark at the median of each row.

    Args:
        strips: The rows; values that are not finite, or on a logarithmic axis not above 0, are
            left out.
        unit: Unit of the axis.
        logarithmic: Whether the axis is logarithmic.
    """
    shown = [
        [
            (value, case)
            for value, case in zip(strip.values, strip.cases, strict=True)
            if math.isfinite(value) and (value > 0 or not logarithmic)
        ]
        for strip in strips
    ]
    scaled = [_scale(value, logarithmic) for row in shown for value, _ in row]
    if not scaled:
        return "<p>There is nothing to show.</p>"
    axis = Range.of(scaled, margin=0.04)
    height = ROW * len(strips) + 30
    parts = []
    for value in _ticks(axis, logarithmic):
        x = _across(axis, _scale(value, logarithmic))
        parts.append(
            f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='4' y2='{height - 26}'/>"
            f"<text x='{x:.1f}' y='{height - 10}' text-anchor='middle'>{_number(value)}</text>"
        )
    parts.append(f"<text x='0' y='{height - 10}'>{escape(unit)}</text>")
    for index, (strip, row) in enumerate(zip(strips, shown, strict=True)):
        y = ROW * index + ROW / 2
        parts.append(f"<text x='0' y='{y + 4:.1f}'>{escape(shortened(strip.name))}</text>")
        parts += _dots(strip, row, axis, y, logarithmic)
    return f"<svg viewBox='0 0 {WIDTH} {height}' role='img'>{''.join(parts)}</svg>"


def shortened(name: str, length: int = 20) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def _dots(
    strip: Strip,
    row: Sequence[tuple[float, str]],
    axis: Range,
    y: float,
    logarithmic: bool,
) -> list[str]:
    fill = f" style='fill:{strip.colour}'" if strip.colour else ""
    ordered = sorted(row)
    step = max(1, math.ceil(len(ordered) / MOST_DOTS))
    edge = len(ordered) if step == 1 else 10
    parts = []
    for place, (value, case) in enumerate(ordered):
        if edge <= place < len(ordered) - edge and place % step:
            continue
        x = _across(axis, _scale(value, logarithmic))
        # neighbours do not cover each other
        lift = (place * 7 % 11 - 5) * 1.6
        parts.append(
            f"<circle class='dot' cx='{x:.1f}' cy='{y + lift:.1f}' r='3'{fill}>"
            f"<title>{escape(case)}: {value:.4g}</title></circle>"
        )
    if ordered:
        median = ordered[len(ordered) // 2][0]
        x = _across(axis, _scale(median, logarithmic))
        parts.append(
            f"<line class='median' x1='{x:.1f}' x2='{x:.1f}' y1='{y - 13:.1f}' y2='{y + 13:.1f}'>"
            f"<title>median {median:.4g}</title></line>"
        )
    return parts


@dataclass(frozen=True)
class Spread:
    """Intensities of a case: five percentiles, from low to high."""

    case: str
    bounds: tuple[float, float, float, float, float]


def spread_plot(spreads: Sequence[Spread]) -> str:
    """A line a case, from the lowest percentile to the highest, thick between the quartiles."""
    if not spreads:
        return "<p>There is nothing to show.</p>"
    step = max(1, math.ceil(len(spreads) / MOST_DOTS))
    shown = spreads[::step]
    axis = Range.of([bound for spread in shown for bound in spread.bounds], margin=0.03)
    parts = []
    for value in round_ticks(axis.low, axis.high):
        y = _down(axis, value)
        parts.append(
            f"<line class='grid' x1='70' x2='{WIDTH}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='62' y='{y + 4:.1f}' text-anchor='end'>{_number(value)}</text>"
        )
    width = (WIDTH - 80) / len(shown)
    for index, spread in enumerate(shown):
        x = 76 + (index + 0.5) * width
        low, first, median, third, high = (_down(axis, bound) for bound in spread.bounds)
        thick = min(8.0, 0.6 * width)
        parts.append(
            f"<g><title>{escape(spread.case)}: median {spread.bounds[2]:.4g}</title>"
            f"<line class='whisker' x1='{x:.1f}' x2='{x:.1f}' y1='{low:.1f}' y2='{high:.1f}'/>"
            f"<line class='box' x1='{x:.1f}' x2='{x:.1f}' y1='{first:.1f}' y2='{third:.1f}' "
            f"stroke-width='{thick:.1f}'/>"
            f"<circle class='middle' cx='{x:.1f}' cy='{median:.1f}' "
            f"r='{min(2.0, thick / 3):.1f}'/></g>"
        )
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(parts)}</svg>"


def _scale(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _across(axis: Range, scaled: float) -> float:
    return LEFT + axis.share(scaled) * (WIDTH - LEFT - RIGHT)


def _down(axis: Range, value: float) -> float:
    return TOP + (1 - axis.share(value)) * (HEIGHT - TOP - BOTTOM)


def _ticks(axis: Range, logarithmic: bool) -> list[float]:
    """Values to name on an axis: powers of 10, or round ones where those are too few."""
    first, last = math.ceil(axis.low), math.floor(axis.high)
    if logarithmic and last - first >= 1:
        return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 6))]
    if logarithmic:
        return [value for value in round_ticks(10**axis.low, 10**axis.high) if value > 0]
    return round_ticks(axis.low, axis.high)


def round_ticks(low: float, high: float) -> list[float]:
    """About six values between two: 1, 2 or 5 times a power of 10 apart.

    Example:
        >>> round_ticks(49.8, 81.2)
        [50.0, 60.0, 70.0, 80.0]
    """
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _number(value: float) -> str:
    """A value of an axis, in full up to a million."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.4g}"
