"""The messages between driver and worker, on their way through Ray Tune."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle
from ray.tune.utils import flatten_dict

from training.config import ModelTrainingConfig
from tuner.study.trial_entry import CASES, GRID, VIOLATION, Placement, TrialState
from tuner.trial.memory import MemoryUse
from tuner.trial.messages import EpochReport, Snapshot, TrialEnd, TrialRequest, TrialStart

numbers = st.floats(allow_infinity=False, allow_nan=False)
sizes = st.floats(0, 1e12)
memories = st.none() | st.builds(MemoryUse, st.just("a1"), sizes, sizes, sizes, sizes)
texts = st.text(alphabet='ab1/. \n"\u00e9', max_size=9)


def through_tune(message: dict[str, Any]) -> dict[str, Any]:
    """As the other side gets it: pickled, and flattened as Tune does."""
    there: dict[str, Any] = cloudpickle.loads(cloudpickle.dumps(message))
    # what Tune would spread over several keys would not come back by `from_ray`
    assert flatten_dict(there) == there
    return there


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.dictionaries(
        st.sampled_from(["learning_rate", "optimizer", "class_weights", "model_params.depths"]),
        st.one_of(numbers, texts, st.lists(st.integers()), st.none()),
    ),
    st.none() | st.builds(Snapshot, st.integers(0, 99), st.integers(1, 99)),
    st.integers(0, 9),
    st.integers(0, 8),
)
def test_a_request_comes_through_as_it_was(
    number: int, values: dict[str, Any], exploits: Snapshot | None, fold: int, gpus: int
) -> None:
    request = TrialRequest(number, values, exploits, fold, gpus)
    assert TrialRequest.from_ray(through_tune(request.to_ray())) == request


@settings(deadline=None)
@given(texts, st.lists(texts), memories)
def test_a_start_comes_through_as_it_was(
    node: str, gpus: list[str], memory: MemoryUse | None
) -> None:
    start = TrialStart(Placement(node, tuple(gpus)), memory)
    assert TrialStart.from_ray(through_tune(start.to_ray())) == start
    assert EpochReport.from_ray(start.to_ray()) is None


@settings(deadline=None)
@given(st.integers(1, 999), numbers, st.dictionaries(texts, numbers), numbers, texts, memories)
def test_a_report_comes_through_as_it_was(
    epoch: int,
    score: float,
    metrics: dict[str, float],
    seconds: float,
    note: str,
    memory: MemoryUse | None,
) -> None:
    report = EpochReport(epoch, score, metrics, seconds, 0.5, "", note, memory)
    assert EpochReport.from_ray(through_tune(report.to_ray())) == report


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_comes_through(score: float) -> None:
    sent = EpochReport(1, score, {"val_dice": score}, 1.0, undefined="why")
    report = EpochReport.from_ray(through_tune(sent.to_ray()))
    assert report is not None
    assert repr(report) == repr(sent)


@pytest.mark.parametrize(
    "notes", [{}, {VIOLATION: 0.25}, {CASES: {"case_1": 0.5, "case/2": 0.75}, GRID: "file"}]
)
def test_an_end_comes_through_as_it_was(notes: dict[str, Any]) -> None:
    end = TrialEnd(TrialState.OUT_OF_MEMORY, "line 1\nline 2", notes)
    result = through_tune(end.to_ray())
    assert TrialEnd.from_ray(result) == end
    # Tune ends the trial by this key of its own
    assert result["done"] is True


def test_each_message_is_told_from_the_others() -> None:
    report = EpochReport(1, 0.5, {}, 1.0).to_ray()
    end = TrialEnd(TrialState.COMPLETED, "done").to_ray()
    assert TrialEnd.from_ray(report) is None
    assert EpochReport.from_ray(end) is None
    assert not set(report) & set(end)
    both = {**report, **end}
    assert EpochReport.from_ray(both) is not None
    assert TrialEnd.from_ray(both) is not None


def test_no_field_has_the_name_of_a_key() -> None:
    request = TrialRequest(3, {}, Snapshot(1, 2)).to_ray()
    assert not set(request) & set(ModelTrainingConfig.model_fields)
    assert json.dumps(request)
