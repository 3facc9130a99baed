"""`results.csv`, read back with a CSV reader and with pandas."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.storages import InMemoryStorage

from training.config import ModelTrainingConfig
from tuner.report.results_table import write_csv, write_results_csv
from tuner.spec.load import load_spec, parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Exploit, TrialState

ROOT = Path(__file__).parents[3]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


def record_of(spec: StudySpec) -> StudyRecord:
    return StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())


def written(record: StudyRecord, spec: StudySpec, folder: Path) -> list[dict[str, str]]:
    """The rows of the table, whose columns are all different."""
    path = folder / "results.csv"
    write_results_csv(path, Study(folder, spec, record))
    with path.open(newline="") as file:
        names = next(csv.reader(file))
        assert len(names) == len(set(names))
        file.seek(0)
        return list(csv.DictReader(file))


def meant(cell: str, value: Any) -> bool:
    """Whether a cell says a value."""
    if value is None or isinstance(value, list | tuple):
        return bool(json.loads(cell) == value)
    return cell == str(value)


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_the_table_has_the_sampled_values_of_every_shipped_space(
    space: Path, tmp_path: Path
) -> None:
    """With all that a trial logs: the rate of its schedule is not the one that was sampled."""
    spec = load_spec(space)
    record = record_of(spec)
    rng = random.Random(0)
    for number in range(30):
        record.propose(spec.space.sample(rng), "test")
        sampled = record.entries[number].values["learning_rate"]
        for epoch in (1, 2, 3):
            score = 0.1 + 0.1 * number / 30 - abs(epoch - 2) / 50
            logged = {"val_dice": score, "val_loss": 1 - score, "lr": sampled / epoch}
            record.report(number, epoch, score, logged, 2.0)
    rows = written(record, spec, tmp_path)
    frame = pd.read_csv(tmp_path / "results.csv")
    for number, (row, entry) in enumerate(zip(rows, record.entries.values(), strict=True)):
        for name in spec.space.domains:
            if name in entry.values:
                assert meant(row[f"params_{name}"], entry.values[name]), name
            else:
                assert row[f"params_{name}"] == ""
        assert float(row["value"]) == float(row["metrics_val_dice"]) == entry.scores[2]
        assert frame["params_learning_rate"][number] == entry.values["learning_rate"]
        assert frame["metrics_lr"][number] == entry.values["learning_rate"] / 2
        assert frame["value"][number] == entry.scores[2]
        assert (row["trial"], row["state"], row["best_epoch"]) == (str(number), "running", "2")
    # no column could be taken for another
    assert not set(frame.columns) & set(ModelTrainingConfig.model_fields)
    assert set(frame.filter(regex="^params_").columns) == {
        f"params_{n}" for n in spec.space.domains
    }


POPULATION = """
config: {max_epochs: 9}
space: {learning_rate: {loguniform: [1e-5, 1e-1]}, train_batch_size: {randint: [1, 8]}}
policy: {name: pbt, perturbation_interval: 2}
"""


@pytest.mark.parametrize(("best", "rate"), [(1, 0.01), (2, 0.01), (3, 0.02), (5, 0.03)])
def test_a_score_is_beside_the_values_that_its_epoch_was_trained_with(
    tmp_path: Path, best: int, rate: float
) -> None:
    spec = parse_spec(POPULATION, source="s.yaml")
    record = record_of(spec)
    for _ in range(2):
        record.propose({"learning_rate": 0.01, "train_batch_size": 8}, "test")
    for epoch in range(1, 6):
        record.report(0, epoch, 0.9 if epoch == best else 0.1, {}, 1.0)
        if epoch in {2, 4}:
            values = {"learning_rate": 0.01 + 0.005 * epoch, "train_batch_size": 8}
            record.pause(0, "weak")
            record.exploit(0, Exploit(epoch, 1, values, {}), "")
            record.running(0)
    row, other = written(record, spec, tmp_path)
    assert float(row["params_learning_rate"]) == pytest.approx(rate)
    assert row["takes_over"].count("trial 1 at epoch") == 2
    # without a score, what it will train with
    assert (other["params_learning_rate"], other["value"]) == ("0.01", "")


@pytest.mark.parametrize(("best", "size"), [(2, "8"), (3, "4"), (4, "2")])
def test_a_score_is_beside_the_batch_that_it_was_trained_with(
    tmp_path: Path, best: int, size: str
) -> None:
    """A trial that runs out of memory goes on with a smaller batch."""
    spec = parse_spec(POPULATION, source="s.yaml")
    folder = tmp_path / "study"
    folder.mkdir()
    record = StudyRecord(folder, spec.space, "max")
    record.propose({"learning_rate": 0.01, "train_batch_size": 8}, "test")
    for epoch in range(1, 5):
        record.report(0, epoch, 0.9 if epoch == best else 0.1, {}, 1.0)
        if epoch in {2, 3}:
            smaller = {"train_batch_size": 4 if epoch == 2 else 2, "val_batch_size": 1}
            record.retry(0, "out of memory", smaller)
            record.running(0)
    for known in (record, StudyRecord(folder, spec.space, "max")):
        (row,) = written(known, spec, tmp_path)
        assert row["params_train_batch_size"] == size
        fixed = str(spec.base_config().val_batch_size)
        assert row["params_val_batch_size"] == (fixed if best == 2 else "1")


def test_what_a_retry_replaced_is_shown_of_the_other_trials_too(tmp_path: Path) -> None:
    """A column of it that is empty for all others would say that they have no batch."""
    space = "config: {train_batch_size: 6}\nspace: {learning_rate: {uniform: [0.1, 1]}}"
    spec = parse_spec(space, source="s.yaml")
    record = record_of(spec)
    for _ in range(2):
        record.propose({"learning_rate": 0.5}, "test")
    record.retry(0, "out of memory", {"train_batch_size": 3, "patch_size": [8, 16, 16]})
    smaller, other = written(record, spec, tmp_path)
    assert (smaller["params_train_batch_size"], other["params_train_batch_size"]) == ("3", "6")
    patch = json.dumps(list(spec.base_config().patch_size))
    assert (smaller["params_patch_size"], other["params_patch_size"]) == ("[8, 16, 16]", patch)


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It called the logged rate learning_rate, and did not tell when a batch became smaller."""
    spec = parse_spec(POPULATION, source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.01, "train_batch_size": 8}, "test")
    record.report(0, 1, 0.5, {"val_dice": 0.5, "learning_rate": 0.002}, 1.0)
    record._note(record.entries[0], "overrides", {"train_batch_size": 4})
    (row,) = written(StudyRecord(tmp_path, spec.space, "max"), spec, tmp_path)
    assert (row["params_learning_rate"], row["metrics_lr"]) == ("0.01", "0.002")
    assert row["params_train_batch_size"] == "4"
    assert "metrics_learning_rate" not in row


def test_running_trials_are_rows_and_count_for_the_best() -> None:
    spec = parse_spec(POPULATION, source="s.yaml")
    record = record_of(spec)
    for score in (0.4, 0.6):
        entry = record.propose({"learning_rate": 0.01, "train_batch_size": 8}, "test")
        record.report(entry.number, 1, score, {}, 1.0)
    record.finish(0, TrialState.COMPLETED, "")
    best, ended = record.best(), record.best(running=False)
    assert best is not None
    assert ended is not None
    assert (best.number, ended.number) == (1, 0)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with pytest.raises(ValueError, match=r"results\.csv would have two columns.*params_a"):
        write_csv(path, ["trial", "params_a", "params_a"], [{"trial": 1}])
    assert not path.exists()
