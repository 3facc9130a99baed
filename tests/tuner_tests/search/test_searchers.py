"""One suite over all searchers, and what each does by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from trial_messages import completed, epoch_result

from tuner.driver.searcher import RecordSearcher, build_searcher
from tuner.errors import SpecError
from tuner.search.encoding import SpaceEncoding
from tuner.search.gaussian_process import GaussianProcess, hyperparameter_prior, loss_and_gradient
from tuner.search.policies import Policy, build_policy
from tuner.search.searchers import SEARCHERS, SearchView
from tuner.search.searchers.gp import clustered_failures
from tuner.search.searchers.ranks import ranks_by_rung
from tuner.spec.grid import planned_trials
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.testing import SEARCHER_CHECKS, check_proposals_lie_in_the_space
from tuner.trial.messages import TrialRequest

SPACE = """
config: {max_epochs: 9, class_weights: [1, 2, 5]}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  nesterov: {choice: [true, false], when: {optimizer: sgd}}
  scheduler: {choice: [none, step]}
  step_size: {randint: [2, 5], when: {scheduler: step}}
  foreground_fraction: {quniform: [0.3, 0.9, 0.2]}
"""


def spec_of(search: str = "{}", space: str = SPACE, more: str = "") -> StudySpec:
    return parse_spec(f"{space}\nsearch: {search}\n{more}\n", source="space.yaml")


def in_memory(spec: StudySpec) -> StudyRecord:
    return StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())


def searcher_of(spec: StudySpec, record: StudyRecord) -> RecordSearcher:
    return build_searcher(Study(record.folder, spec, record), build_policy(record, spec))


def view(record: StudyRecord, spec: StudySpec, seed: int = 0) -> SearchView:
    rungs = (*spec.rungs(), spec.max_epochs)
    return SearchView(record, len(record.entries), seed, spec.default_point(), rungs)


def quality(values: dict[str, Any]) -> float:
    """Best at learning_rate 1e-3 with sgd and a momentum of 0.9."""
    found = -abs(math.log10(values["learning_rate"]) + 3)
    if values["optimizer"] == "sgd":
        found += 0.5 - 5 * abs(values["momentum"] - 0.9)
    return found


def end(searcher: RecordSearcher, trial_id: str, score: float) -> None:
    searcher.on_trial_complete(trial_id, {**epoch_result(9, score), **completed()})


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"grid"}))
def test_proposals_lie_in_the_space_and_meet_its_conditions(name: str) -> None:
    check_proposals_lie_in_the_space(name)


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"grid"}))
@pytest.mark.parametrize("check", SEARCHER_CHECKS)
def test_every_searcher_passes_the_checks_for_plugins(
    check: Callable[[str], None], name: str
) -> None:
    check(name)


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_proposals_depend_on_the_record_alone(name: str, tmp_path: Path) -> None:
    space = SPACE
    if name == "grid":
        space = (
            "space: {learning_rate: {loguniform: [1e-5, 1e-2]}, optimizer: {choice: [adamw, sgd]}}"
        )
    spec = spec_of(f"{{searcher: {name}, num_trials: 24, seed: 7}}", space, "policy: none")

    def propose(folder: Path, *, restart_every: int) -> list[Any]:
        folder.mkdir()
        proposals = []
        for number in range(24):
            if number % restart_every == 0:
                searcher = searcher_of(spec, StudyRecord(folder, spec.space, "max"))
            proposal = searcher.suggest(f"ray-{number}")
            proposals.append(proposal)
            if not isinstance(proposal, dict):
                break
            end(searcher, f"ray-{number}", -abs(math.log10(proposal["learning_rate"]) + 3))
        return proposals

    assert propose(tmp_path / "a", restart_every=100) == propose(tmp_path / "b", restart_every=5)


@pytest.mark.parametrize("name", ["gp", "tpe", "cmaes", "priorband", "nsga2"])
def test_learning_beats_random_draws(name: str) -> None:
    """The mean of the last proposals is better than that of random ones."""
    means = {}
    for searcher in (name, "random"):
        spec = spec_of(f"{{searcher: {searcher}, num_trials: 70}}", more="policy: none")
        record = in_memory(spec)
        drawn = searcher_of(spec, record)
        for number in range(70):
            proposal = drawn.suggest(str(number))
            assert isinstance(proposal, dict)
            end(drawn, str(number), quality(proposal))
        means[searcher] = np.mean([quality(record.entries[n].values) for n in range(45, 70)])
    assert means[name] > means["random"] + 0.1


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"grid"}))
def test_neighbouring_seeds_share_no_trial(name: str) -> None:
    drawn = []
    for seed in (0, 1):
        spec = spec_of(f"{{searcher: {name}, num_trials: 8, seed: {seed}, default_first: false}}")
        searcher = searcher_of(spec, in_memory(spec))
        found = [searcher.suggest(str(number)) for number in range(8)]
        drawn.append({values["learning_rate"] for values in found})  # type: ignore[index]
    assert not drawn[0] & drawn[1]


@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_concurrent_trials_spread_out(name: str) -> None:
    spec = spec_of(f"{{searcher: {name}, num_trials: 60}}", more="policy: none")
    record = in_memory(spec)
    searcher = searcher_of(spec, record)
    for number in range(15):
        proposal = searcher.suggest(str(number))
        assert isinstance(proposal, dict)
        end(searcher, str(number), quality(proposal))
    encoding = SpaceEncoding(spec.space)
    for number in range(15, 25):
        searcher.suggest(str(number))
    points = [encoding.encode(record.entries[number].values) for number in range(15, 25)]
    distances = [np.abs(one - other).max() for i, one in enumerate(points) for other in points[:i]]
    # drawn without regard to each other, all ten would crowd at one place
    assert np.median(distances) > 0.1
    assert min(distances) > 1e-3


def test_a_trial_that_failed_by_itself_is_forgotten_and_a_diverged_one_is_not() -> None:
    spec = spec_of()
    record = in_memory(spec)
    for _ in range(5):
        record.propose(spec.default_point(), "test")
    record.report(0, 1, 0.9, {}, 1.0)
    record.report(1, 1, 0.2, {}, 1.0)
    record.report(1, 3, 0.1, {}, 1.0)
    record.finish(2, TrialState.DIVERGED, "loss is nan")
    record.finish(3, TrialState.FAILED, "its node went away")
    # the one that came further is better than the better one of the rung below
    assert ranks_by_rung(view(record, spec)) == {2: 0.0, 0: 1.0, 1: 2.0}


def test_the_default_comes_first_then_start_from() -> None:
    search = "{start_from: [{optimizer: sgd, momentum: 0.95}, {learning_rate: 0.005}]}"
    spec = spec_of(search)
    searcher = searcher_of(spec, in_memory(spec))
    proposals = [searcher.suggest(str(n)) for n in range(3)]
    requests = [TrialRequest.from_ray(config) for config in proposals if isinstance(config, dict)]
    assert [request.number for request in requests] == [0, 1, 2]
    first, second, third = (request.values for request in requests)
    default = {
        "optimizer": "adamw",
        # D-Former's recipe; its schedule is none of those that vary here
        "learning_rate": 8e-4,
        "scheduler": "none",
        # of the steps 0.3, 0.5, 0.7, 0.9 the one nearest to the default
        "foreground_fraction": spec.default_point()["foreground_fraction"],
    }
    assert first == default
    assert second == {
        **default,
        "optimizer": "sgd",
        "learning_rate": 1e-2,
        "momentum": 0.95,
        "nesterov": spec.default_point().get("nesterov", second["nesterov"]),
    }
    assert third == {**default, "learning_rate": 0.005}


def test_the_default_is_the_fixed_value_or_what_comes_nearest() -> None:
    text = """
config: {model_params: {depths: [1, 1]}}
space:
  learning_rate: {loguniform: [1e-3, 1e-2]}
  class_weights: {choice: {plain: [1, 1, 1], inverse: inverse_frequency}}
  model_params.embed_dim: {choice: [16, 24]}
  train_batch_size: {randint: [1, 9]}
"""
    point = parse_spec(text, source="space.yaml").default_point()
    assert point["learning_rate"] == 1e-3
    assert point["class_weights"] == [1, 1, 1]
    assert point["model_params.embed_dim"] == 16


def test_a_cut_off_trial_goes_on_with_its_number_and_values(tmp_path: Path) -> None:
    spec = spec_of("{searcher: random, num_trials: 2}")
    proposal = searcher_of(spec, StudyRecord(tmp_path, spec.space, "max")).suggest("a")
    searcher = searcher_of(spec, StudyRecord(tmp_path, spec.space, "max"))
    assert searcher.suggest("b") == proposal
    following = searcher.suggest("c")
    assert isinstance(following, dict)
    assert TrialRequest.from_ray(following).number == 1
    # both run: one of them may yet have to go on
    assert searcher.suggest("d") is None
    end(searcher, "b", 0.5)
    end(searcher, "c", 0.5)
    assert searcher.suggest("d") == "FINISHED"


def test_paused_trials_are_closed_when_the_study_ends() -> None:
    spec = spec_of("{num_trials: 3}", more="policy: {name: asha, promotion: true, grace_period: 9}")
    record = in_memory(spec)
    searcher = build_searcher(Study(record.folder, spec, record), Policy(record))
    for number in range(3):
        searcher.suggest(str(number))
        record.pause(number, "at rung 1")
    assert searcher.suggest("x") == "FINISHED"
    assert {entry.state for entry in record.entries.values()} == {TrialState.STOPPED}
    assert record.entries[0].reason == "paused after epoch 0: never promoted: at rung 1"


def test_the_grid_has_every_point_once() -> None:
    space = """
space:
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.5, 0.9], when: {optimizer: sgd}}
  train_batch_size: {randint: [1, 3]}
"""
    spec = spec_of("{searcher: grid, num_trials: 99, default_first: false}", space)
    record = in_memory(spec)
    searcher = searcher_of(spec, record)
    while isinstance(searcher.suggest("x"), dict):
        pass
    points = [entry.values for entry in record.entries.values()]
    assert len(points) == 3 + 5 * 3
    assert all(points.count(point) == 1 for point in points)
    momenta = sorted({point["momentum"] for point in points if "momentum" in point})
    assert momenta == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


GRID = """
space:
  optimizer: {choice: [adamw, sgd]}
  nesterov: {choice: [true, false], when: {optimizer: sgd}}
  train_batch_size: {randint: [1, 3]}
"""


@pytest.mark.parametrize(
    ("search", "first", "trials"),
    [
        ("num_trials: 99", ["default"], 9),
        (
            "num_trials: 99, start_from: [{optimizer: sgd, train_batch_size: 3}]",
            ["default", "start_from"],
            9,
        ),
        # the default once more is no other point
        ("num_trials: 99, start_from: [{train_batch_size: 2}, {}]", ["default"], 9),
        ("default_first: false, num_trials: 4", [], 4),
    ],
)
def test_what_was_tried_first_is_not_tried_again(
    search: str, first: list[str], trials: int
) -> None:
    """Of a grid as of any other searcher; and the study is over when the grid is."""
    spec = spec_of("{searcher: grid, " + search + "}", GRID)
    record = in_memory(spec)
    searcher = searcher_of(spec, record)
    assert planned_trials(spec) == trials
    while isinstance(searcher.suggest("x"), dict):
        pass
    entries = list(record.entries.values())
    assert [entry.proposed_by for entry in entries[: len(first)]] == first
    assert {entry.proposed_by for entry in entries[len(first) :]} == {"grid"}
    points = [entry.values for entry in entries]
    assert len(points) == trials
    assert all(points.count(point) == 1 for point in points)


def test_a_continuous_default_is_a_point_beside_the_grid() -> None:
    spec = spec_of(
        "{searcher: grid, num_trials: 99}", "space: {learning_rate: {loguniform: [1e-5, 1e-1]}}"
    )
    record = in_memory(spec)
    searcher = searcher_of(spec, record)
    while isinstance(searcher.suggest("x"), dict):
        pass
    assert len(record.entries) == planned_trials(spec) == 1 + 5


def test_a_grid_that_is_too_large_is_refused() -> None:
    fields = [
        "learning_rate",
        "weight_decay",
        "momentum",
        "lr_decay",
        "poly_power",
        "foreground_fraction",
    ]
    lines = "\n".join(f"  {field}: {{uniform: [0.1, 0.9]}}" for field in fields)
    spec = spec_of("{searcher: grid}", f"space:\n{lines}")
    with pytest.raises(SpecError, match="more than 10000 points"):
        searcher_of(spec, in_memory(spec))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_encoding_and_decoding_agree(seed: int) -> None:
    spec = spec_of()
    encoding = SpaceEncoding(spec.space)
    vectors = np.random.default_rng(seed).uniform(-0.2, 1.2, (4, encoding.size))
    settled = encoding.snapped(vectors)
    for vector, found in zip(vectors, settled, strict=True):
        values = encoding.decode(vector)
        np.testing.assert_allclose(found, encoding.encode(values), atol=1e-9)
        again = encoding.decode(found)
        assert again.keys() == values.keys()
        for field, value in values.items():
            assert spec.space.domains[field].contains(value)
            assert again[field] == (pytest.approx(value) if isinstance(value, float) else value)


def _data(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    points = rng.uniform(size=(number, 2))
    budgets = rng.choice([0.0, 0.5, 1.0], number)
    values = np.sin(5 * points[:, 0]) * (0.5 + 0.5 * budgets) + budgets
    return points, budgets, (values - values.mean()) / values.std()


def test_the_gradient_of_the_process_equals_finite_differences() -> None:
    points, budgets, values = _data(20)
    squares = np.stack([(points[:, None, i] - points[None, :, i]) ** 2 for i in range(2)])
    means, spreads = hyperparameter_prior(2)
    logs = means + np.array([0.3, -0.2, 0.7, 0.4, 0.1, -0.5])
    arguments = (squares, budgets, values, means, spreads)
    _, gradient = loss_and_gradient(logs, *arguments)
    numeric = approx_fprime(logs, lambda x: loss_and_gradient(x, *arguments)[0], 1e-6)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_the_process_predicts_as_a_conditional_normal_does() -> None:
    """The posterior by conditioning the joint normal of values and predictions."""
    points, budgets, values = _data(12)
    process = GaussianProcess.fit(points, budgets, values, np.arange(2))
    new = np.array([[0.2, 0.4], [0.9, 0.1]])
    mean, deviation = process.predict(new, np.ones(2))

    def covariance(p: np.ndarray, t: np.ndarray, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        signal, _, _, length = np.exp(process.logs[:4])
        distance = np.sqrt(5 * (((p[:, None] - q[None]) / np.exp(process.logs[4:])) ** 2).sum(-1))
        matern = (1 + distance + distance**2 / 3) * np.exp(-distance)
        return (signal * matern + 1) * np.exp(-0.5 * ((t[:, None] - u[None]) / length) ** 2)

    full = np.ones(2)
    noise = np.diag(np.exp(process.logs[1] + process.logs[2] * budgets) + 1e-6)
    inverse = np.linalg.inv(covariance(points, budgets, points, budgets) + noise)
    cross = covariance(points, budgets, new, full)
    np.testing.assert_allclose(mean, cross.T @ inverse @ values, rtol=1e-6)
    expected = covariance(new, full, new, full) - cross.T @ inverse @ cross
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(expected)), rtol=1e-5)
    # and the density that is maximised is that of the values
    joint = covariance(points, budgets, points, budgets) + noise
    squares = np.stack([(points[:, None, i] - points[None, :, i]) ** 2 for i in range(2)])
    means, spreads = hyperparameter_prior(2)
    loss, _ = loss_and_gradient(process.logs, squares, budgets, values, means, spreads)
    prior = 0.5 * (((process.logs - means) / spreads) ** 2).sum()
    density = multivariate_normal(np.zeros(12), joint).logpdf(values)
    assert loss == pytest.approx(prior - density - 6 * math.log(2 * math.pi), rel=1e-6)


def test_a_lone_diverged_trial_had_bad_luck() -> None:
    places = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.95, 1.0]
    encoded = {number: np.array([place]) for number, place in enumerate(places)}
    assert clustered_failures([2, 6, 7, 8], encoded) == [6, 7, 8]


def test_the_process_learns_that_late_scores_are_steadier() -> None:
    rng = np.random.default_rng(0)
    points, budgets = rng.uniform(size=(80, 1)), rng.choice([0.0, 1.0], 80)
    values = np.sin(4 * points[:, 0]) + np.where(budgets == 0, 0.5, 0.02) * rng.normal(size=80)
    process = GaussianProcess.fit(
        points, budgets, (values - values.mean()) / values.std(), np.zeros(1, dtype=int)
    )
    early, late = np.exp(process.logs[1] + process.logs[2] * np.array([0.0, 1.0]))
    assert early > 20 * late


def test_the_process_learns_that_early_scores_tell_of_late_ones() -> None:
    """Configurations seen at the first epoch alone are ranked rightly at the last."""
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(40, 1))
    budgets = np.where(np.arange(40) < 30, 0.0, 1.0)
    values = -((points[:, 0] - 0.7) ** 2) * 4 + budgets
    process = GaussianProcess.fit(
        points, budgets, (values - values.mean()) / values.std(), np.zeros(1, dtype=int)
    )
    grid = np.linspace(0, 1, 101)[:, None]
    mean, _ = process.predict(grid, np.ones(101))
    assert abs(grid[mean.argmax(), 0] - 0.7) < 0.05


def test_no_more_trials_are_proposed_than_there_are_places() -> None:
    spec = spec_of("{searcher: random, num_trials: 5}")
    record = in_memory(spec)
    places = [2]
    study = Study(record.folder, spec, record)
    searcher = build_searcher(study, build_policy(record, spec), lambda: places[0])
    assert [searcher.suggest(name) is not None for name in "abc"] == [True, True, False]
    places[0] = 3
    assert searcher.suggest("c") is not None
    end(searcher, "a", 0.5)
    # a node left: what runs goes on, and nothing takes the place of what has ended
    places[0] = 2
    assert searcher.suggest("d") is None
    end(searcher, "b", 0.5)
    assert searcher.suggest("d") is not None
    assert len(record.entries) == 4


def test_without_a_place_a_study_waits_unless_it_is_over() -> None:
    spec = spec_of("{searcher: random, num_trials: 5}")
    record = in_memory(spec)
    over = [False]
    searcher = build_searcher(Study(record.folder, spec, record), Policy(record), lambda: 0)
    searcher.wait_unless(lambda: over[0])
    assert searcher.suggest("a") is None
    over[0] = True
    assert searcher.suggest("a") == "FINISHED"
    assert record.entries == {}
