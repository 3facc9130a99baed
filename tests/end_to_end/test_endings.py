"""How trials end that do not go well, and studies that are cut off."""

from __future__ import annotations

import csv
import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from ray.air.execution import PlacementGroupResourceManager, ResourceRequest
from ray.util.placement_group import placement_group_table
from waiting import wait_for

from training.data import DataSource, PreprocessedDataset, prepare_dataset
from training.lightning_module import SegmentationLightningModule
from tuner.cli.main import main
from tuner.driver.fair_share import PREFIX
from tuner.driver.ray_internals import cluster_notes, places_given_back
from tuner.spec.load import load_spec
from tuner.study.confirmation import is_finished
from tuner.study.nodes import NodeState, read_nodes
from tuner.study.open import open_study
from tuner.study.trial_entry import TrialState
from tuner.trial.context import StudyContext
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.run import TrialRun

ENDINGS = {
    "good": TrialState.COMPLETED,
    "raises": TrialState.FAILED,
    "diverges": TrialState.DIVERGED,
    "out of memory": TrialState.OUT_OF_MEMORY,
}


def bad_space(space_file: Path, folder: Path) -> Path:
    """A space whose points train, raise, diverge or ask for more memory than there is."""
    text = space_file.read_text()
    head, _, _ = text.partition("space:\n")
    head = head.replace("{embed_dim: 4, ", "{").replace("max_epochs: 4", "max_epochs: 2")
    head = head.replace("num_heads: [1, 2]", "num_heads: [2, 4]")  # a width of 5 has no 2 heads
    path = folder / "bad.yaml"
    path.write_text(
        head
        + "space:\n"
        + "  model_params.embed_dim: {choice: [4, 5, 1000000000000]}\n"
        + "  learning_rate: {choice: [1e-3, 1e+30], when: {model_params.embed_dim: 4}}\n"
        + "search: {num_trials: 5, searcher: random, seed: 2}\n"
        + "policy: none\n"
        + "resources: {logical_gpus: true}\n"
    )
    return path


def expected_ending(values: dict[str, object]) -> TrialState:
    if values["model_params.embed_dim"] == 5:
        return ENDINGS["raises"]
    if values["model_params.embed_dim"] == 1000000000000:
        return ENDINGS["out of memory"]
    return ENDINGS["good"] if values["learning_rate"] == 1e-3 else ENDINGS["diverges"]


def test_a_bad_trial_ends_as_what_it_is_and_the_study_goes_on(
    cluster: str, space_file: Path, tmp_path: Path
) -> None:
    path = bad_space(space_file, tmp_path)
    assert main(["run", str(path), "--name", "bad", "--studies-dir", str(tmp_path)]) == 0
    study = open_study(tmp_path, "bad")
    found = set()
    for number, entry in study.record.entries.items():
        assert entry.state is expected_ending(entry.values), entry
        found.add(entry.state)
        error_file = study.folder / "trials" / f"{number:04d}" / "error.txt"
        assert error_file.is_file() == (entry.state is not TrialState.COMPLETED)
    assert found == set(ENDINGS.values())
    reasons = {entry.state: entry.reason for entry in study.record.entries.values()}
    assert "embed_dim" in reasons[TrialState.FAILED]
    assert "allocate" in reasons[TrialState.OUT_OF_MEMORY]
    assert "is nan" in reasons[TrialState.DIVERGED] or "is inf" in reasons[TrialState.DIVERGED]
    best = study.record.best()
    assert best is not None
    assert best.state is TrialState.COMPLETED


def cut_short(trial: Path) -> None:
    """Truncate the last checkpoint of a trial, when nobody writes there any more."""
    with FileLock(trial / "trial.lock", timeout=60):
        path = trial / "last.ckpt"
        os.truncate(path, path.stat().st_size // 2)


def optuna_states(study: Path) -> list[str]:
    """How the trials stand in Optuna's tables."""
    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{study / 'optuna.db'}")
    return [trial.state.name for trial in loaded.trials]


@pytest.mark.parametrize("cut", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_cut_off_goes_on_where_it_was(
    cluster: str,
    space_file: Path,
    tmp_path: Path,
    cut: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--studies-dir", str(tmp_path)]
    options = ["--num-trials", "2", "--max-epochs", "6", "--set", "policy=none"]
    command = [sys.executable, "-m", "tuner"]
    run = [*command, "run", str(space_file), "--name", "cut", "--address", cluster]
    process = subprocess.Popen(
        [*run, *where, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    trials = tmp_path / "cut" / "trials"
    wait_for(lambda: (trials / "0000" / "last.ckpt").is_file(), seconds=120)
    process.send_signal(cut)
    output = process.communicate(timeout=60)[0]
    before = {
        number: dict(entry.scores)
        for number, entry in open_study(tmp_path, "cut").record.entries.items()
    }
    if cut is signal.SIGKILL:
        cut_short(trials / "0000")
    else:
        assert process.returncode == 130, output
        assert "tune resume cut" in output
        assert any(
            entry.state is TrialState.INTERRUPTED
            for entry in open_study(tmp_path, "cut").record.entries.values()
        )
        assert "RUNNING" not in optuna_states(tmp_path / "cut")
    capsys.readouterr()
    assert main(["resume", "cut", *where]) == 0
    # what a checkpoint brings along was told before
    told = re.findall(r"trial +(\d+)  epoch (\d+)/6", output + capsys.readouterr().out)
    assert len(told) == len(set(told))
    assert optuna_states(tmp_path / "cut") == ["COMPLETE", "COMPLETE"]
    study = open_study(tmp_path, "cut")
    assert is_finished(study)
    # a driver that is gone has no part of the cluster any more, however it went
    assert not any("makes room" in decision.reason for decision in study.record.decisions)
    assert cluster_notes(PREFIX) == []
    assert sorted(study.record.entries) == [0, 1]
    for number, entry in study.record.entries.items():
        assert entry.state is TrialState.COMPLETED
        assert list(entry.scores) == [1, 2, 3, 4, 5, 6]
        if cut is signal.SIGKILL and number == 0:
            fallen = [d.reason for d in study.record.decisions if d.action == "fell back"]
            assert len(fallen) == 1
            assert "last.ckpt cannot be used" in fallen[0]
        # what was scored before is kept, not trained again
        assert {epoch: entry.scores[epoch] for epoch in before.get(number, {})} == before.get(
            number, {}
        )
        with (trials / f"{number:04d}" / "metrics.csv").open() as file:
            assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_the_time_budget_ends_a_study(cluster: str, space_file: Path, tmp_path: Path) -> None:
    where = ["--studies-dir", str(tmp_path), "--name", "brief"]
    begun = time.monotonic()
    code = main(["run", str(space_file), *where, "--time-budget", "1s", "--max-epochs", "500"])
    assert time.monotonic() - begun < 120
    study = open_study(tmp_path, "brief")
    reasons = {entry.reason for entry in study.record.entries.values()}
    assert code in (0, 1)
    assert "the time budget ended" in reasons


def test_a_trial_leaves_nothing_behind_in_its_process(
    cluster: str, space_file: Path, data_dir: Path, tmp_path: Path
) -> None:
    spec = load_spec(space_file)
    data = prepare_dataset(data_dir, spec.base_config())
    source = DataSource(data, data_dir, PreprocessedDataset.load(data).fingerprint)
    context = StudyContext(tmp_path, spec, (source,), gpus=0)

    def modules() -> int:
        gc.collect()
        # not isinstance: Lightning keeps weak proxies, which pass for what they point to
        return sum(type(held) is SegmentationLightningModule for held in gc.get_objects())

    for number in range(3):
        values = {"learning_rate": 1e-3, "optimizer": "adamw"}
        run = TrialRun(context, spec, TrialRequest(number, values))
        report = run.next_report()
        assert isinstance(report, EpochReport)
        assert report.epoch == 1
        assert modules() == 1
        run.close()
        assert modules() == 0


def test_a_trial_whose_gpu_is_not_there_does_not_train_on_the_cpu(
    cluster: str, space_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPUs of the test cluster are counts without a device: no node can be used."""
    where = ["--name", "bare", "--studies-dir", str(tmp_path)]
    # it would wait for a node that has one
    options = ["--set", "resources.logical_gpus=false", "--time-budget", "25s"]
    assert main(["run", str(space_file), *where, *options]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "booked 1 GPU" in shown
    assert "--gpus-per-trial 0" in shown
    assert "no node can be used for a trial, which needs" in shown
    study = open_study(tmp_path, "bare")
    assert {node.state for node in read_nodes(study.folder)} == {NodeState.LEFT_OUT}
    entries = study.record.entries.values()
    assert {entry.state for entry in entries} == {TrialState.INTERRUPTED}
    assert not any(entry.scores or entry.failures for entry in entries)


def test_what_a_study_has_booked_is_free_when_it_ends(cluster: str) -> None:
    def booked() -> int:
        return sum(place["state"] == "CREATED" for place in placement_group_table().values())

    before = booked()
    with places_given_back(lambda: True):
        # as what keeps a traceback keeps it
        manager = PlacementGroupResourceManager()
        request = ResourceRequest([{"CPU": 1, "GPU": 1}])
        for _ in range(2):
            manager.request_resources(request)
        wait_for(lambda: booked() == before + 2, seconds=60)
        assert manager.has_resources_ready(request)
        assert manager.acquire_resources(request) is not None
    wait_for(lambda: booked() == before, seconds=60)
    assert not manager.has_resources_ready(request)
