"""A spec as an object: made of values, sent to other processes, completed and changed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from spec_text import parse

from tuner.errors import SpecError
from tuner.spec.load import load_spec
from tuner.spec.policies import MedianSettings
from tuner.spec.spec_values import PARTS, SECTIONS, SpecValues
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override
from tuner.study.spec_changes import spec_changes

TEXT = """\
metric: [val_nsd, val_dice]
config: {max_epochs: 9, data_dir: phantom, test_fraction: 0.2}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  class_weights: {choice: {plain: uniform, tumour: [1, 1, 5]}}
search: {num_trials: 9, time_budget: 1.5h}
policy: {name: hyperband, reduction_factor: 2}
constraints: {max_memory: 10GB}
confirm: {top: 2}
"""

SPACE = "space: {learning_rate: {uniform: [0.1, 1]}}\n"


def test_a_spec_of_values_is_that_of_the_file() -> None:
    # PyYAML by itself takes 1e-5 for text
    values = yaml.safe_load(TEXT.replace("1e-5", "1.0e-5").replace("1e-2", "1.0e-2"))
    from_file, from_values = parse(TEXT), StudySpec.from_dict(values)
    assert not spec_changes(from_file, from_values)
    assert from_values.to_yaml() == from_file.to_yaml()
    assert not spec_changes(from_file, parse(from_values.source_text))


def test_paths_and_tuples_are_values_too() -> None:
    values = {
        "config": {"data_dir": Path("/data/liver"), "patch_size": (32, 32, 32)},
        "space": {"learning_rate": {"uniform": (0.1, 1)}},
        "policy": "median",
    }
    spec = StudySpec.from_dict(values)
    assert spec.config == {"data_dir": "/data/liver", "patch_size": [32, 32, 32]}
    assert spec.policy == MedianSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": {"num_trials": 0}}, r"^search\.num_trials: num_trials=0: input should be"),
        ({"config": {"max_epoch": 3}}, r"^config\.max_epoch: unknown field 'max_epoch'; did you"),
        ({"config": {"max_epochs": 3.5j}}, r"^config\.max_epochs: 3\.5j is a complex, but a sea"),
        ({"polcy": "asha"}, r"^polcy: unknown section 'polcy'; did you mean 'policy'"),
        ({"space": {}}, r"^space: space is empty"),
        ({"space": {"momentum": {"uniform": [0.5, 1.0]}}}, r"^space\.momentum\.uniform: mom"),
    ],
)
def test_wrong_values_name_their_key(values: dict[str, Any], message: str) -> None:
    whole = {"space": {"learning_rate": {"uniform": [0.1, 1]}}, **values}
    with pytest.raises(SpecError, match=message):
        StudySpec.from_dict(whole)


def test_all_wrong_values_come_at_once() -> None:
    wrong = {"config": {"max_epochs": 0}, "space": {"loss": {"choice": ["dise"]}}, "confirm": 3}
    with pytest.raises(SpecError) as error:
        StudySpec.from_dict(wrong)
    keys = [line.split(": ")[0] for line in str(error.value).splitlines()]
    assert keys == ["config.max_epochs", "space.loss.choice.0", "confirm"]


def test_a_file_is_loaded_with_other_values(tmp_path: Path) -> None:
    path = tmp_path / "liver.yaml"
    path.write_text(TEXT)
    spec = load_spec(str(path), num_trials=40, optimizer="sgd", policy="pasha")
    assert (spec.search.num_trials, spec.policy.name) == (40, "pasha")
    assert (spec.config["optimizer"], spec.search.time_budget) == ("sgd", 5400)
    assert "optimizer" not in spec.space.domains
    # after those of the command line, and as they are: text is not read as YAML
    both = load_spec(path, {"search.seed": Override("3", "--seed 3")}, **{"search.seed": 4})
    assert both.search.seed == 4
    with pytest.raises(SpecError, match=r"^num_trials='four': num_trials='four': input should be"):
        load_spec(path, num_trials="four")
    with pytest.raises(SpecError, match=r"^num_trial=4: unknown field 'num_trial'"):
        load_spec(path, num_trial=4)


def test_a_setting_that_one_section_has_needs_no_section() -> None:
    assert parse(TEXT, num_trials="3").search.num_trials == 3
    assert parse(TEXT, hang_timeout="1h").failures.hang_timeout == 3600
    # the seed of a training is a field of the config, and comes first
    assert parse(TEXT, seed="3").config["seed"] == 3


def test_a_spec_is_sent_to_other_processes() -> None:
    spec = parse(TEXT)
    again = pickle.loads(pickle.dumps(spec))
    assert not spec_changes(spec, again)
    assert again == spec
    assert type(again.policy) is type(spec.policy)
    values = {"optimizer": "sgd", "momentum": 0.9, "class_weights": [1, 1, 5]}
    assert again.trial_config(values) == spec.trial_config(values)


def test_a_spec_is_completed_and_changed_without_reading_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = parse(TEXT)
    monkeypatch.setattr(StudySpec, "from_source", lambda *_: pytest.fail("read again"))
    completed = spec.completed({"num_classes": 3, "input_channels": 2}, "the data")
    assert completed.config == {**spec.config, "num_classes": 3, "input_channels": 2}
    assert completed.base_config().input_channels == 2
    longer = completed.with_settings({"search.num_trials": Override("12", "--num-trials 12")})
    assert (longer.search.num_trials, longer.search.time_budget) == (12, 5400)
    (change,) = spec_changes(completed, longer)
    assert change.describe() == "search.num_trials: 9 -> 12"
    assert "num_classes" not in spec.config


def test_what_does_not_fit_a_spec_any_more_is_told_with_its_place() -> None:
    spec = parse(TEXT)
    with pytest.raises(SpecError, match=r"^s\.yaml:7:3: with .*: class_weights has 3 entries"):
        spec.completed({"num_classes": 4}, "the data")
    with pytest.raises(SpecError, match=r"^the data: num_classes=1: input should be greater"):
        spec.completed({"num_classes": 1}, "the data")
    with pytest.raises(SpecError, match=r"^--num-trials 0: num_trials=0: input should be greater"):
        spec.with_settings({"search.num_trials": Override("0", "--num-trials 0")})
    values = StudySpec.from_dict(spec.to_dict())
    with pytest.raises(SpecError, match=r"^space\.class_weights: with .*class_weights has 3"):
        values.completed({"num_classes": 4}, "the data")


def test_every_section_is_listed_once_and_follows_from_the_table() -> None:
    assert list(parse(TEXT).to_dict()) == ["format", *PARTS]
    for name in SECTIONS:
        assert name in SpecValues.model_fields
        spec = parse(f"{SPACE}{name}: {{}}\n")
        again = parse(spec.to_yaml())
        assert getattr(again, name) == getattr(spec, name)
        with pytest.raises(SpecError, match=f"2:.*{name} must be a"):
            parse(f"{SPACE}{name}: 3\n")
        with pytest.raises(SpecError, match=f"unknown section '{name}z'; did you mean '{name}'"):
            parse(f"{SPACE}{name}z: 3\n")
