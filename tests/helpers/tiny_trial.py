"""Trials of a tiny network on the phantom, without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.trial.messages import TrialEnd
from tuner.trial.run import TrialRun

QUIET = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
"""Marks of tests that train without Ray, which would be failed by Lightning's warnings."""

TINY: dict[str, Any] = {
    "model_params": {
        "embed_dim": 4,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "patch_size": [2, 4, 4],
    },
    "patch_size": [8, 32, 32],
    "steps_per_epoch": 1,
    "window_overlap": 0,
    "val_batch_size": 8,
    "num_workers": 0,
}
"""The config of a network that trains an epoch of the phantom in a moment."""

VALUES = {"learning_rate": 0.01}


def reports_of(run: TrialRun, most: int = 99) -> list[Any]:
    """The reports of a trial that is closed after so many."""
    reports: list[Any] = []
    while len(reports) < most and not (reports and isinstance(reports[-1], TrialEnd)):
        reports.append(run.next_report())
    run.close()
    return reports
