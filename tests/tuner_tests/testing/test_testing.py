"""The checks for plug-in authors: a good searcher or policy passes, and each fault is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_package import importable

from tuner import testing
from tuner.testing import (
    POLICY_CHECKS,
    SEARCHER_CHECKS,
    check_a_resumed_study_decides_alike,
    check_a_study_comes_to_its_end,
    check_no_worker_waits,
    check_proposals_depend_on_the_record_alone,
    check_proposals_lie_in_the_space,
    check_seeds_share_no_trial,
    check_undefined_scores_are_no_harm,
    check_undefined_scores_win_nothing,
)

FAULTY = '''
import itertools
import math
import random

from tuner.search.policies import Action, Decision, Policy
from tuner.search.searchers import Proposal

counter = itertools.count()

def outside(view):
    return Proposal({**view.default, "learning_rate": 5.0})

def always_the_same(view):
    return Proposal(view.default)

def inactive(view):
    return Proposal({**view.default, "momentum": 0.9})

def remembers(view):
    return Proposal(view.space.sample(random.Random(next(counter))))

def one_seed(view):
    return Proposal(view.space.sample(random.Random(view.number)))

def trips_over_nan(view):
    for entry in view.record.entries.values():
        if any(map(math.isnan, entry.scores.values())):
            return Proposal({"learning_rate": math.nan})
    return Proposal(view.default)

class Remembers(Policy):
    """Stops every fifth report that it sees."""

    seen = 0

    def judge(self, number, epoch):
        self.seen += 1
        return Decision(Action.CONTINUE if self.seen % 5 else Action.STOP, "the fifth")

class NoReason(Policy):
    """Says nothing."""

    def judge(self, number, epoch):
        return Decision(Action.STOP) if number else Decision(Action.CONTINUE)

class Endless(Policy):
    """Pauses all, and lets none go on."""

    def judge(self, number, epoch):
        return Decision(Action.PAUSE, "later")

    def promote(self, *, last=False):
        paused = [n for n, entry in self._record.entries.items() if entry.state == "paused"]
        return paused[0] if paused and len(self._record.entries) == 12 and self.over() else None

    def over(self):
        return all(entry.state == "paused" for entry in self._record.entries.values())

def remembering(record):
    return Remembers(record)

def silent(record):
    return NoReason(record)
'''


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        (folder / "faulty.py").write_text(FAULTY)
        yield folder
        sys.modules.pop("faulty", None)


@pytest.mark.parametrize("check", SEARCHER_CHECKS)
def test_a_foreign_searcher_passes(check: Callable[[str], None]) -> None:
    check("liver_lab.search:first_draw")


@pytest.mark.parametrize("check", POLICY_CHECKS)
def test_a_foreign_policy_passes(check: Callable[[Any], Any]) -> None:
    check("liver_lab.search:stop_odd")


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (check_proposals_lie_in_the_space, "outside", "proposed learning_rate=5.0, outside 1e-05"),
        (check_proposals_lie_in_the_space, "always_the_same", "1 configurations in 40 trials"),
        (check_proposals_lie_in_the_space, "inactive", "in which momentum takes no part"),
        (check_proposals_depend_on_the_record_alone, "remembers", "must draw by"),
        (check_seeds_share_no_trial, "one_seed", "with seeds 0 and 1"),
        (check_undefined_scores_are_no_harm, "trips_over_nan", "proposed learning_rate=nan"),
    ],
)
def test_each_fault_of_a_searcher_is_found(
    check: Callable[[str], None], name: str, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(f"faulty:{name}")


@pytest.mark.parametrize(
    ("check", "name", "message"),
    [
        (check_a_resumed_study_decides_alike, "remembering", "that was resumed decided otherwise"),
        (check_a_study_comes_to_its_end, "silent", "without a reason"),
        (check_no_worker_waits, "Endless", "is promoted when the study is over"),
    ],
)
def test_each_fault_of_a_policy_is_found(
    check: Callable[[Any], Any], name: str, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        check(f"faulty:{name}")


def test_the_public_checks_are_exactly_these() -> None:
    assert {check.__name__ for check in (*SEARCHER_CHECKS, *POLICY_CHECKS)} == {
        name for name in testing.__all__ if name.startswith("check_")
    }
    assert check_undefined_scores_win_nothing in POLICY_CHECKS


def test_the_checks_need_neither_pytest_nor_ray() -> None:
    code = "import sys, tuner.testing; assert not {'pytest', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
