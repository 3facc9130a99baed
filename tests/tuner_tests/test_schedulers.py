from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tuner.record import StudyRecord, TrialState
from tuner.schedulers import AshaScheduler, build_scheduler
from tuner.searchers import SEARCHERS
from tuner.spec import parse_spec

SPEC = """
config: {max_epochs: 27}
space: {learning_rate: {loguniform: [1e-5, 1e-2]}}
asha: {grace_period: 1, reduction_factor: 3}
"""


@pytest.fixture
def record(tmp_path: Path) -> StudyRecord:
    return StudyRecord(tmp_path, parse_spec(SPEC, source="spec.yaml").space, "max")


def report(scheduler: Any, number: int, epoch: int, score: float) -> str:
    trial = SimpleNamespace(config={"trial_number": number}, trial_id=str(number))
    result = {"epoch": epoch, "score": score, "metrics/val_dice": score, "epoch_seconds": 1.0}
    decision = scheduler.on_trial_result(None, trial, result)
    assert isinstance(decision, str)
    return decision


def test_decisions_equal_ray_asha_where_ray_is_right(record: StudyRecord) -> None:
    """Ray compares with the scores before this one, so the first trials decide alike."""
    rng = np.random.default_rng(0)
    ours = AshaScheduler(record, (1, 3, 9), 3)
    ray_asha = AsyncHyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=27, grace_period=1, reduction_factor=3
    )
    agreed = 0
    for number in range(60):
        record.propose(SEARCHERS["random"])
        trial = SimpleNamespace(config={"trial_number": number}, trial_id=str(number))
        ray_asha.on_trial_add(None, trial)
        for epoch in range(1, 10):
            score = float(rng.uniform())
            decision = report(ours, number, epoch, score)
            reference = ray_asha.on_trial_result(None, trial, {"epoch": epoch, "score": score})
            agreed += decision == reference
            if decision != reference and epoch in (1, 3, 9):
                # they differ only through the trial's own score in the quantile
                assert decision == TrialScheduler.CONTINUE or number > 0
            if TrialScheduler.STOP in (decision, reference):
                break
    assert agreed > 60


def test_the_best_third_goes_on(record: StudyRecord) -> None:
    scheduler = AshaScheduler(record, (1, 3), 3)
    decisions = []
    for number, score in enumerate((0.5, 0.4, 0.6, 0.45, 0.7, 0.1)):
        record.propose(SEARCHERS["random"])
        decisions.append(report(scheduler, number, 1, score))
    assert decisions == ["CONTINUE", "STOP", "CONTINUE", "STOP", "CONTINUE", "STOP"]
    assert record.entries[5].state is TrialState.STOPPED
    assert "rung 1 (epoch 1)" in record.entries[5].reason
    assert "cutoff" in record.entries[5].reason


def test_between_rungs_nothing_is_stopped(record: StudyRecord) -> None:
    scheduler = AshaScheduler(record, (2, 6), 3)
    for number in range(4):
        record.propose(SEARCHERS["random"])
        assert report(scheduler, number, 1, -float(number)) == "CONTINUE"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_never_passes_a_rung(record: StudyRecord, score: float) -> None:
    scheduler = AshaScheduler(record, (1,), 3)
    record.propose(SEARCHERS["random"])
    assert report(scheduler, 0, 1, score) == "STOP"


def test_lower_is_better_for_a_loss(tmp_path: Path) -> None:
    spec = parse_spec(SPEC + "metric: val_loss\n", source="spec.yaml")
    record = StudyRecord(tmp_path, spec.space, spec.mode)
    scheduler = build_scheduler(record, spec)
    decisions = []
    for number, score in enumerate((0.5, 0.6, 0.4)):
        record.propose(SEARCHERS["random"])
        decisions.append(report(scheduler, number, 1, score))
    assert decisions == ["CONTINUE", "STOP", "CONTINUE"]


def test_rungs_survive_a_restart(record: StudyRecord, tmp_path: Path) -> None:
    scheduler = AshaScheduler(record, (1, 3), 3)
    for number, score in enumerate((0.9, 0.8, 0.7)):
        record.propose(SEARCHERS["random"])
        report(scheduler, number, 1, score)
    space = parse_spec(SPEC, source="spec.yaml").space
    reopened = StudyRecord(tmp_path, space, "max")
    restarted = AshaScheduler(reopened, (1, 3), 3)
    reopened.propose(SEARCHERS["random"])
    assert report(restarted, 3, 1, 0.75) == "STOP"
    assert "4 trials" in reopened.entries[3].reason


def test_an_epoch_reported_again_is_not_judged_again(record: StudyRecord) -> None:
    scheduler = AshaScheduler(record, (1,), 3)
    for _ in range(2):
        record.propose(SEARCHERS["random"])
    assert report(scheduler, 0, 1, 0.5) == "CONTINUE"
    assert report(scheduler, 1, 1, 0.9) == "CONTINUE"
    assert report(scheduler, 0, 1, 0.5) == "CONTINUE"


def test_without_asha_every_trial_goes_on(record: StudyRecord) -> None:
    spec = parse_spec(
        SPEC.replace("asha: {grace_period: 1, reduction_factor: 3}", "asha: false"),
        source="spec.yaml",
    )
    scheduler = build_scheduler(record, spec)
    for number in range(5):
        record.propose(SEARCHERS["random"])
        for epoch in range(1, 5):
            assert report(scheduler, number, epoch, -float(number)) == "CONTINUE"


def test_a_dead_worker_ends_its_trial_with_a_reason(record: StudyRecord) -> None:
    scheduler = AshaScheduler(record, (1,), 3)
    record.propose(SEARCHERS["random"])
    trial = SimpleNamespace(config={"trial_number": 0}, pickled_error_file=None)
    scheduler.on_trial_error(None, trial)
    assert record.entries[0].state is TrialState.FAILED
    assert "worker process died" in record.entries[0].reason
