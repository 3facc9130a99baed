"""Population based training on a real cluster: weak trials go on from strong ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from tuner.cli import main
from tuner.record import TrialState
from tuner.study import open_study
from tuner.trial import config_file


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_weak_trials_go_on_from_strong_ones(
    cluster: str, space_file: Path, tmp_path: Path, scheduler: str
) -> None:
    space = tmp_path / "population.yaml"
    space.write_text(
        space_file.read_text() + f"scheduler: {scheduler}\npbt: {{perturbation_interval: 1}}\n"
    )
    where = ["--studies-dir", str(tmp_path)]
    run = ["run", str(space), "--num-trials", "4", "--max-concurrent", "2"]
    assert main([*run, "--name", "population", *where]) == 0
    study = open_study(tmp_path, "population")
    entries = study.record.entries
    assert {entry.state for entry in entries.values()} == {TrialState.COMPLETED}
    assert {entry.epochs for entry in entries.values()} == {4}
    steps = [(entry, step) for entry in entries.values() for step in entry.lineage]
    assert steps
    told = [decision for decision in study.record.decisions if decision.action == "inherits"]
    assert len(told) == len(steps)
    for entry, step in steps:
        assert entry.scores[step.epoch] <= entries[step.donor].scores[step.epoch]
        assert step.explored
    for number, entry in entries.items():
        folder = study.folder / "trials" / f"{number:04d}"
        assert yaml.safe_load((folder / "config.yaml").read_text()).items() >= (
            entry.trained_values.items()
        )
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
        for row in rows:
            # what the optimizer really had is what the record says
            values = entry.values_at(int(row["epoch"]))
            assert float(row["learning_rate"]) == pytest.approx(values["learning_rate"])
            config = yaml.safe_load(config_file(folder, int(row["epoch"])).read_text())
            assert config["learning_rate"] == values["learning_rate"]
            assert float(row["val_dice"]) == pytest.approx(entry.scores[int(row["epoch"])])
        assert not list(folder.glob("epoch-*.ckpt"))
    with (study.folder / "results.csv").open() as file:
        takes_over = {int(row["trial"]): row["takes_over"] for row in csv.DictReader(file)}
    assert all(f"trial {step.donor} at epoch" in takes_over[entry.number] for entry, step in steps)
    # the model that is exported says how its weights came about
    weak = steps[-1][0]
    bundle = tmp_path / "bundle"
    export = ["export", "population", "--trial", str(weak.number), "-o", str(bundle)]
    assert main([*export, *where]) == 0
    best = weak.best("max")
    assert best is not None
    exported = yaml.safe_load((bundle / "config.yaml").read_text())
    assert exported["learning_rate"] == weak.values_at(best[0])["learning_rate"]
