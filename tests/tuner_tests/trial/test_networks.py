"""What `tune check` says of a space before anything is trained."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tuner.errors import SpecError
from tuner.report.spec import print_spec
from tuner.spec.load import parse_spec
from tuner.trial.networks import check_networks

NETWORKS = """
config:
  model_params: {depths: [1, 1], num_heads: [1, 2], patch_size: [2, 4, 4]}
  patch_size: [8, 32, 32]
space:
  model_params.embed_dim: {choice: [4, 8, 16]}
  learning_rate: {loguniform: [1e-4, 1e-1]}
"""


def checked(text: str) -> str:
    out = io.StringIO()
    spec = parse_spec(text, source="s.yaml")
    networks = check_networks(spec)
    print_spec(Console(file=out, width=200), spec)
    return out.getvalue() + "\n".join(networks.describe())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ("max_parameters: 100", "above max_parameters=100;"),
        ("max_memory: 10KB", "at least, above max_memory=10.0KB;"),
    ],
)
def test_a_space_without_a_network_that_fits_is_refused(limits: str, reason: str) -> None:
    with pytest.raises(SpecError) as error:
        checked(f"{NETWORKS}constraints: {{{limits}}}\n")
    assert "none of the 3 networks" in str(error.value)
    assert "the smallest, dformer3d with model_params.embed_dim=4, has" in str(error.value)
    assert reason in str(error.value)
    assert "raise the limit, or let smaller networks" in str(error.value)


def test_networks_that_would_be_infeasible_are_counted() -> None:
    assert "break" not in checked(NETWORKS)
    smallest = NETWORKS.replace("[4, 8, 16]", "[4]")
    (size,) = {
        int(word.replace(",", ""))
        for word in _error(f"{smallest}constraints: {{max_parameters: 100}}\n").split()
        if word.replace(",", "").isdecimal() and "," in word
    }
    shown = checked(f"{NETWORKS}constraints: {{max_parameters: {size}}}\n")
    assert "3 different ones of this space can be built; 2 of them break a constraint" in shown


def _error(text: str) -> str:
    with pytest.raises(SpecError) as error:
        checked(text)
    return str(error.value)


GRID = """
space:
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.5, 0.9], when: {optimizer: sgd}}
"""


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("num_trials: 4, default_first: false", "6 points: num_trials=4 ends the search before"),
        ("num_trials: 50, default_first: false", "all are tried, after 6 trials"),
        ("num_trials: 50", "the search ends when all are tried, after 6 trials"),
        (
            "num_trials: 50, start_from: [{optimizer: sgd, momentum: 0.55}]",
            "6 points, 7 trials with those to try first: the search ends when all are tried, "
            "after 7 trials",
        ),
    ],
)
def test_the_size_of_a_grid_is_said(search: str, says: str) -> None:
    shown = checked(f"{GRID}search: {{searcher: grid, {search}}}\nconfig: {{max_epochs: 10}}\n")
    assert says in shown
    trials = 4 if "num_trials: 4," in search else 7 if "start_from" in search else 6
    assert f"{trials * 10} " in shown.split("budget", 1)[1].split("times")[0]
