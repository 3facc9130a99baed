"""ASHA's promotion variant on a real cluster: trials pause, and the best go on."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tuner.cli.main import main
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState


@pytest.mark.parametrize("policy", ["asha", "pasha"])
def test_paused_trials_go_on_where_they_were(
    cluster: str, space_file: Path, tmp_path: Path, policy: str
) -> None:
    text = space_file.read_text().replace("name: asha", f"name: {policy}")
    space = tmp_path / "promotion.yaml"
    space.write_text(text)
    where = ["--name", "promotion", "--studies-dir", str(tmp_path)]
    assert main(["run", str(space), "--num-trials", "6", "--max-concurrent", "2", *where]) == 0
    study = open_study(tmp_path, "promotion")
    assert is_finished(study)
    entries = study.record.entries
    assert len(entries) == 6
    ended = {entry.state for entry in entries.values()}
    assert ended <= {TrialState.COMPLETED, TrialState.STOPPED}
    epochs = sorted(entry.epochs for entry in entries.values())
    assert set(epochs) <= {1, 2, 4}
    # three of six pass the first rung
    assert sum(reached > 1 for reached in epochs) >= 3
    if policy == "asha":
        assert epochs[-1] == 4
    for number, entry in entries.items():
        folder = study.folder / "trials" / f"{number:04d}"
        with (folder / "metrics.csv").open() as file:
            assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(entry.scores)
        events = EventAccumulator(str(folder))
        events.Reload()
        # no epoch was trained twice
        assert len(events.Scalars("val_dice")) == entry.epochs
        if entry.state is TrialState.STOPPED:
            assert re.match(r"paused at rung [12] \(epoch [12]\): never promoted: ", entry.reason)
