"""Metrics, constraints, budgets and confirmation as a search space has them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from spec_text import parse

from tuner.errors import SpecError
from tuner.report.spec import print_spec

SPACE = "space: {learning_rate: {loguniform: [1e-5, 1e-2]}}\n"

FULL = (
    SPACE
    + """\
metric: [val_dice, val_seconds_per_case, peak_memory]
search: {epoch_budget: 500, gpu_hours: 12.5, time_budget: 1h, warm_start: [old], num_trials: 9}
constraints: {max_parameters: 30M, max_memory: 10GB}
confirm: {top: 2, seeds: 4}
"""
)


def problems(text: str, **overrides: Any) -> str:
    with pytest.raises(SpecError) as error:
        parse(text, **overrides)
    return str(error.value)


def test_everything_is_read() -> None:
    spec = parse(FULL)
    assert spec.objectives == (
        ("val_dice", "max"),
        ("val_seconds_per_case", "min"),
        ("peak_memory", "min"),
    )
    assert (spec.metric, spec.mode) == ("val_dice", "max")
    assert (spec.search.epoch_budget, spec.search.gpu_hours) == (500, 12.5)
    assert spec.constraints.max_parameters == 30_000_000
    assert spec.constraints.max_memory == 10**10
    assert spec.confirm is not None
    assert (spec.confirm.top, spec.confirm.seeds) == (2, 4)
    assert spec.search.warm_start == ["old"]


def test_the_resolved_file_reads_back_the_same() -> None:
    for text in (FULL, SPACE):
        spec = parse(text)
        again = parse(spec.to_yaml())
        assert again.to_yaml() == spec.to_yaml()
        assert again.model_dump(exclude={"source_text", "space"}) == spec.model_dump(
            exclude={"source_text", "space"}
        )


def test_options_replace_each_of_them() -> None:
    spec = parse(
        FULL,
        metric="[val_dice, parameters]",
        confirm="false",
        constraints__max_parameters="5_000K",
        search__epoch_budget="7",
    )
    assert spec.objectives == (("val_dice", "max"), ("parameters", "min"))
    assert spec.confirm is None
    assert spec.constraints.max_parameters == 5_000_000
    assert spec.search.epoch_budget == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric: [val_dice, val_dise]\n", "s.yaml:1:20: unknown metric 'val_dise'; did you mean"),
        ("metric: [val_seconds_per_case, val_dice]\n", "cannot be the first metric"),
        ("metric: val_seconds_per_case\n", "s.yaml:1:9: val_seconds_per_case cannot be the first"),
        ("metric: [val_dice, val_dice]\n", "s.yaml:1:20: val_dice comes twice"),
        ("metric: [val_dice, val_nsd]\n", "only where it is the first metric"),
        ("metric: []\n", "metric is empty: name one"),
        ("metric: [val_dice, parameters]\nmode: max\n", "write [max, min], or leave out"),
        ("metric: [val_dice, val_dice_7]\nconfig: {num_classes: 3}\n", "names no foreground class"),
        ("constraints: {max_params: 3}\n", "s.yaml:1:15: unknown name 'max_params'; did you mean"),
        ("constraints: {max_parameters: many}\n", "s.yaml:1:31: max_parameters='many': 'many' is"),
        ("constraints: {max_parameters: 0}\n", "greater than or equal to 1"),
        ("constraints: {max_memory: lots}\n", "s.yaml:1:27: max_memory='lots'"),
        ("constraints: 3\n", "constraints must be a mapping"),
        ("confirm: {top: 0}\n", "s.yaml:1:16: top=0"),
        ("confirm: {seeds: 1}\n", "s.yaml:1:18: seeds=1"),
        ("confirm: yes please\n", "confirm must be a mapping of names, or auto or false"),
        ("confirm: {}\nconfig: {fold: 0}\n", "s.yaml:2:16: confirm judges trials on test cases"),
        ("confirm: {}\nconfig: {test_fraction: 0}\n", "set e.g. test_fraction: 0.2"),
        ("search: {epoch_budget: 0}\n", "s.yaml:1:24: epoch_budget=0"),
        ("search: {gpu_hours: -1}\n", "s.yaml:1:21: gpu_hours=-1"),
        ("search: {epoch_budget: 1.5}\n", "epoch_budget=1.5"),
        ("search: {searcher: random, warm_start: [a]}\n", "searcher=random learns nothing"),
        ("search: {warm_start: a}\n", "warm_start='a'"),
        ("search: {start_from: [{learning_rat: 1}]}\n", "learning_rat does not vary in this space"),
        ("search: {start_from: [{learning_rate: 1}]}\n", "learning_rate=1 lies outside its domain"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str) -> None:
    assert message in problems(text + SPACE)


def test_a_start_point_meets_its_conditions() -> None:
    text = """
space:
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
search: {start_from: [{momentum: 0.9}]}
"""
    assert "momentum takes no part in this point: give the optimizer" in problems(text)


def test_a_fold_with_test_cases_can_be_confirmed() -> None:
    spec = parse("confirm: {}\nconfig: {fold: 0, test_fraction: 0.1}\n" + SPACE)
    assert spec.confirm is not None


def test_check_shows_all_of_it() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_spec(console, parse(FULL))
    shown = console.export_text()
    for words in (
        "max val_dice, min val_seconds_per_case, min peak_memory",
        "at most   500 epochs, 12.5 GPU-hours, 3600 s a run",
        "learns    from the studies old",
        "networks  of at most 30,000,000 parameters, 10.0GB of memory",
        "confirm   the best 2 and the default config, 4 seeds each",
        "up to 1200 epochs",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("config: {train_batch_size: 3}\n", "1:28"),
        ("", "2:"),
    ],
)
def test_the_gpus_of_a_trial_share_its_batch_evenly(text: str, place: str) -> None:
    shared = text + SPACE + "resources: {gpu: 4, batch: trial}\n"
    told = problems(shared)
    assert "cannot be shared by the 4 GPUs of a trial (resources.batch: trial)" in told
    assert f":{place}" in told
    parse(shared.replace("batch: trial", "batch: gpu"))
    parse("config: {train_batch_size: 8}\n" + SPACE + "resources: {gpu: 4, batch: trial}\n")
