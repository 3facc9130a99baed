"""Population based training and its bandits: who takes over whom, and with which values."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _explore
from trial_messages import epoch_result, ray_trial

from tuner.driver.scheduler import RecordScheduler
from tuner.errors import SpecError
from tuner.search.policies import PopulationBandits, PopulationTraining
from tuner.search.policies.explore import perturbed
from tuner.search.policies.pbt import quantiles
from tuner.spec.domains import Choice, LogUniform, QUniform, RandInt, Uniform
from tuner.spec.load import parse_spec
from tuner.spec.policies import PbtSettings
from tuner.spec.space import Space
from tuner.study.lineage import schedule
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import Exploit, TrialState

RATE = Space({"learning_rate": LogUniform(1e-5, 1e-1)})


def new_record(space: Space = RATE, mode: str = "max") -> StudyRecord:
    return StudyRecord(Path("memory"), space, mode, InMemoryStorage())


def policy_of(
    record: StudyRecord,
    population: int,
    kind: type[PopulationTraining] = PopulationTraining,
    epochs: int = 12,
    **fields: Any,
) -> PopulationTraining:
    chosen = {"perturbation_interval": 2, "quantile_fraction": 0.25, **fields}
    return kind(record, PbtSettings(**chosen), population, epochs, seed=3)


def report(record: StudyRecord, policy: PopulationTraining, number: int, score: float) -> str:
    epoch = record.entries[number].epochs + 1
    scheduler = RecordScheduler(record, policy)
    scheduler.on_trial_result(None, ray_trial(number), epoch_result(epoch, score))  # type: ignore[arg-type]
    return record.entries[number].state.value


def population(
    scores: Sequence[float], mode: str = "max", *, synchronous: bool = True
) -> tuple[StudyRecord, Any]:
    """Trials that have trained two epochs, each with a worker of its own."""
    record = new_record(mode=mode)
    policy = policy_of(record, len(scores), synchronous=synchronous)
    for number in range(len(scores)):
        record.propose({"learning_rate": 1e-3 * (number + 1)}, "test")
    for epoch in (1, 2):
        for number, score in enumerate(scores):
            report(record, policy, number, score * epoch)
    return record, policy


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 40), fraction=st.floats(0.01, 0.5))
def test_quantiles_are_those_of_ray(count: int, fraction: float) -> None:
    scheduler = PopulationBasedTraining(
        metric="score",
        mode="max",
        hyperparam_mutations={"a": [1, 2]},
        quantile_fraction=fraction,
    )
    trials = [SimpleNamespace(is_finished=lambda: False, name=n) for n in range(count)]
    scheduler._trial_state = {
        _Hashed(trial): SimpleNamespace(last_score=float(trial.name)) for trial in trials
    }
    lower, upper = scheduler._quantiles()
    ours = quantiles(list(range(count)), fraction)
    assert ([trial.name for trial in lower], [trial.name for trial in upper]) == ours


class _Hashed:
    def __init__(self, trial: SimpleNamespace) -> None:
        self.name = trial.name
        self.is_finished = trial.is_finished


@settings(max_examples=60, deadline=None)
@given(value=st.floats(0.1, 0.8), seed=st.integers(0, 1000))
def test_numbers_move_as_those_of_ray(value: float, seed: int) -> None:
    random.seed(seed)
    mutations = {"a": tune.uniform(0, 1), "b": [1, 2, 3]}
    config, _ = _explore({"a": value, "b": 2}, mutations, 0.0, (1.2, 0.8), None)
    reached = {config["a"], value * (1.2 if config["a"] < value else 0.8)}
    space = Space({"a": Uniform(0, 1), "b": Choice((1, 2, 3))})
    ours = perturbed(space, {"a": value, "b": 2}, random.Random(seed), 0.0)
    assert any(ours["a"] == pytest.approx(number) for number in reached)
    assert ours["b"] in {1, 3}
    assert config["b"] in {1, 3}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), resample=st.floats(0, 1))
def test_explored_values_are_points_of_the_space(seed: int, resample: float) -> None:
    space = Space(
        {
            "optimizer": Choice(("adamw", "sgd")),
            "momentum": Uniform(0.8, 0.99),
            "learning_rate": LogUniform(1e-5, 1e-2),
            "train_batch_size": RandInt(1, 4),
            "foreground_fraction": QUniform(0.3, 0.9, 0.1),
            "class_weights": Choice(("uniform", [1, 5])),
            "seed": RandInt(0, 100),
        },
        {"momentum": {"optimizer": ["sgd"]}},
    )
    rng = random.Random(seed)
    values = space.sample(rng)
    explored = perturbed(space, values, rng, resample)
    active: dict[str, Any] = {}
    for name, domain in space.items():
        if space.active(name, active):
            active[name] = explored[name]
            assert domain.contains(explored[name])
    assert active == explored
    assert explored["seed"] == values["seed"]
    if resample == 0:
        # names have no neighbours; numbers always move
        assert explored["optimizer"] == values["optimizer"]
        assert explored["class_weights"] == values["class_weights"]
        for name in ("learning_rate", "train_batch_size", "foreground_fraction"):
            assert explored[name] != values[name]


@pytest.mark.parametrize(("value", "moved"), [(1e-2, 8e-3), (1e-5, 1.2e-5)])
def test_a_number_at_its_bound_goes_the_other_way(value: float, moved: float) -> None:
    space = Space({"learning_rate": LogUniform(1e-5, 1e-2)})
    for seed in range(10):
        explored = perturbed(space, {"learning_rate": value}, random.Random(seed), 0.0)
        assert explored["learning_rate"] == pytest.approx(moved)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_worst_takes_over_the_best(mode: str) -> None:
    sign = 1 if mode == "max" else -1
    record, policy = population([sign * s for s in (0.5, 0.1, 0.9, 0.4)], mode)
    assert {entry.state for entry in record.entries.values()} == {TrialState.PAUSED}
    while (number := policy.promote()) is not None:
        record.running(number)
    (step,) = record.entries[1].lineage
    assert (step.epoch, step.donor) == (2, 2)
    assert step.values["learning_rate"] != pytest.approx(2e-3)
    old, new = step.explored["learning_rate"]
    assert old == pytest.approx(3e-3)
    assert record.entries[1].trained_values == {"learning_rate": new}
    assert record.entries[1].values == {"learning_rate": 2e-3}
    assert record.entries[1].values_at(2) == {"learning_rate": 2e-3}
    assert not any(record.entries[number].lineage for number in (0, 2, 3))
    (told,) = [decision for decision in record.decisions if decision.action == "inherits"]
    assert "trial 2 at epoch 2: learning_rate 0.003 -> " in told.reason


def test_a_trial_that_waits_is_judged_when_it_goes_on() -> None:
    """It came first and so looked bad, or good; those that came after it count as well."""
    record = new_record()
    policy = policy_of(record, 4)
    for number, score in enumerate((0.2, 0.1, 0.05, 0.9)):
        record.propose({"learning_rate": 1e-3}, "test")
        for _ in range(2):
            state = report(record, policy, number, score)
        assert state == "paused"
    for _ in range(4):
        number = policy.promote()
        assert number is not None
        record.running(number)
    assert [len(entry.lineage) for entry in record.entries.values()] == [0, 0, 1, 0]


def test_nobody_waits_if_it_is_not_synchronous() -> None:
    record, policy = population((0.1, 0.5, 0.05, 0.9), synchronous=False)
    # the first had none to compare with; the third was worse than those before it
    assert record.entries[0].state is TrialState.RUNNING
    assert record.entries[1].state is TrialState.RUNNING
    assert record.entries[2].state is TrialState.PAUSED
    assert "is among the worst 1 of 3 trials: it takes over" in record.entries[2].reason
    assert policy.promote() == 2
    assert [step.donor for step in record.entries[2].lineage] == [3]


def test_what_is_decided_does_not_depend_on_who_is_fast() -> None:
    lineages = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        record = new_record()
        policy = policy_of(record, 4)
        for number in range(4):
            record.propose({"learning_rate": 1e-3 * (number + 1)}, "test")
        for number in order:
            for epoch in (1, 2):
                report(record, policy, number, (0.3, 0.1, 0.4, 0.2)[number] * epoch)
        while (promoted := policy.promote()) is not None:
            record.running(promoted)
        lineages.append([entry.lineage for entry in record.entries.values()])
    assert lineages[0] == lineages[1] == lineages[2]
    assert [len(lineage) for lineage in lineages[0]] == [0, 1, 0, 0]


def test_no_trial_goes_on_before_all_have_begun() -> None:
    record = new_record()
    policy = policy_of(record, 3)
    record.propose({"learning_rate": 1e-3}, "test")
    assert [report(record, policy, 0, 0.5) for _ in range(2)] == ["running", "paused"]
    assert policy.promote() is None
    for _ in range(2):
        record.propose({"learning_rate": 1e-3}, "test")
    assert policy.promote() is None
    assert [report(record, policy, 1, 0.5) for _ in range(2)] == ["running", "paused"]
    record.finish(2, TrialState.FAILED, "an exception")
    assert policy.promote() == 0


def test_nobody_takes_over_a_trial_that_broke_or_has_no_score() -> None:
    record, policy = population((math.nan, math.nan, math.nan, 0.4))
    record.finish(3, TrialState.DIVERGED, "the loss is NaN")
    while (number := policy.promote()) is not None:
        record.running(number)
    assert not any(entry.lineage for entry in record.entries.values())


def test_what_is_noted_holds_when_the_driver_dies_before_the_trial_goes_on(
    tmp_path: Path,
) -> None:
    record = StudyRecord(tmp_path, RATE, "max")
    policy = policy_of(record, 2)
    for number, score in enumerate((0.9, 0.1)):
        record.propose({"learning_rate": 1e-3}, "test")
        for _ in range(2):
            report(record, policy, number, score)
    assert policy.promote() == 0
    record.running(0)
    assert policy.promote() == 1
    lineage = record.entries[1].lineage
    assert len(lineage) == 1
    record.close()
    reopened = StudyRecord(tmp_path, RATE, "max")
    assert reopened.entries[1].lineage == lineage
    assert policy_of(reopened, 2).promote() == 1
    assert reopened.entries[1].lineage == lineage


def test_a_schedule_tells_who_trained_the_weights() -> None:
    record = new_record()
    for number in range(3):
        record.propose({"learning_rate": 10.0 ** -(number + 2)}, "test")
    record.exploit(1, Exploit(2, 0, {"learning_rate": 0.02}, {}), "")
    record.exploit(2, Exploit(2, 0, {"learning_rate": 0.03}, {}), "")
    record.exploit(2, Exploit(4, 1, {"learning_rate": 0.04}, {}), "")
    told = [
        (s.first, s.last, s.trial, s.values["learning_rate"])
        for s in schedule(record.entries, 2, 7)
    ]
    # what trial 2 had from trial 0 it gave up at epoch 4
    assert told == [(1, 2, 0, 0.01), (3, 4, 1, 0.02), (5, 7, 2, 0.04)]
    assert [s.trial for s in schedule(record.entries, 2, 4)] == [0, 2]
    assert [s.last for s in schedule(record.entries, 0, 3)] == [3]


def drift(record: StudyRecord, policy: PopulationTraining, trials: int, epochs: int) -> None:
    """Scores rise the faster the nearer the learning rate is to 1e-3."""
    level = dict.fromkeys(range(trials), 0.0)
    for number in range(trials):
        rate = 10.0 ** (-5 + 4 * number / (trials - 1))
        record.propose({"learning_rate": rate}, "test")
    for epoch in range(1, epochs + 1):
        for number in range(trials):
            entry = record.entries[number]
            if entry.lineage and entry.lineage[-1].epoch == epoch - 1:
                donor = record.entries[entry.lineage[-1].donor]
                level[number] = donor.scores[epoch - 1]
            rate = entry.values_at(epoch)["learning_rate"]
            level[number] += math.exp(-((math.log10(rate) + 3) ** 2))
            report(record, policy, number, level[number])
            while (promoted := policy.promote()) is not None:
                record.running(promoted)


def test_the_bandit_finds_the_best_learning_rate() -> None:
    record = new_record()
    policy = policy_of(record, 6, PopulationBandits, 22, resample_probability=0.0)
    drift(record, policy, 6, 22)
    steps = sorted(
        (step for entry in record.entries.values() for step in entry.lineage),
        key=lambda step: step.epoch,
    )
    rates = [math.log10(step.values["learning_rate"]) for step in steps]
    assert len(rates) > 12
    assert abs(float(np.median(rates[-8:])) + 3) < 0.5
    # not by steps of a fifth: it chooses anywhere
    jumps = [step.explored["learning_rate"] for step in steps if step.explored]
    assert any(abs(math.log(new / old)) > 0.3 for old, new in jumps)


def test_choices_are_varied_and_numbers_chosen() -> None:
    space = Space(
        {
            "optimizer": Choice(("adamw", "sgd")),
            "momentum": Uniform(0.8, 0.99),
            "learning_rate": LogUniform(1e-5, 1e-1),
        },
        {"momentum": {"optimizer": ["sgd"]}},
    )
    record = new_record(space)
    policy = policy_of(record, 6, PopulationBandits, 18)
    rng = random.Random(0)
    for _ in range(6):
        record.propose(space.sample(rng), "test")
    for epoch in range(1, 18):
        for number in range(6):
            score = epoch + np.random.default_rng((number, epoch)).normal()
            report(record, policy, number, float(score))
            while (promoted := policy.promote()) is not None:
                record.running(promoted)
    steps = [step for entry in record.entries.values() for step in entry.lineage]
    assert len(steps) > 10
    for step in steps:
        values = dict(step.values)
        assert ("momentum" in values) == (values["optimizer"] == "sgd")
        for name, value in values.items():
            assert space.domains[name].contains(value)


SPEC = """
config: {max_epochs: 10}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
policy: pbt
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("policy: {name: pbt, perturbation_interval: 10}", "must be below max_epochs=10"),
        ("policy: {name: pbt, perturbation_interval: 0}", "perturbation_interval"),
        ("policy: {name: pbt, quantile_fraction: 0.6}", "quantile_fraction"),
        ("policy: {name: pbt, resample_probability: 2}", "resample_probability"),
        ("policy: {name: pbt, interval: 3}", "policy=pbt: unknown name 'interval'"),
        ("policy: 3", "policy must be a name, or a mapping"),
        ("search: {searcher: grid}", "searcher=grid does not go with policy=pbt"),
        ("search: {num_trials: 1}", "num_trials=1 is not a population"),
        ("confirm: {top: 2}", "confirm does not go with policy=pbt"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: str, message: str) -> None:
    replaces = change.startswith("policy")
    text = SPEC.replace("policy: pbt", change) if replaces else f"{SPEC}{change}\n"
    with pytest.raises(SpecError, match=message):
        parse_spec(text, source="spec.yaml")


@pytest.mark.parametrize(
    "field",
    [
        "model_params.embed_dim: {choice: [24, 48]}",
        "patch_size: {choice: [[32, 32, 32], [48, 48, 48]]}",
        "model_name: {choice: [dformer3d, unet3d]}",
    ],
)
def test_fields_that_change_the_network_cannot_vary(field: str) -> None:
    text = SPEC.replace("space:\n", f"space:\n  {field}\n")
    with pytest.raises(SpecError, match="takes over the weights of another") as error:
        parse_spec(text, source="spec.yaml")
    assert f"spec.yaml:4:3: {field.partition(':')[0]}" in str(error.value)
    parse_spec(text.replace("pbt", "asha"), source="spec.yaml")


def test_a_population_needs_no_rungs() -> None:
    spec = parse_spec(SPEC, source="spec.yaml")
    assert spec.policy == PbtSettings()
    assert not spec.rungs()
    assert parse_spec(spec.to_yaml(), source="spec.yaml").policy == spec.policy
    assert spec.expected_epochs() == spec.search.num_trials * 10
