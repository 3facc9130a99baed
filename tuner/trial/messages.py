"""What driver and worker tell each other."""

from __future__ import annotations

from tuner.study.confirmation import CASES, GRID
from tuner.study.trial_entry import VIOLATION

TRIAL_NUMBER = "trial_number"
"""Key under which a trial's number travels beside its sampled values."""

INHERITS = "inherits"
"""Key under which travels what a trial took over from another: its number, and the epoch."""

UNDEFINED = "undefined"
"""Key of a result, and action in the record: the score of an epoch is not defined, and why."""

TRIAL_NOTES = (VIOLATION, CASES, GRID)
"""What a trial may report with its ending, and the record notes."""
