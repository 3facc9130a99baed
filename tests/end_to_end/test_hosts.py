"""Hosts of their own: what happens when the network between them or the power of one is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import waiting
from hosts import Host, RayOnHosts, missing, ray_on_hosts

from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState

TOY = Path(__file__).with_name("toy.py")
EPOCHS = 6
SPACE = """\
metric: val_dice
config: {num_classes: 3, max_epochs: 6, data_dir: DATA, patch_size: [8, 32, 32]}
space: {learning_rate: {loguniform: [1e-4, 1e-1]}}
search: {num_trials: 2, searcher: random, seed: 2}
policy: none
resources: {cpu: 1, gpu: 0}
failures: {max_failures: 0}
"""
CUT_SECONDS = 4.0
"""How long a network is cut; Ray lets one be silent for much longer."""


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory, private_cache: Path) -> Iterator[RayOnHosts]:
    """A cluster of a head, a worker, and a host for a driver."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with ray_on_hosts(tmp_path_factory.mktemp("hosts"), ["worker"]) as cluster:
        cluster.join("driver", cpus=0)
        cluster.wait_for_nodes(3)
        yield cluster


@pytest.fixture
def space(data_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("DATA", str(data_dir)))
    return path


def start(cluster: RayOnHosts, host: Host, *words: str | Path) -> subprocess.Popen[str]:
    return host.start(
        *(sys.executable, TOY, *words, "--address", cluster.address),
        environment=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def logged(study: Path) -> list[tuple[str, int, str]]:
    """What a trial did (began or saved), its epoch and process, of all trials by number."""
    lines = [
        line.split()
        for log in sorted(study.glob("trials/*/trained.log"))
        for line in log.read_text().splitlines()
    ]
    return [(what, int(epoch), process) for what, epoch, process in lines]


wait_for = partial(waiting.wait_for, seconds=180)


def assert_as_undisturbed(studies: Path, toy: ModuleType) -> None:
    """All epochs have their score, none was trained again once saved, and no failure was spent."""
    entries = open_study(studies, "study").record.entries.values()
    assert len(entries) == 2
    for entry in entries:
        config = SimpleNamespace(learning_rate=entry.values["learning_rate"])
        expected = {epoch: toy.score(config, epoch, 0) for epoch in range(1, EPOCHS + 1)}
        assert entry.scores == expected
        assert (entry.state, entry.failures) == (TrialState.COMPLETED, 0)
        log = studies / "study" / "trials" / f"{entry.number:04d}" / toy.TRAINED
        assert toy.repeated(log) == []


def test_a_network_that_is_cut_for_seconds_costs_nothing(
    joined: RayOnHosts, space: Path, tmp_path: Path, toy: ModuleType
) -> None:
    study = tmp_path / "study"
    toy.beside(study, toy.PACE).write_text("0.3")
    words = ("run", space, "--name", "study", "--studies-dir", tmp_path)
    driver = start(joined, joined.head, *words)
    try:
        wait_for(lambda: len(logged(study)) >= 4, driver)
        worker = joined.hosts["worker"]
        raylet = worker.processes("raylet/raylet")
        worker.cut()
        assert driver.poll() is None
        # what takes time is that nobody hears of it
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(timeout=CUT_SECONDS)
        during = len(logged(study))
        worker.mend()
        output = driver.communicate(timeout=180)[0]
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    # the trial waited for the driver's word between two epochs
    assert during < 4 * EPOCHS
    assert worker.processes("raylet/raylet") == raylet
    assert len({process for _, _, process in logged(study)}) == 1
    actions = {decision.action for decision in open_study(tmp_path, "study").record.decisions}
    assert not actions & {"interrupted", "retried"}
    assert_as_undisturbed(tmp_path, toy)


def test_a_driver_whose_host_loses_its_power_is_resumed_elsewhere_at_once(
    joined: RayOnHosts, space: Path, tmp_path: Path, toy: ModuleType
) -> None:
    study = tmp_path / "study"
    pace = toy.beside(study, toy.PACE)
    pace.write_text("0")
    # in the middle of the first trial, an epoch that would take an hour
    faults = '{"0": {"epoch": 3, "what": "hang", "times": 1}}'
    toy.beside(study, toy.FAULTS).write_text(faults)
    host = joined.hosts["driver"]
    where = ("--studies-dir", tmp_path)
    lost = start(joined, host, "run", space, "--name", "study", *where)
    wait_for(lambda: ("began", 3) in [line[:2] for line in logged(study)], lost)
    host.power_off()
    lost.communicate(timeout=60)
    resumed = start(joined, joined.head, "resume", "study", *where)
    try:
        wait_for(lambda: len({process for _, _, process in logged(study)}) > 1, resumed)
        # Ray does not know yet that the driver is gone, and would keep the worker's core for it
        joined.wait_for_nodes(3)
        output = resumed.communicate(timeout=180)[0]
    finally:
        resumed.kill()
    assert resumed.returncode == 0, output
    assert_as_undisturbed(tmp_path, toy)
