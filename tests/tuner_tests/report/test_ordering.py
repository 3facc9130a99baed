"""`--sort KEY` and `--top N`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tuner.errors import StudyError
from tuner.report.ordering import sorted_studies, sorted_trials
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.study import Study

SPACE = """
metric: {metric}
space:
  learning_rate: {{uniform: [0.1, 1]}}
  optimizer: {{choice: [adamw, sgd]}}
  momentum: {{uniform: [0.8, 0.99], when: {{optimizer: sgd}}}}
"""

TRIALS = [
    ({"learning_rate": 0.3, "optimizer": "sgd", "momentum": 0.9}, 0.5, 12.0),
    ({"learning_rate": 0.1, "optimizer": "adamw"}, 0.9, 3.0),
    ({"learning_rate": 0.2, "optimizer": "sgd", "momentum": 0.8}, math.nan, 7.0),
    ({"learning_rate": 0.4, "optimizer": "adamw"}, 0.7, 5.0),
]


def study(folder: Path, metric: str = "val_dice", trials: int = len(TRIALS)) -> Study:
    folder.mkdir()
    spec = parse_spec(SPACE.format(metric=metric), source="s.yaml")
    record = StudyRecord(folder, spec.space, spec.mode)
    for values, score, seconds in TRIALS[:trials]:
        number = record.propose(values, "test").number
        record.report(number, 1, score, {metric: score, "lr": values["learning_rate"]}, seconds)
    return Study(folder, spec, record)


@pytest.mark.parametrize(
    ("key", "order"),
    [
        (None, [0, 1, 2, 3]),
        ("number", [0, 1, 2, 3]),
        ("score", [1, 3, 0, 2]),
        ("val_dice", [1, 3, 0, 2]),
        ("seconds", [1, 3, 2, 0]),
        ("learning_rate", [1, 2, 0, 3]),
        ("lr", [1, 0, 3, 2]),
        ("optimizer", [1, 3, 0, 2]),
        ("momentum", [2, 0, 1, 3]),
    ],
)
def test_trials_are_sorted(tmp_path: Path, key: str | None, order: list[int]) -> None:
    made = study(tmp_path / "s")
    assert [entry.number for entry in sorted_trials(made, key)] == order
    assert [entry.number for entry in sorted_trials(made, key, top=2)] == order[:2]


def test_a_smaller_loss_comes_first(tmp_path: Path) -> None:
    made = study(tmp_path / "s", "val_loss")
    for key in ("score", "val_loss"):
        assert [entry.number for entry in sorted_trials(made, key)] == [0, 3, 1, 2]


def test_an_unknown_key_is_answered_with_the_names(tmp_path: Path) -> None:
    made = study(tmp_path / "s")
    with pytest.raises(StudyError) as error:
        sorted_trials(made, "dice")
    for name in ("--sort dice", "score", "seconds", "learning_rate", "momentum", "val_dice", "lr"):
        assert name in str(error.value)
    with pytest.raises(StudyError, match=r"--sort age.*name, trials, epochs, score"):
        sorted_studies([made], "age")


def test_studies_are_sorted(tmp_path: Path) -> None:
    studies = [study(tmp_path / name, trials=n) for name, n in (("b", 1), ("c", 2), ("a", 0))]

    def names(key: str | None) -> list[str]:
        return [made.name for made in sorted_studies(studies, key)]

    assert names(None) == ["b", "c", "a"]
    assert names("name") == ["a", "b", "c"]
    assert names("trials") == names("epochs") == ["a", "b", "c"]
    assert names("score") == ["c", "b", "a"]
