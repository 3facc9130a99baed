"""How much of a machine or cluster a trial gets, and how many trials run at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.errors import ResourceError
from tuner.spec.settings import TrialResources

if TYPE_CHECKING:
    from tuner.spec.settings import ResourceSettings
    from tuner.spec.study_spec import StudySpec

MEMORY_PER_CPU_TRIAL = 3 * 2**30
"""Bytes that a trial without a GPU is assumed to need when concurrency is automatic."""


@dataclass(frozen=True)
class Node:
    """What one node of the cluster offers.

    Attributes:
        name: Its address.
        cpu: Logical CPU cores.
        gpu: GPUs.
        memory: Bytes of memory that Ray may use for tasks.
        node_id: Ray's name of it.
        host: Its host name.
    """

    name: str
    cpu: float
    gpu: float
    memory: float
    node_id: str = ""
    host: str = ""


def nodes_of(ray_nodes: Sequence[dict[str, Any]]) -> list[Node]:
    """The living nodes of `ray.nodes()`."""
    return [
        Node(
            name=node["NodeManagerAddress"],
            cpu=node["Resources"].get("CPU", 0.0),
            gpu=node["Resources"].get("GPU", 0.0),
            memory=node["Resources"].get("memory", 0.0),
            node_id=node["NodeID"],
            host=node["NodeManagerHostname"],
        )
        for node in ray_nodes
        if node["Alive"]
    ]


def plan_resources(
    settings: ResourceSettings, nodes: Sequence[Node], num_trials: int
) -> TrialResources:
    """Resources of each trial by the settings, with `auto` resolved from the nodes.

    By default a trial gets one GPU where there are GPUs, with that GPU's share of its
    node's cores. Without GPUs as many trials run at once as there are cores and memory
    for (3 GiB a trial), and share the cores.

    Raises:
        ResourceError: if no node can hold one trial.
    """
    if not nodes:
        share = least_share(settings)
        raise ResourceError(_refusal(share["CPU"], share.get("GPU", 0.0), nodes))
    has_gpu = any(node.gpu >= 1 for node in nodes)
    gpu = (1.0 if has_gpu else 0.0) if settings.gpu == "auto" else settings.gpu
    if settings.cpu != "auto":
        cpu = settings.cpu
    elif gpu:
        cpu = max(1.0, min((n.cpu // (n.gpu / gpu) for n in nodes if n.gpu >= gpu), default=1.0))
    else:
        cpu = _cpu_share(settings, nodes, num_trials)
    places = sum(places_on(node, cpu, gpu) for node in nodes)
    if places == 0:
        raise ResourceError(_refusal(cpu, gpu, nodes))
    limit = places if settings.max_concurrent == "auto" else settings.max_concurrent
    return TrialResources(cpu, gpu, max(1, min(limit, places, num_trials)))


def _cpu_share(settings: ResourceSettings, nodes: Sequence[Node], num_trials: int) -> float:
    """Cores of a trial when trials without a GPU share the nodes."""
    at_once = sum(
        max(1, min(int(node.cpu), int(node.memory // MEMORY_PER_CPU_TRIAL))) for node in nodes
    )
    if settings.max_concurrent != "auto":
        at_once = settings.max_concurrent
    at_once = max(1, min(at_once, num_trials))
    a_node = math.ceil(at_once / len(nodes))
    return max(1.0, float(max(node.cpu for node in nodes) // a_node))


def places_on(node: Node, cpu: float, gpu: float) -> int:
    """Trials that fit on a node; a fraction of a GPU never spans two GPUs."""
    by_cpu = int(node.cpu / cpu)
    if not gpu:
        return by_cpu
    if gpu > 1:
        return min(by_cpu, int(node.gpu // gpu))
    a_gpu = int(1 / gpu + 1e-9)
    return min(by_cpu, int(node.gpu) * a_gpu)


def cores_for(cpu: float, gpus: float) -> float:
    """Cores of a trial with so many times the GPUs: a whole number, where it is more than one."""
    cores = cpu * gpus
    return float(int(cores)) if cores > 1 else cores


def least_share(settings: ResourceSettings) -> dict[str, float]:
    """What a trial asks for at least, as Ray names it, where no node is known yet."""
    cpu = 1.0 if settings.cpu == "auto" else settings.cpu
    gpu = 0.0 if settings.gpu == "auto" else settings.gpu
    return {"CPU": cpu, "GPU": gpu} if gpu else {"CPU": cpu}


def _refusal(cpu: float, gpu: float, nodes: Sequence[Node]) -> str:
    offers = ", ".join(f"{node.name}: {node.cpu:g} CPU, {node.gpu:g} GPU" for node in nodes)
    offers = offers or "there is none for trials"
    return (
        f"a trial asks for {cpu:g} CPU and {gpu:g} GPU, and no node has that "
        f"({offers}): lower resources.cpu (--cpus-per-trial) or resources.gpu "
        "(--gpus-per-trial), or join a cluster that has it with --address"
    )


def check_gpu_hours(spec: StudySpec, gpus: float) -> None:
    """Check that a budget of GPU-hours can be spent.

    Args:
        spec: The study's spec.
        gpus: GPUs of a trial.

    Raises:
        ResourceError: if trials have no GPU.
    """
    if spec.search.gpu_hours is not None and not gpus:
        raise ResourceError(
            f"search.gpu_hours={spec.search.gpu_hours:g} would never be spent: trials have no GPU "
            "here; use search.time_budget or search.epoch_budget"
        )
