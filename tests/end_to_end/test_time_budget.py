"""A study whose time budget is too short for its trials, on a real cluster."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tuner.cli.main import main
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState

SETTINGS = [
    *("--max-epochs", "60", "--num-trials", "3", "--max-concurrent", "2"),
    *("--set", "config.scheduler=wsd", "--set", "policy=none"),
]


def test_trials_end_their_schedules_within_the_time_and_a_longer_run_goes_on(
    cluster: str,
    toy: ModuleType,
    space_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An epoch is said to take 500 s of an hour, so that six more fit, whatever they do take."""
    where = ["--name", "hour", "--studies-dir", str(tmp_path)]
    toy.beside(tmp_path / "hour", toy.CLAIM).write_text("500")
    assert main(["run", str(space_file), *SETTINGS, *where, "--time-budget", "1h"]) == 0
    shown = capsys.readouterr().out
    assert "time budget: about 0.2 trainings of 60 epochs fit into it" in shown
    study = open_study(tmp_path, "hour")
    # the third could not have ended
    assert set(study.record.entries) == {0, 1}
    for number, entry in study.record.entries.items():
        assert entry.state is TrialState.COMPLETED
        # 18 epochs at the full rate, and a fifth of all in which it comes down
        assert (entry.epochs, entry.ends_at) == (23, 23)
        reasons = [d.reason for d in study.record.decisions if d.trial == number]
        assert any("ends its schedule at epoch 23 instead of 60" in reason for reason in reasons)
        config = yaml.safe_load((study.folder / f"trials/{number:04d}/config.yaml").read_text())
        assert config["max_epochs"] == 23
    study.record.close()

    assert main(["resume", "hour", "--studies-dir", str(tmp_path), "--time-budget", "100h"]) == 0
    entries = open_study(tmp_path, "hour").record.entries
    assert [entry.epochs for entry in entries.values()] == [23, 23, 60]
    assert {entry.state for entry in entries.values()} == {TrialState.COMPLETED}
