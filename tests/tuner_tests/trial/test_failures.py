from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from pydantic import ValidationError

from training.config import ModelTrainingConfig
from training.errors import TrainingDivergedError
from tuner.errors import StudyError
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import VIOLATION, TrialEntry, TrialState
from tuner.trial.failures import (
    MOVES,
    ClusterLostError,
    ConstraintBrokenError,
    TrialHungError,
    WorkerLostError,
    WorkerOutOfMemoryError,
    classify,
    end_trial,
    full_disk_explained,
    move_trial,
    smaller,
)
from tuner.trial.messages import TrialEnd
from tuner.trial.node_faults import GpuMissingError


def spec_of(failures: str = "{}", config: str = "{}") -> StudySpec:
    return parse_spec(
        f"config: {config}\nspace: {{learning_rate: {{uniform: [0.1, 1]}}}}\n"
        f"failures: {failures}\n",
        source="s.yaml",
    )


def one_trial(spec: StudySpec) -> tuple[Study, TrialEntry]:
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    return Study(Path("memory"), spec, record), record.propose({"learning_rate": 0.5}, "test")


def test_a_failure_is_tried_again_so_often_and_no_more() -> None:
    spec = spec_of("{max_failures: 2}")
    study, entry = one_trial(spec)
    for number in (1, 2):
        end_trial(study, 0, TrialEnd(TrialState.FAILED, "it died"))
        assert entry.state is TrialState.INTERRUPTED
        assert entry.reason == f"it died; retry {number} of 2"
        study.record.running(0)
    end_trial(study, 0, TrialEnd(TrialState.FAILED, "it died"))
    assert (entry.state, entry.reason) == (TrialState.FAILED, "it died (after 3 tries)")
    assert study.record.halted is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no room\nin line 3"), "RuntimeError: no room"),
        (RuntimeError("\n"), "RuntimeError: no message"),
        (RuntimeError(), "RuntimeError: no message"),
    ],
)
def test_the_reason_of_a_failure_is_what_the_error_says(error: Exception, reason: str) -> None:
    assert classify(error) == TrialEnd(TrialState.FAILED, reason)


def test_a_config_that_is_not_valid_is_named_as_the_reason() -> None:
    """The first line of pydantic's error does no more than count: `1 validation error for ...`."""
    with pytest.raises(ValidationError) as caught:
        ModelTrainingConfig(target_label=7, num_classes=3)
    end = classify(caught.value)
    assert end.state is TrialState.FAILED
    assert end.reason.startswith("ValidationError: target_label=7 must be below num_classes=3: ")
    with pytest.raises(ValidationError) as caught:
        ModelTrainingConfig(learning_rate=-1.0, batch=2)
    reason = classify(caught.value).reason
    assert "learning_rate=-1.0: input should be greater than" in reason
    assert "unknown name 'batch'" in reason


FAILURES: list[tuple[Exception, TrialState, str]] = [
    (TrainingDivergedError("the loss is nan"), TrialState.DIVERGED, "the loss is nan"),
    (torch.OutOfMemoryError("CUDA"), TrialState.OUT_OF_MEMORY, "OutOfMemoryError: CUDA"),
    (MemoryError("a batch"), TrialState.OUT_OF_MEMORY, "MemoryError: a batch"),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        TrialState.OUT_OF_MEMORY,
        "RuntimeError: DefaultCPUAllocator: can't allocate memory",
    ),
    (
        OSError(errno.EDQUOT, "quota"),
        TrialState.INTERRUPTED,
        f"the disk is full (OSError: [Errno {errno.EDQUOT}] quota)",
    ),
    (OSError(errno.EIO, "worn"), TrialState.FAILED, f"OSError: [Errno {errno.EIO}] worn"),
    (GpuMissingError("no GPU"), TrialState.INTERRUPTED, "no GPU"),
    (ClusterLostError("it is gone"), TrialState.INTERRUPTED, "it is gone"),
    (WorkerLostError(), TrialState.FAILED, "its worker process died"),
    (WorkerLostError("SIGKILL"), TrialState.FAILED, "its worker process died: SIGKILL"),
    (
        WorkerOutOfMemoryError("low"),
        TrialState.OUT_OF_MEMORY,
        "Ray ended its worker to free memory: low",
    ),
    (TrialHungError("it hung"), TrialState.FAILED, "it hung"),
    (ConstraintBrokenError("too large", 3.0, 2.0), TrialState.INFEASIBLE, "too large"),
]


@pytest.mark.parametrize(("error", "state", "reason"), FAILURES)
def test_every_failure_has_one_state(error: Exception, state: TrialState, reason: str) -> None:
    end = classify(error)
    assert (end.state, end.reason) == (state, reason)
    assert dict(end.notes) == ({VIOLATION: 0.5} if state is TrialState.INFEASIBLE else {})


def test_a_full_disk_is_told_with_the_way_on() -> None:
    spec = spec_of()
    study, _ = one_trial(spec)
    # Tune hands on no more than the text of an error
    with pytest.raises(StudyError, match="tune resume memory"), full_disk_explained(study):
        raise RuntimeError(f"Tune: {os.strerror(errno.ENOSPC)}")
    with pytest.raises(RuntimeError, match="another"), full_disk_explained(study):
        raise RuntimeError("another fault")


@pytest.mark.parametrize("state", [TrialState.DIVERGED, TrialState.OUT_OF_MEMORY])
def test_what_would_happen_again_is_not_tried_again(state: TrialState) -> None:
    spec = spec_of()
    study, entry = one_trial(spec)
    end_trial(study, 0, TrialEnd(state, "why"))
    assert (entry.state, entry.reason) == (state, "why")


def test_a_trial_whose_nodes_fail_goes_on_elsewhere_and_spends_no_failure() -> None:
    """As often as nodes are lost, if it trains between: they may be taken away every hour."""
    study, entry = one_trial(spec_of("{max_failures: 0}"))
    for epoch in range(1, 3 * MOVES):
        move_trial(study, 0, "its node w2 was lost: it was preempted")
        assert entry.state is TrialState.INTERRUPTED
        assert entry.reason == "its node w2 was lost: it was preempted; it goes on elsewhere"
        study.record.running(0)
        study.record.report(0, epoch, 0.5, {}, 1.0)
    assert entry.failures == 0
    assert study.record.halted is None


def test_a_trial_that_fails_every_node_fails_in_the_end() -> None:
    study, entry = one_trial(spec_of("{max_failures: 1}"))
    for tries in (1, 2):
        for _ in range(MOVES - 1):
            move_trial(study, 0, "its node was lost")
            assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, tries - 1)
            study.record.running(0)
        move_trial(study, 0, "its node was lost")
        if tries == 1:
            assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, 1)
            assert f"{MOVES} nodes failed it in a row, without an epoch between; retry 1 of 1" in (
                entry.reason
            )
            study.record.running(0)
    assert entry.state is TrialState.FAILED
    assert entry.reason.endswith("(after 2 tries)")
    # what comes late changes nothing
    move_trial(study, 0, "its node was lost")
    assert entry.state is TrialState.FAILED


def test_what_stands_in_the_way_of_all_halts_the_study() -> None:
    spec = spec_of()
    study, entry = one_trial(spec)
    end_trial(study, 0, TrialEnd(TrialState.INTERRUPTED, "the disk is full"))
    assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, 0)
    assert study.record.halted == "the disk is full"


def test_out_of_memory_halves_the_batch_until_there_is_none() -> None:
    spec = spec_of(
        "{on_out_of_memory: smaller_batch, max_failures: 9}",
        "{train_batch_size: 5, val_batch_size: 2}",
    )
    study, entry = one_trial(spec)
    sizes = []
    while True:
        end_trial(study, 0, TrialEnd(TrialState.OUT_OF_MEMORY, "no memory"))
        if entry.state.finished:
            break
        config = spec.trial_config(entry.trained_values)
        sizes.append((config.train_batch_size, config.val_batch_size))
        study.record.running(0)
    assert sizes == [(2, 1), (1, 1)]
    assert entry.state is TrialState.OUT_OF_MEMORY
    assert entry.values == {"learning_rate": 0.5}


@given(patch=st.tuples(*[st.integers(1, 300)] * 3))
def test_a_smaller_patch_has_about_half_the_voxels(patch: tuple[int, int, int]) -> None:
    config = ModelTrainingConfig(patch_size=patch)
    found = smaller(config, "smaller_patch")
    if found is None:
        assert all(axis <= 8 for axis in patch)
        return
    assert ModelTrainingConfig(**found).patch_size == tuple(found["patch_size"])
    assert all(
        1 <= after <= before for after, before in zip(found["patch_size"], patch, strict=True)
    )
    assert math.prod(found["patch_size"]) < math.prod(patch)
    if min(patch) >= 64:
        assert 0.3 < math.prod(found["patch_size"]) / math.prod(patch) <= 0.52
