from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from training.config import ModelTrainingConfig
from tuner.errors import SpecError
from tuner.spec.load import parse_spec
from tuner.spec.policies import POLICY_SETTINGS
from tuner.spec.reference import (
    FieldHelp,
    all_fields,
    as_yaml,
    config_fields,
    find_fields,
    section_fields,
    sections,
)

FIELDS = {row.name: row for row in config_fields()}


def test_every_field_and_every_setting_has_help_and_a_group() -> None:
    assert list(FIELDS) == list(ModelTrainingConfig.model_fields)
    assert [row.key for row in all_fields() if not (row.text and row.group and row.summary)] == []


@pytest.mark.parametrize(
    "row", [row for row in all_fields() if row.key != "policy.name"], ids=lambda row: row.key
)
def test_the_default_is_what_is_printed(row: FieldHelp) -> None:
    """Read as YAML and put into a file, the printed default changes nothing."""
    models: dict[str, Any] = {"config": ModelTrainingConfig, **sections()}
    model = POLICY_SETTINGS[row.read_by[0]] if row.read_by else models[row.section]
    value = yaml.safe_load(row.default)
    default = getattr(model(), row.name)
    given = getattr(model(**{row.name: value}), row.name)
    assert given == pytest.approx(default) if isinstance(default, float) else given == default


@pytest.mark.parametrize("row", [row for row in FIELDS.values() if row.domain], ids=lambda r: r.key)
def test_the_example_of_a_domain_is_valid(row: FieldHelp) -> None:
    domain = row.domain.replace("KEY: {choice: [...]}", "embed_dim: {choice: [16, 32]}")
    text = f"config: {{data_dir: phantom}}\nspace:\n  {domain}"
    domains = parse_spec(text, source="x").space.domains
    assert [name.partition(".")[0] for name in domains] == [row.name]


@pytest.mark.parametrize("name", [row.name for row in FIELDS.values() if not row.domain])
def test_a_field_without_example_is_refused_in_a_space(name: str) -> None:
    text = f"config: {{data_dir: phantom}}\nspace:\n  {name}: {{choice: [1, 2]}}"
    with pytest.raises(SpecError):
        parse_spec(text, source="x")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("learning_rate", "number (above 0)"),
        ("test_fraction", "number (0 or more and below 1) or null"),
        ("patch_size", "list of 3, each: whole number (1 or more) or auto"),
        ("nesterov", "true or false"),
        ("num_workers", "whole number (0 or more) or auto"),
        ("data_dir", "path"),
        ("search.time_budget", "duration, e.g. 90s, 30m or 2h or null"),
        ("checkpoints.disk_budget", "size, e.g. 500MB or 20GB or null"),
        ("search.start_from", "list, each: mapping"),
    ],
)
def test_types_and_ranges_are_said_in_words(name: str, kind: str) -> None:
    (row,) = find_fields(name)
    assert row.kind == kind


def test_every_choice_of_a_field_is_named() -> None:
    assert FIELDS["precision"].kind == "auto | 32-true | 16-mixed | bf16-mixed"
    for name in ("optimizer", "loss", "scheduler", "model_name"):
        known = FIELDS[name].kind.split(" | ")
        assert FIELDS[name].default in known
        assert known[-1] == "package.module:function"


def test_a_setting_of_a_policy_names_those_that_read_it() -> None:
    (row,) = find_fields("policy.grace_period")
    assert row.read_by == ("asha", "pasha", "median")
    (name,) = find_fields("policy.name")
    assert name.kind.split(" | ") == [*POLICY_SETTINGS, "package.module:function"]
    assert parse_spec("space: {seed: {randint: [0, 9]}}", source="x").policy.name == name.default


def test_names_are_found_with_and_without_their_section() -> None:
    for name in ("search.num_trials", "num_trials"):
        assert [row.key for row in find_fields(name)] == ["search.num_trials"]
    # a field of the config before a setting of the same name
    assert [row.key for row in find_fields("seed")] == ["seed"]
    assert [row.key for row in find_fields("search.seed")] == ["search.seed"]
    assert find_fields("search") == section_fields("search")
    for heading in ("optimisation", "Optimisation"):
        assert {row.group for row in find_fields(heading)} == {"Optimisation"}
    assert [row.name for row in find_fields("median")] == ["grace_period"]
    assert find_fields("space") == [row for row in config_fields() if row.domain]
    assert [row.key for row in find_fields("model_params.embed_dim")] == ["model_params"]
    assert find_fields("config.learning_rate") == [FIELDS["learning_rate"]]


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="'learnin_rate'; did you mean 'learning_rate'"):
        find_fields("learnin_rate")
    for key in ("metric", "mode"):
        with pytest.raises(SpecError, match=f"top of the file.*`{key}: "):
            find_fields(key)
    with pytest.raises(SpecError, match="`tune fields` lists all of them"):
        find_fields("zzzz")


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.25, 1e-5, "phantom", [1, 2], {"a": [None, False]}, [], {}]
)
def test_values_are_written_as_yaml(value: object) -> None:
    # YAML 1.1 takes 1e-05 for text; the reader of search spaces does not
    read = yaml.safe_load(as_yaml(value))
    assert (float(read) if isinstance(value, float) else read) == value


def test_reading_the_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from tuner.spec.reference import all_fields; all_fields(); "
        "print({'torch', 'ray', 'optuna', 'monai'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
