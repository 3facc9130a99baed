"""The driver's linear algebra leaves the cores to the trials."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import InMemoryStorage
from threadpoolctl import threadpool_info, threadpool_limits

from tuner.driver.searcher import RecordSearcher
from tuner.search.gaussian_process import single_blas_thread
from tuner.search.policies import Policy
from tuner.search.searchers import Proposal, SearchView
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.study import Study


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_has_one_thread_inside_and_as_many_as_before_after() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        with single_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_a_proposal_is_drawn_on_one_thread() -> None:
    spec = parse_spec(
        "space: {learning_rate: {uniform: [0.1, 1]}}\nsearch: {default_first: false}\n",
        source="spec.yaml",
    )
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    seen: list[set[int]] = []

    def propose(view: SearchView) -> Proposal:
        seen.append(blas_threads())
        return Proposal({"learning_rate": 0.5})

    with threadpool_limits(limits=2, user_api="blas"):
        RecordSearcher(Study(record.folder, spec, record), propose, Policy(record)).suggest("first")
    assert seen == [{1}]
