"""Which nodes of the cluster trials use, which are left out and why, and the places of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tuner.driver.resources import Node, cores_for, least_share, places_on, plan_resources
from tuner.study.nodes import NodeEntry, NodeState

if TYPE_CHECKING:
    from tuner.driver.memory_places import MemoryPlaces
    from tuner.spec.settings import ResourceSettings, TrialResources

PROBE_INTERVAL = 20.0
"""Seconds until a node that failed its probe is probed again."""

LONGEST_INTERVAL = 1800.0
"""Seconds after which a node is probed again at the latest."""


@dataclass
class _Known:
    """A node of the cluster, and what is known of it.

    Attributes:
        node: What it offers.
        state: Whether it is used.
        since: When it came into this state, in seconds since 1970.
        reason: Why it is left out.
        due: When it is to be probed, as `time.monotonic` counts; None while it is, or need not be.
        failures: Trials that failed for it in a row, since an epoch was finished on it.
    """

    node: Node
    state: NodeState
    since: float = field(default_factory=time.time)
    reason: str = ""
    due: float | None = None
    failures: int = 0

    def become(self, state: NodeState, reason: str = "") -> None:
        if (self.state, self.reason) != (state, reason):
            self.state, self.reason, self.since = state, reason, time.time()


class Nodes:
    """The nodes of a study's cluster.

    A node that joins is used as soon as its probe has passed. One that fails its probe, or a trial,
    is left out, and probed again from time to time. A node whose probe passes although trials fail
    there is left out for longer each time, until an epoch is finished on it.

    The driver's main thread asks, and the thread of `NodeWatch` tells what it sees.

    Args:
        settings: The section `resources` of the spec.
        num_trials: Trials of the study.
        here: Ray's name of the driver's own node, which is not probed when it joins: it sees what
            the driver sees.
        joined: Whether the cluster is one that the study joined. Its nodes come and go. That of
            a cluster of our own is this machine alone, and the study ends when it fails.
        memory: What trials take of the memory of their nodes; None where that is not to matter.
    """

    def __init__(
        self,
        settings: ResourceSettings,
        num_trials: int,
        here: str = "",
        *,
        joined: bool = True,
        memory: MemoryPlaces | None = None,
    ) -> None:
        self.joined = joined
        self._memory = memory
        self._settings = settings
        self._num_trials = num_trials
        self._here = here
        self._share: TrialResources | None = None
        self.allowed: int | None = None
        """Trials at once that other studies leave to this one; None while there is no other."""
        self.parts: Callable[[], int] = lambda: 1
        """Trials that share the GPU and the cores of one at most."""
        self._known: dict[str, _Known] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def limit(self) -> int:
        """Trials at once at most, however many nodes there are."""
        most = self._settings.max_concurrent
        return self._num_trials if most == "auto" else min(most, self._num_trials)

    @property
    def cores(self) -> float:
        """Cores of all nodes that are used."""
        return self.totals()["CPU"]

    def totals(self) -> dict[str, float]:
        """CPUs and GPUs of all nodes that are used."""
        with self._lock:
            used = [k.node for k in self._known.values() if k.state is NodeState.USED]
        return {"CPU": sum(node.cpu for node in used), "GPU": sum(node.gpu for node in used)}

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs of each node that a trial may be placed on now, by Ray's name of it."""
        avoided = self.avoided
        with self._lock:
            return {
                node_id: int(known.node.gpu)
                for node_id, known in self._known.items()
                if node_id not in avoided
            }

    @property
    def planned(self) -> bool:
        """Whether the share of a trial is decided."""
        return self._share is not None

    @property
    def avoided(self) -> frozenset[str]:
        """Nodes that no trial may be placed on now, by Ray's name: left out, or out of memory."""
        with self._lock:
            return frozenset(
                node_id
                for node_id, known in self._known.items()
                if known.state is not NodeState.USED or self._room(node_id) == 0
            )

    def plan(self) -> TrialResources:
        """The share of each trial, and how many run at once now; it is decided once.

        Raises:
            ResourceError: if no node can hold a trial.
        """
        with self._lock:
            nodes = [k.node for k in self._known.values() if k.state is not NodeState.LEFT_OUT]
            self._share = plan_resources(self._settings, nodes, self._num_trials)
            return self._share

    def places(self) -> int:
        """How many trials the nodes that are used hold at once, `limit` at most."""
        if self._share is None:
            return 0
        with self._lock:
            held = sum(
                self._held(node_id, known.node)
                for node_id, known in self._known.items()
                if known.state is NodeState.USED
            )
        places = min(held, self.limit)
        return places if self.allowed is None else min(places, self.allowed)

    def _held(self, node_id: str, node: Node) -> int:
        """Trials that a node holds at once, those that run there included."""
        slots = self._slots(node)
        room = self._room(node_id)
        if self._memory is None or room is None:
            return slots
        return min(slots, self._memory.running(node_id) + room)

    def _slots(self, node: Node) -> int:
        """Trials that the cores and GPUs of a node hold at once."""
        assert self._share is not None
        part = 1 / self.parts()
        return places_on(node, cores_for(self._share.cpu, part), self._share.gpu * part)

    def _room(self, node_id: str) -> int | None:
        """Further trials that the memory of a node holds; None where that is not known."""
        return None if self._memory is None else self._memory.room(node_id)

    def short_of_memory(self) -> list[str]:
        """Nodes whose memory holds fewer trials than their cores and GPUs, a line for each."""
        if self._memory is None or self._share is None:
            return []
        lines = []
        with self._lock:
            for node_id, known in self._known.items():
                slots = min(self.limit, self._slots(known.node))
                running = self._memory.running(node_id)
                if known.state is NodeState.USED and running < slots and self._room(node_id) == 0:
                    where = f" on {self._names[node_id]}" if self.joined else ""
                    why = self._memory.describe(node_id)
                    lines.append(f"{running} at once instead of {slots}{where}: {why}")
        return lines

    def wanted(self) -> list[dict[str, float]]:
        """Shares of trials that the cluster should have room for, for its autoscaler.

        As many as `max_concurrent` says; with `auto` one while there is none, since what is to
        grow is for the user to say.
        """
        share = self._needed()
        cpu, gpu = share["CPU"], share.get("GPU", 0.0)
        with self._lock:
            fit = [k.node for k in self._known.values() if k.state is not NodeState.LEFT_OUT]
        if self._settings.max_concurrent != "auto":
            return [share] * self.limit
        return [] if any(places_on(node, cpu, gpu) for node in fit) else [share]

    def _needed(self) -> dict[str, float]:
        """The share of a trial, as Ray names it; what it is at least before it is decided."""
        if self._share is None:
            return least_share(self._settings)
        share = {"CPU": self._share.cpu}
        return {**share, "GPU": self._share.gpu} if self._share.gpu else share

    def name(self, node_id: str | None) -> str:
        """Host name and address of a node, also of one that is gone."""
        return self._names.get(node_id or "", "that is not known")

    def entries(self) -> list[NodeEntry]:
        """The nodes as the study's folder has them."""
        with self._lock:
            return [
                NodeEntry(
                    self._names[node_id],
                    node_id,
                    known.state,
                    known.reason,
                    known.since,
                    known.node.cpu,
                    known.node.gpu,
                )
                for node_id, known in self._known.items()
            ]

    def see(self, nodes: Sequence[Node], now: float) -> list[str]:
        """Take over the nodes that live now; what is to be told of them.

        Args:
            nodes: All of them; those without a CPU hold no trial and are not looked at.
            now: The time, as `time.monotonic` counts.
        """
        told = []
        alive = {node.node_id: node for node in nodes if node.cpu > 0}
        with self._lock:
            for gone in self._known.keys() - alive.keys():
                del self._known[gone]
                told.append(f"node {self._names[gone]} left the cluster")
            for node_id, node in alive.items():
                if node_id in self._known:
                    continue
                self._names[node_id] = f"{node.host} ({node.name})" if node.host else node.name
                if node_id == self._here or not self.joined:
                    self._known[node_id] = _Known(node, NodeState.USED)
                else:
                    self._known[node_id] = _Known(node, NodeState.PROBED, due=now)
        return told

    def due(self, now: float) -> list[Node]:
        """Nodes whose probe is to begin now."""
        with self._lock:
            found = [k for k in self._known.values() if k.due is not None and k.due <= now]
            for known in found:
                known.due = None
            return [known.node for known in found]

    def probed(self, node_id: str, problems: Sequence[str], now: float) -> list[str]:
        """Take over what a probe found; what is to be told of it.

        Args:
            node_id: The node.
            problems: What is wrong there; none if it passed.
            now: The time, as `time.monotonic` counts.
        """
        with self._lock:
            known = self._known.get(node_id)
            if known is None or known.due is not None:
                # it is gone, or a trial failed there in the meantime
                return []
            before = known.state, known.reason
            if problems:
                known.become(NodeState.LEFT_OUT, "; ".join(problems))
                known.due = now + PROBE_INTERVAL
            else:
                known.become(NodeState.USED)
            if (known.state, known.reason) == before:
                return []
            return [f"node {self._names[node_id]} {_how(known)}"]

    def failed(self, node_id: str, reason: str, now: float) -> list[str]:
        """Leave a node out that failed a trial; what is to be told of it.

        It is probed at once; after further failures in a row, only when it has rested.

        Args:
            node_id: The node.
            reason: What is wrong there.
            now: The time, as `time.monotonic` counts.
        """
        with self._lock:
            known = self._known.get(node_id)
            if known is None:
                return []
            if known.state is NodeState.LEFT_OUT:
                # other trials that ran there meet the same
                return []
            known.failures += 1
            rest = PROBE_INTERVAL * 2.0 ** (known.failures - 1) if known.failures > 1 else 0.0
            known.due = now + min(rest, LONGEST_INTERVAL)
            known.become(NodeState.LEFT_OUT, reason)
            return [f"node {self._names[node_id]} {_how(known)}"]

    def works(self, node_id: str | None) -> None:
        """Note that an epoch was finished on a node."""
        known = self._known.get(node_id or "")
        if known is not None:
            known.failures = 0

    def summary(self) -> str:
        """The nodes on one line: how many are used, and which are not, and why; empty for one."""
        with self._lock:
            known = list(self._known.items())
        if len(known) == 1 and known[0][1].state is NodeState.USED:
            return ""
        used = sum(each.state is NodeState.USED for _, each in known)
        others = [
            f"{self._names[node_id]} {_how(each)}"
            for node_id, each in known
            if each.state is not NodeState.USED
        ]
        return "; ".join([f"{used} used, {self.places()} places", *others])

    def waiting(self) -> str:
        """What the study waits for, if no node has a place; empty if one has."""
        if self.places():
            return ""
        share = self._needed()
        a_trial = f"{share['CPU']:g} CPU and {share.get('GPU', 0):g} GPU"
        with self._lock:
            known = list(self._known.items())
        why = [f"{self._names[node_id]} {_how(each)}" for node_id, each in known]
        return (
            f"no node can be used for a trial, which needs {a_trial}"
            f"{': ' + '; '.join(why) if why else ''}; the study waits for one, and goes on then"
        )


def _how(known: _Known) -> str:
    if known.state is NodeState.LEFT_OUT:
        return f"is left out: {known.reason}"
    if known.state is NodeState.PROBED:
        return "is being probed"
    return f"is used: {known.node.cpu:g} CPU, {known.node.gpu:g} GPU"
