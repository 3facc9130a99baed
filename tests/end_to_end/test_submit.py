"""A study is sent to a cluster that this machine only reaches through the dashboard."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from waiting import wait_for

from tuner.study.open import open_study

SPACE = """\
config: {data_dir: phantom, model_name: "sent_net:small", max_epochs: 2, patch_size: [16, 16, 16]}
space: {learning_rate: {loguniform: [1e-4, 1e-2]}}
search: {num_trials: 2, searcher: random}
resources: {cpu: 1}
"""

NET = """\
import torch

def small(num_classes, input_channels):
    return torch.nn.Conv3d(input_channels, num_classes, 3, padding=1)
"""


@dataclass(frozen=True)
class Laptop:
    """A working folder, and the token and address of a cluster."""

    folder: Path
    studies: Path
    address: str
    environment: dict[str, str]

    def tune(self, *words: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = dict(self.environment)
        if token is not None:
            environment["RAY_AUTH_TOKEN"] = token
        return subprocess.run(
            [sys.executable, "-m", "tuner", *words, "--address", self.address],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        where = ("--studies-dir", str(self.studies))
        return self.tune("submit", "liver.yaml", "--name", name, *where, *words)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A cluster with a token, of which this process is no node."""
    root = tmp_path_factory.mktemp("submit")
    gcs, dashboard, agent, client = free_ports(4)
    packages = str(Path(__file__).parents[2])
    python_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{python_folder}:{os.environ['PATH']}",
        "PYTHONPATH": packages,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    (root / "laptop").mkdir()
    (root / "laptop" / "liver.yaml").write_text(SPACE)
    (root / "laptop" / "sent_net.py").write_text(NET)
    start = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    ports = [
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    # a short path, for sockets
    scratch = tempfile.TemporaryDirectory(prefix="seg-", dir="/tmp", ignore_cleanup_errors=True)
    with scratch, (root / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", *start, *ports),
                *("--dashboard-host=127.0.0.1", "--num-cpus=2", f"--temp-dir={scratch.name}"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        made = Laptop(
            root / "laptop", root / "studies", f"http://127.0.0.1:{dashboard}", environment
        )
        try:
            while made.tune("list").returncode != 0:
                assert head.poll() is None, (root / "ray.log").read_text()
            yield made
        finally:
            head.terminate()
            head.wait()


def test_submit_and_leave(laptop: Laptop) -> None:
    sent = laptop.submit("liver", "--follow")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert sent.stdout.startswith(f"the study liver is job liver of {laptop.address}\n")
    assert "completed: trained 2 epochs" in sent.stdout
    assert sent.stderr == ""

    shown = laptop.tune("status", "liver", "--json")
    with_record = open_study(laptop.studies, "liver")
    best = with_record.record.best()
    assert best is not None
    numbers = [trial["number"] for trial in json.loads(shown.stdout)["trials"]]
    assert numbers == list(with_record.record.entries)
    printed = laptop.tune("logs", "liver").stdout
    assert printed.rstrip("\n") in sent.stdout

    exported = laptop.tune("export", "liver", "-o", "model")
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == ""
    config = yaml.safe_load((laptop.folder / "model" / "config.yaml").read_text())
    assert config["learning_rate"] == pytest.approx(best.values["learning_rate"])
    assert json.loads((laptop.folder / "model" / "bundle.json").read_text())["format_version"] >= 2


def test_a_study_that_runs_is_refused_and_stopped_in_order(laptop: Laptop) -> None:
    assert laptop.submit("long", "--max-epochs", "3000", "--resubmit", "1").returncode == 0
    again = laptop.submit("long")
    assert again.returncode == 2
    assert "the study 'long' runs already" in again.stderr

    trained = laptop.studies / "long" / "trials"
    drivers: list[int] = []
    while not drivers:
        if any(trained.glob("*/metrics.csv")):
            drivers = driver_of("long")
    os.kill(drivers[0], signal.SIGKILL)
    while "start 1 of 1" not in laptop.tune("logs", "long").stdout:
        pass

    assert listed(laptop, "long")["state"] == "running"
    wait_for(lambda: listed(laptop, "long")["workers"] == 1, seconds=60)
    stopped = laptop.tune("stop", "long")
    assert stopped.returncode == 0, stopped.stderr
    assert "the study long has ended (STOPPED)" in stopped.stdout
    assert not driver_of("long")
    assert laptop.tune("stop", "long").returncode == 2


def listed(laptop: Laptop, name: str) -> dict[str, Any]:
    """A study as `tune list` has it."""
    found = json.loads(laptop.tune("list", "--json").stdout)["studies"]
    return next(study for study in found if study["name"] == name)


def driver_of(name: str) -> list[int]:
    """Processes that run a submitted study."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"tuner", b"run"] and name.encode() in words:
            found.append(int(folder.name))
    return found


def test_a_study_that_fails_fails_its_job(laptop: Laptop) -> None:
    missing = laptop.submit("none", "--data-dir", "/no/such/folder", "--follow", "--resubmit", "2")
    assert missing.returncode == 2
    assert "/no/such/folder" in missing.stdout
    none = listed(laptop, "none")
    assert (none["state"], none["workers"]) == ("failed", 0)


def test_mistakes_are_told_before_anything_is_sent(laptop: Laptop) -> None:
    before = laptop.tune("list", "--json").stdout
    wrong = laptop.submit("wrong", "--max-epochs", "0")
    assert (wrong.returncode, wrong.stderr.startswith("error: --max-epochs 0: ")) == (2, True)
    refused = laptop.tune("list", token=secrets.token_hex(32))
    assert refused.returncode == 2
    assert "refuses the token" in refused.stderr
    unknown = laptop.tune("logs", "lung")
    assert unknown.returncode == 2
    assert "no study 'lung' was submitted" in unknown.stderr
    assert laptop.tune("list", "--json").stdout == before
