"""The colours of trial states, in the terminal and in the plots of the report."""

from __future__ import annotations

from tuner.study.trial_entry import TrialState

_COLOURS = {
    TrialState.RUNNING: ("cyan", "#0e7490"),
    TrialState.PAUSED: ("blue", "#2563eb"),
    TrialState.COMPLETED: ("green", "#15803d"),
    TrialState.STOPPED: ("yellow", "#ca8a04"),
    TrialState.DIVERGED: ("red", "#dc2626"),
    TrialState.OUT_OF_MEMORY: ("red", "#dc2626"),
    TrialState.INFEASIBLE: ("red", "#ea580c"),
    TrialState.FAILED: ("red", "#dc2626"),
    TrialState.INTERRUPTED: ("magenta", "#9333ea"),
}

STYLES = {state: style for state, (style, _) in _COLOURS.items()}
"""Styles of rich."""

COLOURS = {state: colour for state, (_, colour) in _COLOURS.items()}
"""Colours of SVG."""
