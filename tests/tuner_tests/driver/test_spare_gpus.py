"""GPUs that no other trial needs are used by those that train on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial
from trial_messages import epoch_result, ray_trial

from training.data import DataSource
from tuner.driver import spare_gpus
from tuner.driver.nodes import Nodes
from tuner.driver.placement import FitNodes
from tuner.driver.resources import Node
from tuner.driver.scheduler import WORKER_STARTS_WITHIN, RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.driver.spare_gpus import SETTLED_SECONDS, SpareGpus
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import TrialResources
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.messages import TrialRequest

SPACE = """
config: {{max_epochs: 100, train_batch_size: {batch}}}
space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}
policy: none
search: {{num_trials: {trials}, searcher: random}}
"""
ONE_EACH = TrialResources(4, 1, 4)


class Watched:
    """A study on a node with four GPUs, whose trials take 10 seconds for an epoch."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        trials: int = 2,
        batch: int = 4,
        cases: int = 10,
        gpus: int = 4,
    ) -> None:
        self.now = 1000.0
        for module in ("searcher", "scheduler"):
            monkeypatch.setattr(f"tuner.driver.{module}.time.monotonic", lambda: self.now)
        monkeypatch.setattr(spare_gpus, "node_of", lambda trial: "a")
        spec = parse_spec(SPACE.format(trials=trials, batch=batch), source="s.yaml")
        record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
        self.study = Study(record.folder, spec, record)
        self.nodes = Nodes(spec.resources, trials, "a")
        self.nodes.see([Node("10.0.0.1", 16, gpus, 2**36, "a", "host-a")], 0)
        self.nodes.plan()
        self.searcher = build_searcher(self.study, Policy(record), self.nodes.places)
        spare = SpareGpus.of(self.study, ONE_EACH, self.nodes, self.searcher, cases)
        assert spare is not None
        self.spare = spare
        self.searcher.share_by(spare.requested)

    def begin(self) -> int | None:
        """Let Tune ask for a trial, and begin it."""
        proposed = self.searcher.suggest(str(len(self.study.record.decisions)))
        if not isinstance(proposed, dict):
            return None
        request = TrialRequest.from_ray(proposed)
        self.spare.on_trial_start(0, [], ray_trial(request.number))
        self.requested = request.gpus
        self.tune_id = str(len(self.study.record.decisions))
        return request.number

    def epoch(self, number: int, epoch: int = 1) -> str:
        """What is to change after an epoch, some time after the trial before has begun."""
        self.study.record.report(number, epoch, 0.5, {}, 10.0)
        return self.spare.change(number, epoch)

    def pause(self, number: int, why: str) -> None:
        tune_id = next(key for key, held in self.searcher._number_of.items() if held == number)
        self.study.record.interrupt(number, why)
        self.searcher.on_trial_complete(tune_id)
        del self.searcher._number_of[tune_id]
        self.spare.on_trial_complete(0, [], ray_trial(number))


def test_the_last_trial_goes_on_with_twice_the_gpus_until_the_node_has_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, trials=1)
    assert watched.begin() == 0
    assert watched.requested == 0
    for epoch, gpus in ((1, 2), (2, 4)):
        # Tune asks in vain
        assert watched.begin() is None
        assert watched.epoch(0, epoch) == ""
        watched.now += SETTLED_SECONDS
        why = watched.spare.change(0, epoch)
        assert why == f"no other trial is left to begin; it goes on with {gpus} GPUs of its node"
        # its worker is given back, once
        assert (watched.spare.lets_go(), watched.spare.lets_go()) == (True, False)
        watched.pause(0, why)
        assert watched.begin() == 0
        assert watched.requested == gpus
    assert watched.begin() is None
    watched.now += SETTLED_SECONDS
    assert watched.epoch(0, 3) == ""


@pytest.mark.parametrize(
    ("trials", "given", "epoch"),
    [
        # both halves of the node are taken
        (1, {"gpus": 1}, 1),
        # a process would have no patch, or no case
        (1, {"batch": 3}, 1),
        (1, {"cases": 1}, 1),
        # less than two minutes are left
        (1, {}, 90),
        # a further trial is to begin
        (3, {}, 1),
    ],
)
def test_who_goes_on_as_before(
    monkeypatch: pytest.MonkeyPatch, trials: int, given: dict[str, int], epoch: int
) -> None:
    watched = Watched(monkeypatch, trials=trials, **given)
    watched.begin()
    watched.begin()
    watched.now += SETTLED_SECONDS
    assert watched.epoch(0, epoch) == ""


def test_two_trials_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, trials=2)
    assert (watched.begin(), watched.begin(), watched.begin()) == (0, 1, None)
    watched.now += SETTLED_SECONDS
    for number in (0, 1):
        why = watched.epoch(number)
        assert "goes on with 2 GPUs" in why
        watched.pause(number, why)
        assert watched.begin() == number
        assert watched.begin() is None
        watched.now += SETTLED_SECONDS
    assert watched.epoch(0, 2) == watched.epoch(1, 2) == ""


@pytest.mark.parametrize("other", ["trial", "study"])
def test_what_others_want_is_given_back(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    watched = Watched(monkeypatch, trials=2, gpus=2)
    watched.begin()
    # the second one pauses, is promoted when the first has both GPUs, and waits
    assert watched.begin() == 1
    watched.pause(1, "it pauses")
    watched.searcher._to_resume.remove(1)
    assert watched.begin() is None
    watched.now += SETTLED_SECONDS
    watched.pause(0, watched.epoch(0))
    watched.begin()
    assert watched.requested == 2
    if other == "trial":
        watched.searcher._to_resume.append(1)
        assert watched.begin() == 1
    else:
        watched.nodes.allowed = 2
    why = watched.epoch(0, 2)
    assert why == "others want its GPUs; it goes on with 1"
    watched.pause(0, why)
    assert watched.begin() == 0
    assert watched.requested == 0


@pytest.mark.parametrize(
    ("more", "resources", "spare"),
    [
        ("", ONE_EACH, True),
        ("resources: {gpu: 1}", ONE_EACH, False),
        ("", TrialResources(2, 0, 4), False),
        ("search: {gpu_hours: 10}", ONE_EACH, False),
        ("policy: pbt\nsearch: {searcher: random}", ONE_EACH, False),
    ],
)
def test_which_studies_do_so(
    tmp_path: Path, more: str, resources: TrialResources, spare: bool
) -> None:
    text = f"space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}\n{more}"
    spec = parse_spec(text, source="s.yaml")
    study = Study(tmp_path, spec, StudyRecord(tmp_path, spec.space, spec.mode))
    nodes: Any = None
    assert (SpareGpus.of(study, resources, nodes, nodes, 4) is not None) is spare


def test_the_batch_of_a_trial_stays_what_it_was(tmp_path: Path) -> None:
    spec = parse_spec(SPACE.format(trials=1, batch=4), source="s.yaml")
    source = (DataSource(tmp_path, tmp_path, ""),)
    sizes = [
        StudyContext(tmp_path, spec, source, gpus).trial_config(spec, 0, {}).train_batch_size
        for gpus in (1, 2, 4)
    ]
    assert sizes == [4, 2, 1]


def test_a_trial_that_waits_in_vain_for_gpus_goes_on_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, trials=1)
    watched.begin()
    watched.begin()
    watched.now += SETTLED_SECONDS
    watched.pause(0, watched.epoch(0))
    watched.begin()
    asked: list[Any] = []
    cluster: Any = SimpleNamespace(spare=watched.spare)
    record = watched.study.record
    fit = FitNodes(4, 1, frozenset)
    scheduler = RecordScheduler(record, Policy(record), placement=fit, cluster=cluster)
    waiting = ray_trial(0, status=Trial.PENDING, update_resources=asked.append)
    waiting.config = TrialRequest(0, {}, gpus=2).to_ray()
    scheduler.on_trial_add(None, waiting)  # type: ignore[arg-type]
    assert asked == [FitNodes(8, 2, frozenset)]
    stopped: list[Any] = []
    controller: Any = SimpleNamespace(stop_trial=stopped.append)
    assert scheduler.choose_trial_to_run(controller) is waiting
    watched.now += 1.1 * WORKER_STARTS_WITHIN
    assert scheduler.choose_trial_to_run(controller) is None
    assert stopped == [waiting]
    assert "2 GPUs of a node are not to be had" in record.entries[0].reason
    watched.pause(0, "")
    watched.begin()
    assert watched.requested == 0
    # nor does it ask again
    watched.now += SETTLED_SECONDS
    assert watched.epoch(0, 3) == ""


def test_a_trial_pauses_between_two_epochs_to_go_on_with_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, trials=1)
    watched.begin()
    watched.begin()
    watched.now += SETTLED_SECONDS
    memory = SimpleNamespace(reports=lambda number, use: None)
    cluster: Any = SimpleNamespace(spare=watched.spare, memory=memory, makes_room=lambda number: "")
    record = watched.study.record
    scheduler = RecordScheduler(record, Policy(record), cluster=cluster)
    decision = scheduler.on_trial_result(None, ray_trial(0), epoch_result(1, 0.5, 10.0))  # type: ignore[arg-type]
    assert decision == "STOP"
    assert record.entries[0].state is TrialState.INTERRUPTED
    assert record.entries[0].reason == (
        "after epoch 1: no other trial is left to begin; it goes on with 2 GPUs of its node"
    )
