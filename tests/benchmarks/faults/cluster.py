"""What a study on a cluster of several hosts loses when one of them, or its network, fails.

Studies are run by the real driver, on Ray clusters of hosts in namespaces (tests/helpers/hosts.py);
their trials are toys (end_to_end/toy.py), but for the one that trains on two GPUs, logical ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hosts import Host, RayOnHosts, ray_on_hosts
from outcomes import Outcome, judge
from watched import PACE, ROOT, TOY, Watched

from tuner.study.nodes import NodeState, read_nodes
from tuner.study.record import StudyRecord

SPACE: dict[str, Any] = {
    "config": {
        "data_dir": "phantom",
        "num_classes": 3,
        "model_params": {
            "embed_dim": 4,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "patch_size": [2, 4, 4],
        },
        "patch_size": [8, 32, 32],
        "steps_per_epoch": 2,
        "window_overlap": 0,
        "val_fraction": 0.5,
        "max_epochs": 8,
    },
    "space": {"learning_rate": {"loguniform": [1e-4, 1e-1]}},
    "search": {"num_trials": 8, "searcher": "random", "seed": 2},
    "policy": {"name": "asha", "grace_period": 1, "reduction_factor": 2, "promotion": True},
    "resources": {"max_concurrent": 1, "cpu": 1, "gpu": 0},
    "failures": {"max_failures": 0},
}
"""One trial at a time, so that all decisions are determined; no failure is forgiven."""

SEVERAL: dict[str, Any] = {
    "policy": "none",
    "resources": {"cpu": 1, "gpu": 0},
    "search": {**SPACE["search"], "num_trials": 10},
}
"""As many trials at a time as there are places."""

TWO_GPUS: dict[str, Any] = {
    "policy": "none",
    "search": {**SPACE["search"], "num_trials": 2},
    "resources": {"gpu": 2, "cpu": 1, "logical_gpus": True, "max_concurrent": 1},
    "failures": {"max_failures": 1},
}

LEFT = 100 * 2**20
"""Bytes that are left on a disk that is full, for what Ray writes."""


class ClusterBench:
    """Runs studies on clusters of hosts, and compares them with undisturbed ones.

    Args:
        folder: Where everything is written.
        partition: Seconds of the long cut of the network.
    """

    def __init__(self, folder: Path, partition: float) -> None:
        self._folder = folder
        self._partition = partition
        self._calm: dict[str, StudyRecord] = {}
        self._clusters = 0
        self.faults: dict[str, Callable[[], Outcome]] = {
            "cut-30s": lambda: self.cut(30.0),
            "cut-long": lambda: self.cut(self._partition),
            "worker-power": lambda: self.lose_worker("a worker's power lost", Host.power_off),
            "raylet": lambda: self.lose_worker(
                "kill -9 of a worker's raylet", lambda host: host.kill("raylet/raylet")
            ),
            "gcs": self.kill_gcs,
            "driver-power": self.lose_driver,
            "rank": self.kill_rank,
            "join": self.join,
            "no-share": self.without_share,
            "full-disk": self.full_disk,
            "two-studies": self.two_studies,
            "token": self.wrong_token,
        }

    def cut(self, seconds: float) -> Outcome:
        """Cut the network of the host that trains."""
        outcome = Outcome(f"a worker's network cut for {seconds:g} s")
        with self._cluster("w1", "w2") as cluster:
            study = self._begin(cluster)
            victim = self._victim(cluster, study)
            # the study is to last longer than the cut
            study.pace(max(PACE, 1.3 * seconds / 12))
            before, at = study.begun(), time.monotonic()
            victim.cut()
            mended = False
            while study.runs:
                passed = time.monotonic() - at
                if not mended and passed > seconds:
                    victim.mend()
                    study.pace(PACE)
                    mended = True
                if outcome.seconds is None and study.begun() > before:
                    outcome.seconds = passed
                time.sleep(0.1)
            study.finish()
            left = "lives on" if victim.processes("raylet/raylet") else "has ended"
            outcome.seen = f"its raylet {left}{'' if mended else '; the study ended before'}"
        return judge(outcome, study, self._undisturbed(SPACE))

    def lose_worker(self, fault: str, harm: Callable[[Host], None]) -> Outcome:
        """Harm the host that trains."""
        outcome = Outcome(fault)
        with self._cluster("w1", "w2") as cluster:
            study = self._begin(cluster)
            victim = self._victim(cluster, study)
            other = "w2" if victim.name == "w1" else "w1"
            before, at = study.begun(other), time.monotonic()
            harm(victim)
            outcome.seconds = study.wait(lambda: study.begun(other) > before) - at
            study.finish()
        return judge(outcome, study, self._undisturbed(SPACE))

    def kill_gcs(self) -> Outcome:
        """Kill the head's GCS, start the cluster anew, and resume."""
        outcome = Outcome("kill -9 of the GCS; cluster started anew, resumed")
        with self._cluster("w1") as cluster:
            study = self._begin(cluster)
            self._victim(cluster, study)
            at = time.monotonic()
            cluster.head.kill("gcs_server")
            study.finish()
            outcome.seen = f"driver ended after {time.monotonic() - at:.0f} s"
            cluster.renew_head()
            cluster.join("w2")
            cluster.wait_for_nodes(2)
            before, at = study.begun(), time.monotonic()
            self._resume(cluster, study)
            outcome.seconds = study.wait(lambda: study.begun() > before) - at
            study.finish()
        return judge(outcome, study, self._undisturbed(SPACE))

    def lose_driver(self) -> Outcome:
        """Take the power of the driver's host, and resume on the head at once."""
        outcome = Outcome("the driver's power lost; resumed on another host at once")
        with self._cluster("w1", "w2") as cluster:
            driver = cluster.join("driver", cpus=0)
            cluster.wait_for_nodes(4)
            study = self._begin(cluster, on=driver)
            self._victim(cluster, study)
            # an epoch that would take the worker that is left behind very long
            study.pace(60)
            before = study.saved()
            study.wait(lambda: study.saved() > before and study.trains_on())
            driver.power_off()
            study.finish()
            study.pace(PACE)
            before, at = study.begun(), time.monotonic()
            self._resume(cluster, study)
            outcome.seconds = study.wait(lambda: study.begun() > before) - at
            study.finish()
        return judge(outcome, study, self._undisturbed(SPACE))

    def kill_rank(self) -> Outcome:
        """Kill one process of a trial on two GPUs, a real training."""
        outcome = Outcome("kill -9 of one process of a trial on two GPUs")
        with self._cluster() as cluster:
            worker = cluster.join("w1", cpus=2, gpus=2)
            cluster.wait_for_nodes(2)
            program = ("-m", "tuner")
            calm = self._begin(cluster, TWO_GPUS, "calm", program=program)
            calm.finish()
            self._calm[json.dumps(TWO_GPUS)] = calm.record()
            study = self._begin(cluster, TWO_GPUS, program=program)
            metrics = study.folder / "trials" / "0000" / "metrics.csv"

            def epochs() -> int:
                return len(metrics.read_text().splitlines()) - 1 if metrics.is_file() else 0

            study.wait(lambda: epochs() >= 2 and worker.processes("rank_process"))
            at, before = time.monotonic(), epochs()
            os.kill(worker.processes("rank_process")[-1], signal.SIGKILL)
            outcome.seconds = study.wait(lambda: epochs() > before + 1) - at
            study.finish()
            left = len(worker.processes("rank_process"))
            outcome.seen = f"{left} processes left behind; cut off epochs are not counted"
        return judge(outcome, study, self._undisturbed(TWO_GPUS))

    def join(self) -> Outcome:
        """Let a host join in the middle."""
        outcome = Outcome("a host joins in the middle")
        with self._cluster("w1") as cluster:
            study = self._begin(cluster, SEVERAL)
            study.pace(2)
            study.wait(lambda: study.saved() >= 3)
            at = time.monotonic()
            cluster.join("w2", cpus=2)
            outcome.seconds = study.wait(lambda: study.begun("w2")) - at
            study.pace(PACE)
            study.finish()
        return judge(outcome, study, self._undisturbed(SEVERAL))

    def without_share(self) -> Outcome:
        """Let a host join that does not see the studies."""
        outcome = Outcome("a host without the share joins")
        with self._cluster("w1") as cluster:
            study = self._begin(cluster, SEVERAL)
            study.pace(2)
            study.wait(lambda: study.saved() >= 3)
            sick = cluster.hosts.add("sick")
            sick.mount(study.folder.parent)
            at = time.monotonic()
            cluster.add_node(sick, cpus=2)
            outcome.seen = self._left_out(study, at)
            study.pace(PACE)
            study.finish()
            assert not study.begun("sick")
        return judge(outcome, study, self._undisturbed(SEVERAL))

    def full_disk(self) -> Outcome:
        """Let a host join whose temporary folder is on a full disk, and make room later."""
        outcome = Outcome("a host with a full disk joins; room is made")
        with self._cluster("w1") as cluster:
            study = self._begin(cluster, SEVERAL)
            study.pace(3)
            study.wait(lambda: study.saved() >= 3)
            disk = self._folder / f"disk-{self._clusters}"
            disk.mkdir()
            full = cluster.hosts.add("full")
            full.mount(disk, "400m")
            full.run("fallocate", "-l", str(400 * 2**20 - LEFT), disk / "filler")
            at = time.monotonic()
            cluster.add_node(full, cpus=2, environment={"TMPDIR": str(disk)})
            outcome.seen = self._left_out(study, at)
            full.run("rm", disk / "filler")
            at = time.monotonic()
            outcome.seconds = study.wait(lambda: study.begun("full")) - at
            study.pace(PACE)
            study.finish()
        return judge(outcome, study, self._undisturbed(SEVERAL))

    def _left_out(self, study: Watched, at: float) -> str:
        """How long it took until a node was left out, and why it was."""

        def found() -> list[str]:
            if not (study.folder / "nodes.json").is_file():
                return []
            nodes = read_nodes(study.folder)
            return [node.reason for node in nodes if node.state is NodeState.LEFT_OUT]

        seconds = study.wait(found) - at
        return f"left out after {seconds:.0f} s: {found()[0]}"

    def two_studies(self) -> Outcome:
        """Start a second study while one has all places."""
        outcome = Outcome("a second study comes")
        with self._cluster("w1", "w2") as cluster:
            study = self._begin(cluster, SEVERAL)
            study.pace(2)
            study.wait(lambda: study.saved() >= 3)
            at = time.monotonic()
            second = self._begin(cluster, SEVERAL, "second")
            outcome.seconds = second.wait(second.begun) - at
            study.pace(PACE)
            second.finish()
            study.finish()
        judged = judge(Outcome(""), second, self._undisturbed(SEVERAL))
        judge(outcome, study, self._undisturbed(SEVERAL))
        outcome.codes += judged.codes
        outcome.cut_off += judged.cut_off
        outcome.repeated += judged.repeated
        outcome.failures += judged.failures
        outcome.same_scores &= judged.same_scores
        outcome.same_decisions &= judged.same_decisions
        return outcome

    def wrong_token(self) -> Outcome:
        """Start a driver with another token, then one with the right one."""
        outcome = Outcome("a driver with a wrong token, then with the right one")
        with self._cluster("w1") as cluster:
            study = self._begin(cluster, token="f" * 64)
            study.finish()
            assert "refuses the authentication token" in study.output, study.output
            assert not study.folder.exists()
            at = time.monotonic()
            self._run(cluster, study, SPACE)
            outcome.seconds = study.wait(study.begun) - at
            study.finish()
        return judge(outcome, study, self._undisturbed(SPACE))

    @contextmanager
    def _cluster(self, *workers: str) -> Iterator[RayOnHosts]:
        self._clusters += 1
        with ray_on_hosts(self._folder / f"hosts-{self._clusters}", workers) as cluster:
            yield cluster

    def _space(self, changes: dict[str, Any]) -> Path:
        path = self._folder / "space.yaml"
        path.write_text(yaml.safe_dump(SPACE | changes))
        return path

    def _begin(
        self,
        cluster: RayOnHosts,
        changes: dict[str, Any] = SPACE,
        name: str = "study",
        *,
        on: Host | None = None,
        token: str | None = None,
        program: tuple[str | Path, ...] = (TOY,),
    ) -> Watched:
        studies = self._folder / f"studies-{self._clusters}"
        studies.mkdir(exist_ok=True)
        study = Watched(studies / name)
        self._run(cluster, study, changes, on=on, token=token, program=program)
        return study

    def _run(
        self,
        cluster: RayOnHosts,
        study: Watched,
        changes: dict[str, Any],
        *,
        on: Host | None = None,
        token: str | None = None,
        program: tuple[str | Path, ...] = (TOY,),
    ) -> None:
        environment = cluster.environment | ({"RAY_AUTH_TOKEN": token} if token else {})
        words = ("run", self._space(changes), "--name", study.folder.name)
        words = (*words, "--address", cluster.address)
        study.start(on or cluster.head, environment, *words, program=program)

    def _resume(self, cluster: RayOnHosts, study: Watched) -> None:
        words = ("resume", study.folder.name, "--address", cluster.address)
        study.start(cluster.head, cluster.environment, *words)

    def _victim(self, cluster: RayOnHosts, study: Watched) -> Host:
        """The host that trains, in the middle of an epoch, after some were saved."""
        study.wait(lambda: study.saved() >= 5 and study.trains_on())
        return cluster.hosts[study.trains_on()]

    def _undisturbed(self, changes: dict[str, Any]) -> StudyRecord:
        """The record of a study with a cluster of its own, where nothing happens."""
        key = json.dumps(changes)
        if key not in self._calm:
            folder = self._folder / f"calm-{len(self._calm)}"
            folder.mkdir()
            study = Watched(folder / "calm")
            study.pace(0)
            words = ["run", self._space(changes), "--name", "calm"]
            subprocess.run(
                [sys.executable, TOY, *words, "--studies-dir", study.folder.parent],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""},
            )
            self._calm[key] = study.record()
        return self._calm[key]


def run_faults(
    names: list[str], partition: float, done: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Let faults happen, one after the other.

    Args:
        names: Which ones; all if empty.
        partition: Seconds of the long cut of the network.
        done: Takes the outcomes so far, after each.

    Raises:
        ValueError: if there is no fault of a name.
    """
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.environ["SEGTUNE_CACHE"] = str(Path(folder) / "cache")
        bench = ClusterBench(Path(folder), partition)
        unknown = set(names) - set(bench.faults)
        if unknown:
            raise ValueError(f"no fault {sorted(unknown)}; there are {', '.join(bench.faults)}")
        for name in names or bench.faults:
            outcomes.append(bench.faults[name]())
            done(outcomes)
    return outcomes
