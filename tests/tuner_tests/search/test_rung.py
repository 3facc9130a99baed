"""A rung that follows the record is what the record alone would give."""

from __future__ import annotations

import math
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial

from tuner.driver.scheduler import WORKER_STARTS_WITHIN, RecordScheduler
from tuner.search.policies import Policy, PromotionAsha
from tuner.search.policies.rung import Rung
from tuner.spec.domains import Uniform
from tuner.spec.space import Space
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialEntry, TrialState
from tuner.trial.messages import TrialRequest

RUNGS = (1, 2, 4)
FACTOR = 2


def in_memory(mode: str = "max") -> StudyRecord:
    return StudyRecord(Path("memory"), Space({"x": Uniform(0, 1)}), mode, InMemoryStorage())


def add(record: StudyRecord, *scores: float) -> int:
    """A trial with the scores of its first epochs."""
    number = record.propose({"x": 0.5}, "test").number
    for epoch, score in enumerate(scores, 1):
        record.report(number, epoch, score, {}, 1.0)
    return number


def next_by_hand(
    record: StudyRecord, brackets: PromotionAsha, also: int | None, last: bool
) -> int | None:
    """The rule of `PromotionAsha`, from the record alone: the best of the highest rung."""
    sign = 1 if record.mode == "max" else -1
    alive = {TrialState.RUNNING, TrialState.INTERRUPTED}
    for index in reversed(range(len(RUNGS))):
        epoch = RUNGS[index]
        for bracket in range(min(index + 1, 2)):
            there = {
                entry.number: sign * entry.scores[epoch]
                for entry in record.entries.values()
                if math.isfinite(entry.scores.get(epoch, math.nan))
                and brackets.bracket(entry.number) == bracket
            }
            quota = len(there) // FACTOR
            quota = max(quota, 1) if last else quota
            entries = {number: record.entries[number] for number in there}
            passed = [
                number
                for number, entry in entries.items()
                if entry.epochs > epoch or (entry.state in alive and number != also)
            ]
            if len(passed) >= quota:
                continue
            for number in sorted(there, key=lambda n: (-there[n], n))[:quota]:
                waits = entries[number].state is TrialState.PAUSED or number == also
                if waits and entries[number].epochs == epoch:
                    return number
    return None


@given(
    mode=st.sampled_from(["max", "min"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["new", "report", "pause", "fail", "interrupt", "promote", "reload"]),
            st.integers(0, 9),
            st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]),
        ),
        max_size=60,
    ),
)
def test_the_next_trial_is_that_of_the_record_alone(
    mode: str, steps: list[tuple[str, int, float]]
) -> None:
    record = in_memory(mode)
    policy = PromotionAsha(record, RUNGS, FACTOR, brackets=2, seed=3)
    for action, pick, score in steps:
        running = record.with_state(TrialState.RUNNING)
        if action == "new":
            add(record)
        elif action == "reload":
            record.reload()
        elif action == "promote":
            expected = next_by_hand(record, policy, None, last=pick == 0)
            assert policy.promote(last=pick == 0) == expected
            if expected is not None:
                record.running(expected)
        elif running:
            happens(record, policy, running[pick % len(running)], action, score)
        fresh = PromotionAsha(record, RUNGS, FACTOR, brackets=2, seed=3)
        assert policy.promote() == fresh.promote()


def happens(
    record: StudyRecord, policy: PromotionAsha, entry: TrialEntry, action: str, score: float
) -> None:
    """What becomes of a running trial."""
    if action == "pause":
        record.pause(entry.number, "it waits")
    elif action == "fail":
        record.finish(entry.number, TrialState.FAILED, "it broke")
    elif action == "interrupt":
        record.interrupt(entry.number, "cut off")
    elif entry.epochs < 5:
        record.report(entry.number, entry.epochs + 1, score, {}, 1.0)
        if entry.epochs in RUNGS[policy.bracket(entry.number) :] and math.isfinite(score):
            goes_on = next_by_hand(record, policy, entry.number, last=False) == entry.number
            assert (policy.judge(entry.number, entry.epochs).action == "continue") == goes_on


@given(
    scores=st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30),
    factor=st.integers(2, 5),
    mode=st.sampled_from(["max", "min"]),
)
def test_the_quantile_is_that_of_numpy(scores: list[float], factor: int, mode: str) -> None:
    record = in_memory(mode)
    rung = Rung(record, 1, lambda number: True)
    sign = 1 if mode == "max" else -1
    for length in range(1, len(scores) + 1):
        add(record, scores[length - 1])
        rung.follow()
        expected = np.quantile([sign * score for score in scores[:length]], 1 - 1 / factor)
        assert rung.quantile(1 - 1 / factor) == pytest.approx(float(expected), abs=1e-15)


def test_a_record_read_anew_makes_a_rung_stale(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path, Space({"x": Uniform(0, 1)}), "max")
    add(record, 0.5)
    rung = Rung(record, 1, lambda number: True)
    rung.follow()
    assert len(rung) == 1
    assert not rung.is_stale
    record.reload()
    assert rung.is_stale
    record.close()


def test_a_free_worker_goes_to_the_newest_trial_but_none_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The older one has a worker process that is just starting, which Tune would end."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    scheduler = RecordScheduler(in_memory(), Policy(in_memory()))
    number = count()
    older, newer = (
        SimpleNamespace(
            trial_id=str(next(number)), status=Trial.PENDING, config=TrialRequest(each, {}).to_ray()
        )
        for each in range(2)
    )
    for trial in (older, newer):
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        now += 5.0
    assert scheduler.choose_trial_to_run(None) is newer  # type: ignore[arg-type]
    # no process starts for as long: its node may be lost
    now = WORKER_STARTS_WITHIN + 1.0
    assert scheduler.choose_trial_to_run(None) is older  # type: ignore[arg-type]
    now = 10.0
    newer.status = Trial.RUNNING
    assert scheduler.choose_trial_to_run(None) is older  # type: ignore[arg-type]
    older.status = Trial.TERMINATED
    assert scheduler.choose_trial_to_run(None) is None  # type: ignore[arg-type]
