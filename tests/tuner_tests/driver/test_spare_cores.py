"""Cores that no trial uses are used by those that run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from trial_messages import ray_trial

from tuner.driver import spare_cores
from tuner.driver.spare_cores import SETTLED_SECONDS, SpareCores
from tuner.spec.cores import GAIN, alone
from tuner.spec.load import parse_spec
from tuner.spec.settings import TrialResources

SPACE = "space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}\n{more}"


class Watched:
    """What shares eight cores, with a clock, and the cores that each trial was told to use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int = 8, share: int = 2) -> None:
        self.now = 0.0
        self.told: dict[int, list[int]] = {}
        self.trials: dict[int, Any] = {}
        monkeypatch.setattr(spare_cores.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(spare_cores, "actor_of", self._actor)
        self.spare = SpareCores(cores, share)

    def _actor(self, trial: Any) -> Any:
        (number,) = (number for number, one in self.trials.items() if one is trial)

        def told(cores: int) -> None:
            self.told.setdefault(number, []).append(cores)

        return SimpleNamespace(use_cores=SimpleNamespace(remote=told))

    def start(self, *numbers: int) -> None:
        for number in numbers:
            self.trials[number] = ray_trial(number)
            self.spare.on_trial_start(0, [], self.trials[number])

    def end(self, number: int) -> None:
        self.spare.on_trial_complete(0, [], self.trials[number])

    def epoch(self, number: int, after: float = 10.0) -> None:
        self.now += after
        self.spare.on_trial_result(0, [], self.trials[number], {})


def test_trials_share_the_cores_of_those_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.start(0, 1, 2, 3)
    for number in range(4):
        watched.epoch(number)
    assert watched.told == {}
    watched.end(2)
    watched.end(3)
    watched.epoch(0)
    watched.epoch(0)
    watched.epoch(1)
    assert watched.told == {0: [4], 1: [4]}
    watched.end(1)
    watched.epoch(0)
    assert watched.told[0] == [4, 8]


def test_a_trial_gives_back_what_others_need_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.start(0)
    watched.epoch(0)
    watched.start(1)
    watched.epoch(0, after=0.1)
    assert watched.told == {0: [8, 4]}
    # the one that is there anew has its own share until it has settled
    watched.epoch(1, after=SETTLED_SECONDS)
    assert watched.told[1] == [4]


def test_between_two_trials_nobody_takes_their_core(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, cores=2, share=1)
    watched.start(0, 1)
    watched.epoch(0)
    watched.end(1)
    watched.epoch(0, after=SETTLED_SECONDS / 2)
    watched.start(2)
    watched.epoch(0)
    assert watched.told == {}


def test_a_trial_whose_process_is_lost_counts_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.start(0, 1)
    watched.spare.on_trial_error(0, [], watched.trials[1])
    # Tune tells of its end as well
    watched.end(1)
    watched.epoch(0)
    assert watched.told == {0: [8]}


@pytest.mark.parametrize(
    ("more", "resources", "cores", "shared"),
    [
        ("search: {time_budget: 1h}", TrialResources(1, 0, 2), 2, True),
        # decides by scores alone, which threads would change
        ("search: {num_trials: 3}", TrialResources(1, 0, 2), 2, False),
        ("search: {time_budget: 1h}\nresources: {cpu: 1}", TrialResources(1, 0, 2), 2, False),
        ("search: {time_budget: 1h}", TrialResources(1, 1, 2), 2, False),
        # of a joined cluster, and where a trial has all
        ("search: {time_budget: 1h}", TrialResources(1, 0, 2), 0, False),
        ("search: {time_budget: 1h}", TrialResources(4, 0, 1), 4, False),
    ],
)
def test_who_shares_cores(more: str, resources: TrialResources, cores: int, shared: bool) -> None:
    spec = parse_spec(SPACE.format(more=more), source="s.yaml")
    assert (SpareCores.of(spec, resources, cores) is not None) is shared


def test_what_a_training_gains_from_more_cores() -> None:
    assert alone(2, 1) == (1, pytest.approx(2**-GAIN))
    assert alone(4, 4) == (1, 1.0)
    # more than eight cores gain little
    assert alone(32, 1) == (4, pytest.approx(8**-GAIN))
