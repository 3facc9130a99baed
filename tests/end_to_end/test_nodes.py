"""Nodes of a cluster that join late, lack the study's folder, or are lost, while a study runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import waiting
import yaml
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from tuner.study.nodes import NodeState, read_nodes
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState

TOY = Path(__file__).with_name("toy.py")
SPACE = """\
metric: val_dice
config: {num_classes: 3, max_epochs: 4, data_dir: DATA, patch_size: [8, 32, 32]}
space: {learning_rate: {loguniform: [1e-4, 1e-1]}}
search: {num_trials: 10, searcher: random, seed: 2}
policy: none
resources: {cpu: 1, gpu: 0}
failures: {max_failures: 0}
"""
SMALL = 100 * 2**20

namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a node that sees other files needs root and unshare, which make a mount namespace",
)


@pytest.fixture
def head() -> Iterator[Cluster]:
    """A cluster whose head alone is there, without a CPU for trials."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": SMALL}
    started = Cluster(initialize_head=True, head_node_args=head)
    yield started
    started.shutdown()
    # it takes the store of the cluster that this process is connected to away with its own
    if ray.is_initialized():
        internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


wait_for = partial(waiting.wait_for, seconds=120)


def without(folder: Path, address: str) -> subprocess.Popen[bytes]:
    """A node with two CPU cores that sees an empty folder in place of one."""
    ray = Path(sys.executable).with_name("ray")
    join = f"{ray} start --address={address} --num-cpus=2 --object-store-memory={SMALL} --block"
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c",
         f"mount -t tmpfs tmpfs '{folder}' && exec {join}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def states(study: Path) -> list[NodeState]:
    return [node.state for node in read_nodes(study)]


def placed_on(study: Path) -> set[str]:
    """Nodes that trials have been placed on."""
    return {
        str(yaml.safe_load(path.read_text())["node_id"])
        for path in study.glob("trials/*/placement.yaml")
    }


@namespaces
def test_a_study_follows_its_cluster_and_leaves_a_sick_node_out(
    head: Cluster, data_dir: Path, tmp_path: Path, private_cache: Path
) -> None:
    """Nodes come one after the other: none, a good one, one without the share, a good one."""
    studies = tmp_path / "studies"
    studies.mkdir()
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("DATA", str(data_dir)))
    pace = studies / "grown.pace.txt"
    pace.write_text("2")
    study = studies / "grown"
    driver = subprocess.Popen(
        [sys.executable, str(TOY), "run", str(space), "--name", "grown", "--studies-dir",
         str(studies), "--address", head.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(TOY.parents[2])},
    )  # fmt: skip
    sick = None
    try:
        wait_for((study / "nodes.json").is_file, driver)
        assert not open_study(studies, "grown").record.entries
        head.add_node(num_cpus=1, object_store_memory=SMALL)
        wait_for(lambda: bool(placed_on(study)), driver)
        sick = without(studies, head.address)
        wait_for(lambda: NodeState.LEFT_OUT in states(study), driver)
        (left_out,) = [node for node in read_nodes(study) if node.state is NodeState.LEFT_OUT]
        assert f"does not see the study folder {study}" in left_out.reason
        head.add_node(num_cpus=2, object_store_memory=SMALL)
        wait_for(lambda: states(study).count(NodeState.USED) == 2, driver)
        wait_for(lambda: len(placed_on(study)) == 2, driver)
        pace.write_text("0")
        output = driver.communicate(timeout=180)[0]
    finally:
        driver.kill()
        if sick is not None:
            sick.terminate()
            sick.wait(timeout=60)
    assert driver.returncode == 0, output
    assert "no node can be used for a trial, which needs 1 CPU and 0 GPU" in output
    assert f"is left out: it does not see the study folder {study}" in output
    assert left_out.node_id not in placed_on(study)
    entries = open_study(studies, "grown").record.entries.values()
    assert {(entry.state, entry.failures) for entry in entries} == {(TrialState.COMPLETED, 0)}
