"""Watches the nodes of a joined cluster while a study runs: who joins, who leaves, who is fit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tuner.driver.cluster_watch import accepts
from tuner.driver.resources import Node, nodes_of
from tuner.study.nodes import write_nodes
from tuner.trial.node_probe import Probed, clock_problem, probe_node

if TYPE_CHECKING:
    from tuner.driver.fair_share import FairShare
    from tuner.driver.nodes import Nodes
    from tuner.trial.node_probe import NodeNeeds

INTERVAL = 1.0
"""Seconds between two looks at the cluster."""

PROBE_TIMEOUT = 150.0
"""Seconds that a probe may take; a mount that hangs never answers."""

JOIN_TIMEOUT = 5.0
"""Seconds that a look at a cluster which is going away may take when the study ends."""


@dataclass(frozen=True)
class _Probe:
    node: Node
    sent: float
    begun: float


class NodeWatch:
    """Keeps `Nodes` as the cluster is, probes those that join, and asks for more of them.

    Args:
        nodes: What is known of the nodes.
        needs: What a node needs to train trials of the study.
        gpus: Whether torch must be able to use the GPUs that Ray counts on a node.
        fair: What shares the cluster with other studies.
        tell: Takes what a person should know.
    """

    def __init__(
        self,
        nodes: Nodes,
        needs: NodeNeeds,
        fair: FairShare,
        tell: Callable[[str], None],
        *,
        gpus: bool,
    ) -> None:
        self._nodes = nodes
        self._needs = needs
        self._fair = fair
        self._gpus = gpus
        self._tell = tell
        self._probes: dict[Any, _Probe] = {}
        self._asked: list[dict[str, float]] = []
        self._written: object = None
        self._waiting = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> Self:
        """See the nodes that are there, and go on watching."""
        self._keep()
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the watch, and what was asked of the autoscaler."""
        self._ended.set()
        self._thread.join(JOIN_TIMEOUT)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        if not accepts(host, int(port)):
            # the cluster is gone, and calls of Ray would wait for it
            return
        with suppress(RayError, OSError, RuntimeError):
            for probe in self._probes:
                ray.cancel(probe, force=True)
            if self._asked:
                request_resources(bundles=[])
        self._fair.leave()

    def failed(self, node_id: str, reason: str) -> None:
        """Leave a node out that failed a trial."""
        self._say(self._nodes.failed(node_id, reason, time.monotonic()))

    def look(self) -> None:
        """Look at the cluster once."""
        now = time.monotonic()
        self._say(self._nodes.see(nodes_of(ray.nodes()), now))
        for node in self._nodes.due(now):
            self._probes[self._begin(node)] = _Probe(node, time.time(), now)
        if self._probes:
            for done in ray.wait(list(self._probes), num_returns=len(self._probes), timeout=0)[0]:
                self._take(done, now)
        for late in [ref for ref, p in self._probes.items() if now - p.begun > PROBE_TIMEOUT]:
            ray.cancel(late, force=True)
            probe = self._probes.pop(late)
            problem = f"it did not answer the probe within {PROBE_TIMEOUT:g} s"
            self._say(self._nodes.probed(probe.node.node_id, [problem], now))
        self._say(self._fair.look(self._nodes.totals()))
        self._nodes.allowed = self._fair.places
        self._ask()
        self._keep()
        if self._nodes.planned:
            self.tell_waiting()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            try:
                self.look()
            except (RayError, OSError, RuntimeError):
                # the cluster does not answer: `cluster_watch` says so when it is lost
                continue

    def _begin(self, node: Node) -> Any:
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        # its process ends with it: it has loaded what trials of other studies may not want
        task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(probe_node)
        gpus = int(node.gpu) if self._gpus else 0
        return task.options(scheduling_strategy=place, name="probe").remote(self._needs, gpus)

    def _take(self, done: Any, now: float) -> None:
        probe = self._probes.pop(done)
        try:
            found: Probed = ray.get(done, timeout=0)
        except (RayError, GetTimeoutError) as error:
            lines = str(error).strip().splitlines()
            problems = [f"its probe failed ({lines[-1].strip() if lines else 'no message'})"]
        else:
            clock = clock_problem(found.clock, probe.sent, time.time())
            problems = [*found.problems, *filter(None, [clock])]
        self._say(self._nodes.probed(probe.node.node_id, problems, now))

    def _ask(self) -> None:
        """Ask the autoscaler, if the cluster has one, for room."""
        wanted = self._nodes.wanted()
        if wanted != self._asked:
            request_resources(bundles=wanted)
            self._asked = wanted

    def _keep(self) -> None:
        """Write the nodes to the study's folder when they have changed."""
        entries = self._nodes.entries()
        if entries != self._written:
            # a disk that is full stops the study elsewhere
            with suppress(OSError):
                write_nodes(self._needs.folder, self._needs.token, entries)
                self._written = entries

    def tell_waiting(self) -> None:
        """Tell once that no node can be used, and what the study waits for."""
        waiting = self._nodes.waiting()
        if waiting and self._probes:
            # one may be about to pass
            return
        if waiting and not self._waiting:
            self._tell(waiting)
        self._waiting = waiting

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            self._tell(line)
