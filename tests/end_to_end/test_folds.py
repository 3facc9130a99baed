"""Folds as a fidelity on a real cluster: trials pause between folds, and the best get all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tuner.cli.main import main
from tuner.study.files import best_checkpoints
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState

SETTINGS = ["folds=2", "searcher=random", "max_epochs=2", "optimizer=adamw", "policy=none"]


def test_the_best_trials_are_judged_on_every_fold(
    cluster: str,
    space_file: Path,
    tmp_path: Path,
    toy: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--name", "folds", "--studies-dir", str(tmp_path)]
    options = [part for setting in SETTINGS for part in ("--set", setting)]
    words = ["run", str(space_file), "--num-trials", "6", "--max-concurrent", "2", *options]
    # one trial fails in its second fold, and goes on there
    fault = {"0": {"epoch": 1, "what": "exception", "times": 1, "fold": 1}}
    (tmp_path / "folds.faults.json").write_text(json.dumps(fault))
    assert main([*words, *where]) == 0
    log = capsys.readouterr().out
    assert "epoch 1/2 of fold 2/2" in log
    study = open_study(tmp_path, "folds")
    entries = study.record.entries
    best = study.record.best()
    assert best is not None
    assert (best.state, best.finished_folds) == (TrialState.COMPLETED, 2)
    assert best.best("max") == (4, pytest.approx(sum(best.fold_scores("max")) / 2))
    assert best.reason == "trained on all 2 folds"
    # the score of a trial depends on its rate alone, so the best of the first fold is the best
    assert best.number == max(entries, key=lambda number: entries[number].scores[2])
    held = [entry for entry in entries.values() if entry.state is TrialState.STOPPED]
    assert held
    assert all(entry.epochs == 2 and "by the race" in entry.reason for entry in held)
    for fold, path in best_checkpoints(study.folder, best.number, 2).items():
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        assert (config["fold"], config["num_folds"]) == (fold, 2)
        assert toy.repeated(path.parent / toy.TRAINED) == []
    with (study.folder / "results.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if int(row["trial"]) == best.number)
    assert (row["folds"], row["epochs"]) == ("2", "4")
    assert json.loads(row["fold_values"]) == best.fold_scores("max")
    assert main(["status", "folds", "--studies-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"(trial {best.number}, mean of 2 folds)" in shown
