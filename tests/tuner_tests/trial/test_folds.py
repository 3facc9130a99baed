"""A trial on several folds: real trainings of a tiny network on the phantom, without Ray."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages import InMemoryStorage
from tiny_trial import QUIET, TINY, VALUES, reports_of

from training.data import PreprocessedDataset, generate_phantom
from tuner.spec.study_spec import StudySpec
from tuner.study.checkpoint_files import checkpoint_files
from tuner.study.data import StudyData, prepare_data
from tuner.study.files import best_checkpoints
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.run import TrialRun

pytestmark = QUIET

CONFIG = {**TINY, "max_epochs": 2}

Step = tuple[int, float]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory, private_cache: Path) -> Path:
    return generate_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_cases=5, seed=1)


def spec_of(phantom: Path, folds: int = 2, **config: Any) -> StudySpec:
    return StudySpec.from_dict(
        {
            "config": {"data_dir": str(phantom), **CONFIG, **config},
            "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}},
            "search": {"num_trials": 2, "folds": folds},
        }
    )


@pytest.fixture(scope="module")
def data(phantom: Path) -> StudyData:
    return prepare_data(spec_of(phantom))


def context_of(folder: Path, data: StudyData, spec: StudySpec | None = None) -> StudyContext:
    return StudyContext(folder, spec or data.spec, data.for_trials, gpus=0)


def train(
    context: StudyContext, *, steps: int = 99, fold: int = 0, values: dict[str, float] = VALUES
) -> list[Any]:
    """The reports of a trial that is closed after so many."""
    run = TrialRun(context, context.spec, TrialRequest(0, values, fold=fold))
    return reports_of(run, steps)


def scores(reports: list[Any]) -> list[Step]:
    return [(r.epoch, r.score) for r in reports if isinstance(r, EpochReport)]


def test_every_fold_judges_cases_that_it_did_not_train_on(data: StudyData) -> None:
    splits = [PreprocessedDataset.load(source.preprocessed).splits for source in data.for_trials]
    assert len(splits) == 2
    first, second = splits
    assert first["test"] == second["test"] != []
    assert not set(first["val"]) & set(second["val"])
    assert set(first["val"]) | set(second["val"]) == set(first["train"]) | set(first["val"])
    assert first["train"] == second["val"]


@pytest.fixture(scope="module")
def whole(data: StudyData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A study folder with a trial that trained to its end, and what it reported."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(context_of(folder, data))


def test_a_trial_trains_on_one_fold_after_the_other(whole: tuple[Path, list[Any]]) -> None:
    folder, reports = whole
    assert [epoch for epoch, _ in scores(reports)] == [1, 2, 3, 4]
    end = reports[-1]
    assert (end.state, end.reason) == (TrialState.COMPLETED, "trained on all 2 folds")
    checkpoints = best_checkpoints(folder, 0, 2)
    trial = folder / "trials" / "0000"
    assert checkpoints == {0: trial / "best.ckpt", 1: trial / "fold-1" / "best.ckpt"}
    for fold, path in checkpoints.items():
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        assert (config["fold"], config["num_folds"], config["test_fraction"]) == (fold, 2, 0.2)
        with (path.parent / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["1", "2"]
        reported = [score for _, score in scores(reports)[2 * fold : 2 * fold + 2]]
        assert [float(row["val_dice"]) for row in rows] == reported
    own = [file.path for file in checkpoint_files(folder, 0, ["*.ckpt"])]
    assert sorted(path.relative_to(trial).as_posix() for path in own) == [
        "best.ckpt",
        "fold-1/best.ckpt",
        "fold-1/last.ckpt",
        "last.ckpt",
    ]


@pytest.mark.parametrize("cut", [2, 3])
def test_a_trial_that_was_cut_off_goes_on_in_its_fold(
    data: StudyData, whole: tuple[Path, list[Any]], tmp_path: Path, cut: int
) -> None:
    """Between two folds, and in the second one, by what the record has."""
    context = context_of(tmp_path, data)
    record = StudyRecord(
        tmp_path, data.spec.space, "max", InMemoryStorage(), fold_epochs=data.spec.fold_epochs
    )
    entry = record.propose(VALUES, "test")
    for steps in (cut, 99):
        for epoch, score in scores(train(context, steps=steps, fold=entry.finished_folds)):
            record.report(0, epoch, score, {}, 1.0)
    assert sorted(entry.scores.items()) == scores(whole[1])


def test_folds_that_end_early_end_at_the_same_epochs_as_others(
    phantom: Path, data: StudyData, tmp_path: Path
) -> None:
    """Nothing changes at such a rate, so each fold ends after two of four epochs."""
    config = {"max_epochs": 4, "early_stopping_patience": 1, "optimizer": "sgd"}
    context = context_of(tmp_path, data, spec_of(phantom, **config, num_classes=3))
    steps = scores(train(context, values={"learning_rate": 1e-30}))
    assert [epoch for epoch, _ in steps] == [1, 4, 5, 8]
