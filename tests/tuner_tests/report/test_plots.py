"""Axes of the report's pictures: every value lies inside them, in its order."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    Range,
    front_plot,
    learning_curves,
)
from tuner.study.trial_entry import TrialEntry, TrialState

NUMBERS = st.floats(-1e9, 1e9).map(lambda number: round(number, 3))


@given(st.lists(NUMBERS, min_size=1), st.sampled_from([0.0, 0.06]))
def test_every_value_lies_on_the_axis_and_in_its_order(values: list[float], margin: float) -> None:
    axis = Range.of(values, margin)
    assert axis.low < axis.high
    places = [Axes(axis, axis).place(value, value) for value in sorted(values)]
    for x, y in places:
        assert LEFT - 1e-6 <= x <= WIDTH - RIGHT + 1e-6
        assert TOP - 1e-6 <= y <= HEIGHT - BOTTOM + 1e-6
    assert places == sorted(places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_corners_of_a_picture_by_hand() -> None:
    axes = Axes(Range(1, 5), Range(0.0, 1.0))
    assert axes.place(1, 0.0) == (LEFT, HEIGHT - BOTTOM)
    assert axes.place(5, 1.0) == (WIDTH - RIGHT, TOP)
    assert Range(0.0, 1.0).ticks() == [0, 0.25, 0.5, 0.75, 1]


def entry(number: int, *scores: float) -> TrialEntry:
    by_epoch = dict(enumerate(scores, start=1))
    metrics = {"val_dice": max(scores), "val_nsd": 1 - max(scores)}
    return TrialEntry(number, {}, TrialState.COMPLETED, "<done>", by_epoch, metrics)


@pytest.mark.parametrize("epochs", [1, 2, 7, 100])
def test_learning_curves_name_the_first_and_the_last_epoch(epochs: int) -> None:
    svg = learning_curves([entry(0, *([0.5] * epochs))], None, "val_dice")
    below = re.findall(rf"<text x='([\d.]+)' y='{HEIGHT - 24}' text-anchor='middle'>(\d+)", svg)
    assert {int(text) for _, text in below} >= {1, epochs}
    # no two numbers run into each other
    places = sorted(float(x) for x, _ in below)
    assert all(after - before > 25 for before, after in pairwise(places))
    assert "val_dice</text>" in svg
    assert "&lt;done&gt;" in svg


def test_a_picture_of_nothing_is_a_sentence() -> None:
    objectives = [("val_dice", "max"), ("val_nsd", "max")]
    nothing = TrialEntry(0, {})
    assert learning_curves([nothing], None, "val_dice") == "<p>No scores yet.</p>"
    assert front_plot([nothing], [], objectives).startswith("<p>No trial")
    assert front_plot([entry(0, 0.5)], [], objectives).startswith("<svg")
