"""Nodes of a study's cluster, as its folder has them: which are used, and which are not, and why.

The driver writes `nodes.json` while a study runs on a cluster that it joined. Its `token` is drawn
anew in each run: a node that reads it there sees the same folder as the driver.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from training.durable_write import write_durably
from tuner.study.files import NODES_FILE


class NodeState(StrEnum):
    """Whether a node is used for trials."""

    PROBED = "being probed"
    USED = "used"
    LEFT_OUT = "left out"


@dataclass(frozen=True)
class NodeEntry:
    """A node of the cluster that could hold trials.

    Attributes:
        name: Its host name and address.
        node_id: Ray's name of it.
        state: Whether it is used.
        reason: Why it is left out; empty if it is not.
        since: When it came into this state, in seconds since 1970.
        cpu: CPU cores that it offers.
        gpu: GPUs that it offers.
    """

    name: str
    node_id: str
    state: NodeState
    reason: str
    since: float
    cpu: float
    gpu: float


def write_nodes(folder: Path, token: str, nodes: Sequence[NodeEntry]) -> None:
    """Write the nodes of a study's cluster to its folder."""
    content = {"token": token, "nodes": [asdict(node) for node in nodes]}
    write_durably(folder / NODES_FILE, json.dumps(content, indent=2))


def read_nodes(folder: Path) -> list[NodeEntry]:
    """The nodes of a study's cluster when it last ran; none for one that ran on its own."""
    path = folder / NODES_FILE
    if not path.is_file():
        return []
    nodes = json.loads(path.read_text())["nodes"]
    return [NodeEntry(**{**node, "state": NodeState(node["state"])}) for node in nodes]


def read_token(folder: Path) -> str | None:
    """The token of the run that writes to this folder; None where there is none."""
    path = folder / NODES_FILE
    return json.loads(path.read_text()).get("token") if path.is_file() else None


def left_out_lines(nodes: Sequence[NodeEntry]) -> list[str]:
    """One line for each node that is left out: its name, and why."""
    return [
        f"{node.name} is left out: {node.reason}"
        for node in nodes
        if node.state is NodeState.LEFT_OUT
    ]
