"""Population based training on a real cluster: weak trials go on from strong ones."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tuner
from tuner.cli.main import main
from tuner.study.config_files import config_file
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState


def population_space(space_file: Path, folder: Path, policy: str) -> Path:
    space = folder / "population.yaml"
    space.write_text(
        space_file.read_text()
        .replace(
            "{name: asha, grace_period: 1, reduction_factor: 2}",
            f"{{name: {policy}, perturbation_interval: 1}}",
        )
        .replace("config:\n", "config:\n  scheduler: none\n  warmup_epochs: 0\n")
    )
    return space


def test_weak_trials_go_on_from_strong_ones(cluster: str, space_file: Path, tmp_path: Path) -> None:
    space = population_space(space_file, tmp_path, "pbt")
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
            assert float(row["lr"]) == pytest.approx(values["learning_rate"])
            config = yaml.safe_load(config_file(folder, int(row["epoch"])).read_text())
            assert config["learning_rate"] == values["learning_rate"]
            assert float(row["val_dice"]) == pytest.approx(entry.scores[int(row["epoch"])])
        assert not list(folder.glob("epoch-*.ckpt"))
    for entry, step in steps:
        # other values are another run to TensorBoard, which knows one set of them a run
        later = [other.epoch for other in entry.lineage if other.epoch > step.epoch]
        folder = study.folder / "trials" / f"{entry.number:04d}"
        events = EventAccumulator(str(folder / f"from-{step.epoch + 1:05d}"))
        events.Reload()
        trained = list(range(step.epoch + 1, min([4, *later]) + 1))
        assert [event.step for event in events.Scalars("val_dice")] == trained
        best = max(event.value for event in events.Scalars("val_dice"))
        assert events.Scalars("best_val_dice")[-1].value == best
    with (study.folder / "results.csv").open() as file:
        results = {int(row["trial"]): row for row in csv.DictReader(file)}
    takes_over = {number: row["takes_over"] for number, row in results.items()}
    for number, row in results.items():
        # the values that the best epoch was trained with, not those of the last take-over
        values = entries[number].values_at(int(row["best_epoch"]))
        assert float(row["params_learning_rate"]) == values["learning_rate"]
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


def decisions(study: Study) -> list[tuple[int, int, str, str]]:
    """All decisions but those to stop and go on again."""
    return [
        (decision.trial, decision.epoch, decision.action, decision.reason)
        for decision in study.record.decisions
        if decision.action not in {"interrupted", "resumed"}
    ]


def test_a_killed_driver_loses_nothing_and_decides_the_same(
    cluster: str, space_file: Path, tmp_path: Path
) -> None:
    """Real training, killed after a trial has taken over another, before the study is over."""
    space = population_space(space_file, tmp_path, "pb2")
    where = ["--studies-dir", str(tmp_path)]
    run = ["run", str(space), "--num-trials", "4", "--max-concurrent", "1"]
    assert main([*run, "--name", "calm", *where]) == 0
    environment = {**os.environ, "PYTHONPATH": str(Path(tuner.__file__).parents[1])}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tuner", *run, "--name", "cut", "--address", cluster, *where],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    deadline = time.monotonic() + 180
    while True:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        if (tmp_path / "cut" / "optuna.db").is_file():
            cut = open_study(tmp_path, "cut")
            if any(entry.lineage for entry in cut.record.entries.values()):
                break
        time.sleep(0.1)
    driver.kill()
    driver.wait(timeout=60)
    assert not is_finished(cut)
    assert main(["resume", "cut", *where]) == 0
    calm, cut = open_study(tmp_path, "calm"), open_study(tmp_path, "cut")
    assert decisions(cut) == decisions(calm)
    for number, entry in calm.record.entries.items():
        assert cut.record.entries[number].scores == entry.scores
        assert cut.record.entries[number].lineage == entry.lineage
