"""The cluster of a study while it runs, and its nodes, watched where it was joined."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray

from tuner.driver.fair_share import FairShare
from tuner.driver.memory_places import MemoryPlaces
from tuner.driver.node_watch import NodeWatch
from tuner.driver.nodes import Nodes
from tuner.driver.resources import nodes_of
from tuner.errors import ResourceError
from tuner.spec.grid import planned_trials
from tuner.study.code import code_folder
from tuner.study.nodes import read_token
from tuner.study.remote.node import RemoteFolder
from tuner.trial.node_probe import NodeNeeds, versions_here

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.driver.gpu_shares import GpuShares
    from tuner.driver.searcher import RecordSearcher
    from tuner.spec.settings import TrialResources
    from tuner.study.data import StudyData
    from tuner.study.study import Study
    from tuner.trial.messages import EpochReport, TrialStart

WAIT_INTERVAL = 0.2
"""Seconds between two looks for a node that can hold a trial, before the first one starts."""


class StudyCluster:
    """The nodes of a study's cluster, and what watches them.

    Args:
        nodes: What is known of the nodes.
        memory: What trials take of the memory of their nodes.
        watch: What watches them; None for a cluster of our own, which is this machine.
        fair: What shares the cluster with other studies; None for one of our own.
    """

    def __init__(
        self,
        nodes: Nodes,
        memory: MemoryPlaces,
        watch: NodeWatch | None = None,
        fair: FairShare | None = None,
    ) -> None:
        self.nodes = nodes
        self.memory = memory
        self._watch = watch
        self._fair = fair
        self.gpu_shares: GpuShares | None = None
        """What gives trials a part of a GPU, or several; None where each has what is configured."""

    @property
    def joined(self) -> bool:
        """Whether it is a cluster that was joined, whose nodes come and go."""
        return self._watch is not None

    @property
    def cores(self) -> float:
        """Cores that the study has to itself: those of this machine; none of a joined cluster."""
        return 0.0 if self.joined else self.nodes.cores

    def failed(self, node_id: str | None, reason: str) -> None:
        """Leave a node out that failed a trial."""
        if self._watch is not None and node_id is not None:
            self._watch.failed(node_id, reason)

    def share(self, is_over: Callable[[], bool]) -> TrialResources | None:
        """The share of each trial, when there is a node that can hold one.

        Args:
            is_over: Whether the study ends before.

        Returns:
            None if it ended.

        Raises:
            ResourceError: if this machine cannot hold a trial; a cluster may grow, and is waited
                for.
        """
        while not is_over():
            try:
                resources = self.nodes.plan()
            except ResourceError:
                if self._watch is None:
                    raise
            else:
                if self._fair is not None:
                    self._fair.claim(resources)
                return resources
            self._watch.tell_waiting()
            time.sleep(WAIT_INTERVAL)
        return None

    def follow(self, searcher: RecordSearcher) -> None:
        """Look after the trials of a run, and let other studies have what it does not want."""
        self.memory.follow(searcher.record)
        if self._fair is not None:
            self._fair.follow(lambda: searcher.wanted(self.nodes.limit), lambda: searcher.live)

    def share_gpus(self, shares: GpuShares | None) -> None:
        """Let trials have parts of a GPU, or several; None lets each have what is configured."""
        self.gpu_shares = shares
        self.nodes.parts = (lambda: 1) if shares is None else (lambda: shares.at_once)

    def places(self) -> int:
        """How many trials may run at once just now."""
        places = self.nodes.places()
        return places if self.gpu_shares is None else min(places, self.gpu_shares.places)

    def begins(self, number: int, start: TrialStart) -> None:
        """Take over where a trial begins, or goes on."""
        self.memory.begins(number, start.memory)
        if self.gpu_shares is not None:
            self.gpu_shares.begins(number, start)

    def reports(self, number: int, report: EpochReport) -> None:
        """Take over what a trial took until the end of an epoch."""
        self.memory.reports(number, report.memory)
        if self.gpu_shares is not None:
            self.gpu_shares.reports(number, report)

    def makes_room(self, number: int) -> str:
        """Why a trial is to pause for others, of this study or another; empty if it need not."""
        room = self.memory.makes_room(number)
        return room or ("" if self._fair is None else self._fair.makes_room())

    def lets_go(self) -> bool:
        """Whether a worker whose trial has ended is given back to the cluster."""
        # some count how often they were asked
        answers = [each.lets_go() for each in (self._fair, self.memory, self.gpu_shares) if each]
        return any(answers)

    def idle(self) -> bool:
        """Whether workers that are kept for a next trial are given back too."""
        return self.gpu_shares is not None and self.gpu_shares.idle()


@contextmanager
def study_cluster(
    study: Study, data: StudyData, console: Console | None, *, own: bool
) -> Iterator[StudyCluster]:
    """The cluster that this process is connected to, for a study.

    Args:
        study: The study, with the spec that its data complete.
        data: Its data.
        console: Where it is told which nodes are left out.
        own: Whether it is a cluster of our own.
    """
    settings = study.spec.resources
    context = ray.get_runtime_context()
    memory = MemoryPlaces()
    nodes = Nodes(
        settings,
        planned_trials(study.spec),
        context.get_node_id(),
        joined=not own,
        memory=memory,
    )
    if own:
        nodes.see(nodes_of(ray.nodes()), time.monotonic())
        yield StudyCluster(nodes, memory)
        return
    before = read_token(study.folder)
    needs = NodeNeeds(
        study.folder.absolute(),
        uuid.uuid4().hex,
        data.for_trials,
        study.spec,
        code_folder(study.folder),
        versions_here(),
        RemoteFolder.of(study.folder),
    )

    def tell(line: str) -> None:
        if console is not None:
            console.print(f"cluster        {line}", markup=False)

    real_gpus = settings.gpu != 0 and not settings.logical_gpus
    fair = FairShare(study.label, settings.priority, context.get_job_id(), needs.token)
    if before is not None:
        fair.take_over(before)
    with NodeWatch(nodes, needs, fair, tell, gpus=real_gpus) as watch:
        yield StudyCluster(nodes, memory, watch, fair)
