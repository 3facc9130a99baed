"""Checks that every policy must pass."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from tuner.search.policies import Action, Policy, build_policy
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

MAX_EPOCHS = 27

Section = str | Mapping[str, Any]
"""The section `policy`: a name, or a mapping of name and settings."""

Report = Callable[[StudyRecord, Policy, int, int, float], str]
"""Records a score and applies the policy's decision: `goes on`, `pauses` or `stops`."""

Event = tuple[str, int, int]
"""What happened to a trial at an epoch."""


def report_to_record(
    record: StudyRecord, policy: Policy, number: int, epoch: int, score: float
) -> str:
    """Record a score, and apply the policy's decision."""
    record.report(number, epoch, score, {}, 1.0)
    decision = policy.judge(number, epoch)
    if decision.action is Action.STOP:
        record.finish(number, TrialState.STOPPED, decision.reason)
        return "stops"
    if decision.action is Action.PAUSE:
        record.pause(number, decision.reason)
        return "pauses"
    return "goes on"


def simulate(
    record: StudyRecord,
    policy: Policy,
    score_of: Callable[[int, int], float],
    *,
    trials: int = 15,
    workers: int = 3,
    epochs: int = MAX_EPOCHS,
    steps: int = 10_000,
    report: Report = report_to_record,
) -> list[Event]:
    """Run a study in which one trial trains one epoch a step; what happened, in order.

    Args:
        record: The study's record; its trials go on.
        policy: What decides.
        score_of: Score of a trial at an epoch.
        trials: Trials of the study.
        workers: Trials at once.
        epochs: The full budget.
        steps: Epochs after which the study is cut off.
        report: How a score is recorded and judged.
    """
    events: list[Event] = []
    for _ in range(steps):
        running = [entry.number for entry in record.with_state(TrialState.RUNNING)]
        while len(running) < workers:
            number = policy.promote()
            if number is not None:
                record.running(number)
                events.append(("promoted", number, record.entries[number].epochs))
            elif len(record.entries) < trials:
                values = record.space.sample(random.Random(len(record.entries)))
                number = record.propose(values, "test").number
                events.append(("new", number, 0))
            elif not running and (number := policy.promote(last=True)) is not None:
                record.running(number)
                events.append(("promoted", number, record.entries[number].epochs))
            else:
                break
            running.append(number)
        if not running:
            return events
        number = min(running, key=lambda n: (record.entries[n].epochs, n))
        epoch = record.entries[number].epochs + 1
        what = report(record, policy, number, epoch, score_of(number, epoch))
        if what == "goes on" and epoch == epochs:
            record.finish(number, TrialState.COMPLETED, "trained to the end")
        events.append((what, number, epoch))
    return events


def noisy_curve(number: int, epoch: int) -> float:
    """A curve that rises to a level of the trial's own, with noise."""
    level, noise = np.random.default_rng((number, 1)), np.random.default_rng((number, epoch))
    return float(level.uniform() * (1 - 0.5 / epoch) + 0.05 * noise.normal())


def check_a_study_comes_to_its_end(policy: Section, report: Report = report_to_record) -> None:
    """Every trial is proposed, and ends in a state that has a reason."""
    spec = study_spec(policy)
    record = new_record(spec)
    simulate(record, build_policy(record, spec), noisy_curve, report=report)
    assert len(record.entries) == 15, f"{len(record.entries)} of 15 trials were started"
    for number, entry in record.entries.items():
        ended = {TrialState.COMPLETED, TrialState.STOPPED, TrialState.PAUSED}
        assert entry.state in ended, f"trial {number} is left {entry.state}"
        if entry.state is TrialState.COMPLETED:
            assert entry.epochs == MAX_EPOCHS, f"trial {number} has {entry.epochs} epochs"
        else:
            assert entry.reason, f"trial {number} is {entry.state} without a reason"


def check_a_resumed_study_decides_alike(policy: Section, report: Report = report_to_record) -> None:
    """A study that is cut off every few epochs decides as one that is not."""
    spec = study_spec(policy, trials=7)
    traces = []
    for steps in (10_000, 7):
        with tempfile.TemporaryDirectory() as folder:
            trace: list[Event] = []
            while True:
                # another record and policy each time, from what is on disk
                record = StudyRecord(Path(folder), spec.space, spec.mode)
                options: dict[str, Any] = {"trials": 7, "workers": 1, "steps": steps}
                built = build_policy(record, spec)
                events = simulate(record, built, noisy_curve, report=report, **options)
                record.close()
                trace += events
                if not events:
                    break
            traces.append(trace)
    whole, cut = traces
    first = next((pair for pair in zip(whole, cut, strict=False) if pair[0] != pair[1]), None)
    assert whole == cut, (
        f"a study that was resumed decided otherwise ({first}): a policy must answer from the "
        "record alone, and keep nothing"
    )


def check_undefined_scores_win_nothing(
    policy: Section, report: Report = report_to_record, mode: str = "max"
) -> StudyRecord:
    """A trial whose score is always nan does not win, and stops no study.

    Returns:
        The record of the study, in which every third trial is such a one.
    """
    sign = 1.0 if mode == "max" else -1.0
    spec = study_spec(policy, mode=mode)
    record = new_record(spec)

    def score(number: int, epoch: int) -> float:
        return sign * noisy_curve(number, epoch) if number % 3 else math.nan

    simulate(record, build_policy(record, spec), score, report=report)
    best = record.best()
    assert best is not None, "no trial won"
    assert best.number % 3, f"trial {best.number} won, whose score was never defined"
    return record


def check_no_worker_waits(
    policy: Section,
    report: Report = report_to_record,
    *,
    seed: int = 0,
    workers: int = 4,
    trials: int = 12,
) -> StudyRecord:
    """As long as trials are left to start, no worker is idle; in the end none is left running.

    Returns:
        The record of the study.
    """
    spec = study_spec(policy, trials=trials)
    record = new_record(spec)
    built = build_policy(record, spec)

    def score(number: int, epoch: int) -> float:
        return float(np.random.default_rng((seed, number, epoch)).normal())

    events = simulate(record, built, score, trials=trials, workers=workers, report=report)
    assert len(record.entries) == trials, f"{len(record.entries)} of {trials} trials were started"
    assert not record.with_state(TrialState.RUNNING), "a trial is left running"
    promoted = built.promote()
    assert promoted is None, f"trial {promoted} is promoted when the study is over"
    running = proposed = 0
    for kind, number, epoch in events:
        if kind in {"new", "promoted"}:
            running += 1
            proposed += kind == "new"
        else:
            assert running == workers or proposed == trials, (
                f"{workers - running} workers waited when trial {number} ended epoch {epoch}"
            )
            running -= kind != "goes on" or epoch == MAX_EPOCHS
    assert running == 0
    return record


POLICY_CHECKS: tuple[Callable[[Section], Any], ...] = (
    check_a_study_comes_to_its_end,
    check_a_resumed_study_decides_alike,
    check_undefined_scores_win_nothing,
    check_no_worker_waits,
)
"""All checks of policies."""


def study_spec(policy: Section, *, trials: int = 15, mode: str = "max") -> StudySpec:
    """The spec of a small study with a policy."""
    return StudySpec.from_dict(
        {
            "metric": "val_dice" if mode == "max" else "val_loss",
            "config": {"max_epochs": MAX_EPOCHS},
            "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
            "search": {"num_trials": trials},
            "policy": policy if isinstance(policy, str) else dict(policy),
        }
    )


def new_record(spec: StudySpec) -> StudyRecord:
    """A record without trials, in memory."""
    return StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
