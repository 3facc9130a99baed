"""Trials share a GPU where others wait, and use several that no other needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial
from trial_messages import epoch_result, ray_trial

from training.data import DataSource
from tuner.driver import gpu_shares
from tuner.driver.gpu_shares import SETTLED_SECONDS, GpuShares
from tuner.driver.memory_places import MemoryPlaces
from tuner.driver.nodes import Nodes
from tuner.driver.placement import FitNodes
from tuner.driver.resources import Node
from tuner.driver.scheduler import WORKER_STARTS_WITHIN, RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.driver.study_cluster import StudyCluster
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import TrialResources
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Placement, TrialState
from tuner.trial.context import StudyContext
from tuner.trial.memory import GpuUse, MemoryUse
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest, TrialStart

SPACE = """
config: {{max_epochs: 100, train_batch_size: {batch}}}
space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}
policy: none
search: {{num_trials: {trials}, searcher: random}}
resources: {{max_concurrent: {at_once}}}
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
        at_once: int | str = "auto",
    ) -> None:
        self.now = 1000.0
        for module in ("searcher", "scheduler"):
            monkeypatch.setattr(f"tuner.driver.{module}.time.monotonic", lambda: self.now)
        monkeypatch.setattr(gpu_shares, "node_of", lambda trial: "a")
        spec = parse_spec(
            SPACE.format(trials=trials, batch=batch, at_once=at_once), source="s.yaml"
        )
        record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
        self.study = Study(record.folder, spec, record)
        self.nodes = Nodes(spec.resources, trials, "a")
        self.nodes.see([Node("10.0.0.1", 16, gpus, 2**36, "a", "host-a")], 0)
        self.nodes.plan()
        self.cluster = StudyCluster(self.nodes, MemoryPlaces())
        self.searcher = build_searcher(self.study, Policy(record), self.cluster.places)
        shares = GpuShares.of(self.study, ONE_EACH, self.nodes, self.searcher, cases)
        assert shares is not None
        self.shares = shares
        self.searcher.share_by(shares)
        self.cluster.share_gpus(shares)

    def begin(self) -> int | None:
        """Let Tune ask for a trial, and begin it."""
        proposed = self.searcher.suggest(str(len(self.study.record.decisions)))
        if not isinstance(proposed, dict):
            return None
        request = TrialRequest.from_ray(proposed)
        self.shares.on_trial_start(0, [], ray_trial(request.number))
        self.requested = request.gpus
        return request.number

    def on(self, number: int, *gpus: str) -> None:
        """Tell on which GPUs a trial has begun."""
        self.shares.begins(number, TrialStart(Placement("host-a", gpus)))

    def takes(
        self, number: int, epoch: int, gib: float, busy: float | None, seconds: float = 10.0
    ) -> str:
        """What is to change after an epoch that took so much of a GPU of 80 GiB."""
        use = MemoryUse("a", 0, 0, 0, 0, GpuUse(gib * 2**30, 80 * 2**30, busy))
        self.study.record.report(number, epoch, 0.5, {}, seconds)
        self.shares.reports(number, EpochReport(epoch, 0.5, {}, seconds, 1.0, memory=use))
        return self.shares.change(number, epoch)

    def measured(self, number: int, gib: float = 10, busy: float | None = 0.4) -> str:
        """What is to change after the first two epochs of a trial."""
        assert self.takes(number, 1, gib, busy) == ""
        return self.takes(number, 2, gib, busy)

    def epoch(self, number: int, epoch: int = 1) -> str:
        """What is to change after an epoch, some time after the trial before has begun."""
        self.study.record.report(number, epoch, 0.5, {}, 10.0)
        return self.shares.change(number, epoch)

    def end(self, number: int) -> None:
        self.study.record.finish(number, TrialState.COMPLETED, "trained 100 epochs")
        self.searcher.on_trial_complete(self.tune_id_of(number))
        self.shares.on_trial_complete(0, [], ray_trial(number))

    def tune_id_of(self, number: int) -> str:
        found = [key for key, held in self.searcher._number_of.items() if held == number]
        return found[-1]

    def pause(self, number: int, why: str) -> None:
        tune_id = self.tune_id_of(number)
        self.study.record.interrupt(number, why)
        self.searcher.on_trial_complete(tune_id)
        del self.searcher._number_of[tune_id]
        self.shares.on_trial_complete(0, [], ray_trial(number))


def two_share_a_gpu(monkeypatch: pytest.MonkeyPatch, busy: float | None = 0.4) -> Watched:
    """A study whose first two trials share the only GPU, after the first was measured alone."""
    watched = Watched(monkeypatch, trials=10, gpus=1)
    watched.begin()
    watched.on(0, "0")
    watched.pause(0, watched.measured(0, busy=busy))
    assert [watched.begin(), watched.begin()] == [0, 1]
    for number in (0, 1):
        watched.on(number, "0")
    return watched


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
        why = watched.shares.change(0, epoch)
        assert why == f"no other trial is left to begin; it goes on with {gpus} GPUs of its node"
        # its worker is given back, once
        assert (watched.shares.lets_go(), watched.shares.lets_go()) == (True, False)
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
    ("more", "resources", "made"),
    [
        ("", ONE_EACH, True),
        ("resources: {gpu: 1}", ONE_EACH, False),
        ("", TrialResources(2, 0, 4), False),
        ("search: {gpu_hours: 10}", ONE_EACH, True),
        ("policy: pbt\nsearch: {searcher: random}", ONE_EACH, False),
    ],
)
def test_which_studies_do_so(
    tmp_path: Path, more: str, resources: TrialResources, made: bool
) -> None:
    text = f"space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}\n{more}"
    spec = parse_spec(text, source="s.yaml")
    study = Study(tmp_path, spec, StudyRecord(tmp_path, spec.space, spec.mode))
    nodes: Any = None
    assert (GpuShares.of(study, resources, nodes, nodes, 4) is not None) is made


def test_the_batch_of_a_trial_stays_what_it_was(tmp_path: Path) -> None:
    spec = parse_spec(SPACE.format(trials=1, batch=4, at_once="auto"), source="s.yaml")
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
    cluster: Any = SimpleNamespace(gpu_shares=watched.shares)
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
    record = watched.study.record
    scheduler = RecordScheduler(record, Policy(record), cluster=watched.cluster)
    decision = scheduler.on_trial_result(None, ray_trial(0), epoch_result(1, 0.5, 10.0))  # type: ignore[arg-type]
    assert decision == "STOP"
    assert record.entries[0].state is TrialState.INTERRUPTED
    assert record.entries[0].reason == (
        "after epoch 1: no other trial is left to begin; it goes on with 2 GPUs of its node"
    )


def test_a_small_trial_makes_room_on_its_gpu_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, trials=10, gpus=1)
    assert (watched.begin(), watched.begin()) == (0, None)
    watched.on(0, "0")
    why = watched.measured(0)
    assert why == (
        "it takes 10.0 of 80.0 GiB of a GPU's memory and keeps it busy for 40% of the time; "
        "it goes on with a part, beside others (2 at once)"
    )
    watched.pause(0, why)
    # others of its kind begin beside it; a third one would find the GPU taken
    assert [watched.begin() for _ in range(3)] == [0, 1, None]
    assert (watched.shares.share(0), watched.shares.share(1), watched.requested) == (0.5, 0.5, 0.5)
    for number in (0, 1):
        watched.on(number, "0")
    # together they get through more: 2 epochs in 15 seconds instead of 20
    for epoch in (3, 4):
        assert watched.takes(0, epoch, 10, 0.8, 15.0) == ""
        assert watched.takes(1, epoch, 10, 0.8, 15.0) == ""


def test_trials_that_get_through_no_more_together_are_parted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = two_share_a_gpu(monkeypatch, busy=None)
    # the first epoch is not one that they shared from its beginning
    assert watched.takes(0, 3, 10, None, 19.0) == ""
    assert watched.takes(1, 1, 10, None, 19.0) == ""
    # the one that began first stays
    assert watched.takes(0, 4, 10, None, 19.0) == ""
    why = watched.takes(1, 2, 10, None, 19.0)
    assert why == "trials that share its GPU train no more together; it goes on with one"
    watched.pause(1, why)
    # it waits for the GPU, and no other begins beside the first one
    assert watched.begin() is None
    watched.end(0)
    assert watched.begin() == 1
    assert watched.requested == 0


@pytest.mark.parametrize(
    ("gib", "busy", "epoch", "given"),
    [
        # two do not fit, with a tenth to spare
        (38, 0.2, 2, {}),
        # the GPU computes for it most of the time
        (10, 0.6, 2, {}),
        # it ends soon
        (10, 0.2, 95, {}),
        # a GPU is free for the next trial
        (10, 0.2, 2, {"gpus": 2}),
        # no other trial is there to run
        (10, 0.2, 2, {"trials": 1}),
        # no more are to run at once
        (10, 0.2, 2, {"at_once": 1}),
    ],
)
def test_who_keeps_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gib: float, busy: float, epoch: int, given: dict[str, int]
) -> None:
    watched = Watched(monkeypatch, **{"trials": 10, "gpus": 1, "cases": 1, **given})
    watched.begin()
    watched.on(0, "0")
    assert watched.takes(0, epoch - 1, gib, busy) == ""
    assert watched.takes(0, epoch, gib, busy) == ""


def test_a_trial_that_outgrows_its_part_goes_on_with_a_whole_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = two_share_a_gpu(monkeypatch)
    tune_id = watched.tune_id_of(1)
    end = TrialEnd(TrialState.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory")
    watched.searcher.on_trial_complete(tune_id, end.to_ray())
    watched.shares.on_trial_complete(0, [], ray_trial(1))
    entry = watched.study.record.entries[1]
    assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, 0)
    assert entry.reason == (
        "it needs more than its part of a GPU (0.5); it goes on with a whole one"
    )
    del watched.searcher._number_of[tune_id]
    assert watched.begin() is None
    watched.end(0)
    assert watched.begin() == 1
    assert watched.requested == 0
    # with a whole one it is out of memory itself
    tune_id = watched.tune_id_of(1)
    watched.searcher.on_trial_complete(tune_id, end.to_ray())
    assert entry.state is TrialState.OUT_OF_MEMORY


def test_the_last_of_those_that_share_a_gpu_goes_on_with_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch, trials=3, gpus=2, cases=1)
    assert [watched.begin(), watched.begin()] == [0, 1]
    for number in (0, 1):
        watched.on(number, str(number))
    why = watched.measured(0)
    assert "it goes on with a part" in why
    watched.pause(0, why)
    assert [watched.begin(), watched.begin()] == [0, 2]
    for number in (0, 2):
        watched.on(number, "0")
    watched.now += SETTLED_SECONDS
    # both GPUs are in use
    assert watched.takes(2, 1, 10, 0.8, 15.0) == ""
    watched.end(1)
    assert watched.begin() is None
    watched.now += SETTLED_SECONDS
    why = watched.takes(2, 2, 10, 0.8, 15.0)
    assert why == "no other trial is left to begin; it goes on with a GPU of its own"
    watched.pause(2, why)
    assert watched.begin() == 2
    assert watched.requested == 0


def test_a_promoted_trial_has_a_whole_gpu_where_one_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = two_share_a_gpu(monkeypatch)
    for number in (1, 0):
        watched.pause(number, "it pauses")
    assert watched.begin() == 1
    assert watched.requested == 0
