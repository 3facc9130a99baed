"""Explains why a study has no model to export, and what to do."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from tuner.study.commands import shown_name, studies_option
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study

ADVICE = {
    TrialState.DIVERGED: "lower the range of learning_rate, or set gradient_clip",
    TrialState.OUT_OF_MEMORY: (
        "make patch_size or train_batch_size smaller, or set "
        "failures.on_out_of_memory: smaller_batch"
    ),
    TrialState.INFEASIBLE: "raise the limits in `constraints`, or let smaller networks in",
    TrialState.FAILED: "see error.txt in the folders of the trials",
    TrialState.STOPPED: "see why the scores of the trials are not finite",
}
"""What the user can do, by the state in which most trials ended."""


def no_winner(record: StudyRecord) -> str:
    """How the trials of a study ended that has none to export, with the reason of the first."""
    states = Counter(entry.state for entry in record.entries.values())
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    first = next(iter(record.entries.values()))
    return f"no trial can be exported: {counted} (trial {first.number}: {first.reason})"


def way_out(study: Study) -> str:
    """What to type when every trial of a study has ended without a model."""
    states = Counter(entry.state for entry in study.record.entries.values())
    advice = next((ADVICE[state] for state, _ in states.most_common() if state in ADVICE), None)
    change = f"{advice}; then " if advice else ""
    name = shlex.quote(f"{shown_name(study.name)}-2")
    command = f"tune run SPACE.yaml --name {name}{studies_option(study.folder.parent)}"
    return f"{change}start a new study with `{command}`"
