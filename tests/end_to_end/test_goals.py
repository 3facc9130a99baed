"""Several metrics, constraints, budgets, a warm start and a confirmation, on a real cluster."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from training.data import PreprocessedDataset
from tuner.cli.main import main
from tuner.study.confirmation import CASES, SEED, confirmed_configs, is_finished, open_confirmation
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

GOALS = """\
metric: [val_dice, val_seconds_per_case, parameters]
config:
  data_dir: DATA
  num_classes: 3
  model_params: {depths: [1, 1], num_heads: [1, 2], patch_size: [2, 4, 4]}
  patch_size: [8, 32, 32]
  steps_per_epoch: 2
  window_overlap: 0
  val_batch_size: 8
  max_epochs: 2
space:
  learning_rate: {loguniform: [1e-3, 1e-1]}
  model_params.embed_dim: {choice: [4, 8, 64]}
search: {searcher: nsga2, num_trials: 4, epoch_budget: 4, seed: 1}
policy: none
resources: {logical_gpus: true}
constraints: {max_parameters: 100K, max_memory: 8GB}
confirm: {top: 1, seeds: 2}
"""


@pytest.fixture(scope="module")
def study(cluster: str, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose epochs were spent, and that went on with more of them."""
    folder = tmp_path_factory.mktemp("goals")
    space = folder / "goals.yaml"
    space.write_text(GOALS.replace("DATA", str(data_dir)))
    where = ["--studies-dir", str(folder)]
    start = ["--set", "search.start_from=[{model_params.embed_dim: 64}]"]
    run = ["run", str(space), "--name", "goals", "--max-concurrent", "2"]
    assert main([*run, *start, "--set", "confirm=false", *where]) == 0
    first = open_study(folder, "goals")
    assert sum(entry.epochs for entry in first.record.entries.values()) >= 4
    assert is_finished(first)
    raised = first.folder / "spec.resolved.yaml"
    raised.write_text(raised.read_text().replace("confirm: false", "confirm: {top: 1, seeds: 2}"))
    assert main(["resume", "goals", "--epoch-budget", "100", *where]) == 0
    return open_study(folder, "goals")


def test_a_spent_budget_can_be_raised(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.spec.search.epoch_budget == 100
    assert len(study.record.entries) == 4
    assert is_finished(study)
    assert main(["status", "goals", "--studies-dir", str(study.folder.parent)]) == 0
    assert "of 100 epochs" in capsys.readouterr().out


def test_a_network_above_the_limit_does_not_train(study: Study) -> None:
    large = [e for e in study.record.entries.values() if e.values["model_params.embed_dim"] == 64]
    assert large
    for entry in large:
        assert entry.state is TrialState.INFEASIBLE
        assert "parameters, above max_parameters=100,000" in entry.reason
        assert entry.epochs == 0
        assert entry.notes["violation"] > 0


def test_costs_are_measured_and_the_front_is_shown(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in study.record.with_state(TrialState.COMPLETED):
        assert 0 < entry.metrics["val_seconds_per_case"] < 60
        assert 0 < entry.metrics["peak_memory"] < 8e9
        assert 0 < entry.metrics["parameters"] <= 100_000
    with (study.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "True" in {row["on_front"] for row in rows}
    assert main(["status", "goals", "--studies-dir", str(study.folder.parent)]) == 0
    shown = capsys.readouterr().out
    assert "val_seconds_per_case (min)" in shown
    report = (study.folder / "report.html").read_text()
    assert "Pareto front" in report


def test_the_winner_is_confirmed_on_cases_that_selected_nothing(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_confirmation(study)
    assert opened is not None
    confirmation = opened.record
    preprocessed = Path(study.provenance()["data"]["preprocessed"])
    splits = PreprocessedDataset.load(preprocessed).splits
    for entry in confirmation.entries.values():
        assert entry.state is TrialState.COMPLETED
        assert set(entry.notes[CASES]) == set(splits["test"])
        folder = study.folder / "confirm" / "trials" / f"{entry.number:04d}"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["seed"] == entry.notes[SEED]
    assert {entry.notes[SEED] for entry in confirmation.entries.values()} == {1, 2}
    configs = confirmed_configs(study, opened)
    kept = {int(path.parent.name) for path in study.folder.glob("confirm/trials/*/best.ckpt")}
    assert kept == {config.trials[0].number for config in configs}
    assert len(kept) < len(confirmation.entries)
    where = ["--studies-dir", str(study.folder.parent)]
    assert main(["status", "goals", *where]) == 0
    assert "confirm" in capsys.readouterr().out
    with (study.folder / "confirm.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"2"}
    assert main(["export", "goals", "-o", str(tmp_path / "bundle"), *where]) == 0
    assert "confirmed" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert manifest["provenance"]["confirmed"] is True
    assert manifest["provenance"]["seed"] in {1, 2}


def test_a_study_learns_from_an_earlier_one(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "second.yaml"
    text = (study.folder / "spec.yaml").read_text().replace("[4, 8, 64]", "[4, 8, 12]")
    space.write_text(text.replace("confirm: {top: 1, seeds: 2}", "confirm: false"))
    where = ["--studies-dir", str(study.folder.parent)]
    run = ["run", str(space), "--name", "second", "--num-trials", "1", "--epoch-budget", "9"]
    assert main([*run, "--warm-start", "goals", *where]) == 0
    shown = capsys.readouterr().out
    used = sum(
        entry.state is TrialState.COMPLETED and entry.values["model_params.embed_dim"] != 64
        for entry in study.record.entries.values()
    )
    assert f"{used} of 4 trials of goals fit this space" in shown
    second = open_study(study.folder.parent, "second")
    assert len(second.record.entries) == 1
    assert is_finished(second)
