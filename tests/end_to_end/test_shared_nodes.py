"""Trials that share the memory and the GPUs of nodes: two, with two logical GPUs each."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import yaml
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuner.cli.main import main
from tuner.driver import gpu_shares
from tuner.driver.placement import FitNodes
from tuner.study.budget import gpu_hours_spent
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import MEMORY, TrialState


def run(space: Path, studies: Path, name: str, *more: str) -> Study:
    where = ["--name", name, "--studies-dir", str(studies), "--set", "policy=none"]
    assert main(["run", str(space), *where, *more]) == 0
    return open_study(studies, name)


def gpus(study: Study) -> list[str]:
    """GPUs that the first trial had last, as Ray counts them."""
    path = study.folder / "trials" / "0000" / "placement.yaml"
    found: list[str] = yaml.safe_load(path.read_text())["gpu_ids"]
    return found


def test_trials_too_large_for_a_nodes_memory_run_one_after_the_other(
    cluster: str,
    space_file: Path,
    tmp_path: Path,
    toy: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims = {"peak": 5e9, "mean": 5e9, "used": 0.0, "limit": 8e9}
    toy.beside(tmp_path / "large", toy.MEMORY).write_text(json.dumps(claims))
    toy.beside(tmp_path / "large", toy.PACE).write_text("2")
    study = run(space_file, tmp_path, "large", "--num-trials", "4", "--max-epochs", "3")
    entries = study.record.entries.values()
    assert {(entry.state, entry.epochs) for entry in entries} == {(TrialState.COMPLETED, 3)}
    assert {entry.notes[MEMORY] for entry in entries} == {5e9}
    assert {entry.metrics["host_memory"] for entry in entries} == {5e9}
    # the first two of the driver's node are let in unmeasured
    paused = [each.reason for each in study.record.decisions if each.action == "interrupted"]
    assert any("makes room: 2 trials of its node need 9.3 GiB" in reason for reason in paused)
    assert "1 at once instead of 2 on" in capsys.readouterr().out


def gpus_of(places: list[PlacementGroup], share: float) -> list[int]:
    """The GPU that Ray gives a worker in each place."""

    class Worker:
        def gpus(self) -> list[int]:
            return [int(gpu) for gpu in ray.get_gpu_ids()]

    workers: list[Any] = [
        ray.remote(Worker)
        .options(
            num_cpus=0.25,
            num_gpus=share,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place),
        )
        .remote()
        for place in places
    ]
    found = ray.get([worker.gpus.remote() for worker in workers])
    for worker in workers:
        ray.kill(worker)
    for place in places:
        remove_placement_group(place)
    return [gpu for (gpu,) in found]


@pytest.mark.parametrize("share", [0.5, 0.25, 1 / 3])
def test_parts_of_gpus_are_spread_before_they_are_packed(cluster: str, share: float) -> None:
    here = ray.get_runtime_context().get_node_id()
    fit = FitNodes(0.25, share, frozenset, lambda: {here: 2})
    spread = gpus_of([fit.to_placement_group() for _ in range(3)], share)
    assert sorted(spread[:2]) == [0, 1]
    assert spread[2] in {0, 1}


def test_ray_itself_packs_parts_of_gpus(cluster: str) -> None:
    """If not, nothing need be booked beside them any more."""
    label = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    bundle = {"CPU": 0.25, "GPU": 0.5}
    places = [placement_group([bundle], bundle_label_selector=[label]) for _ in range(2)]
    one, other = gpus_of(places, 0.5)
    assert one == other


def test_the_last_trial_goes_on_with_both_gpus_of_its_node(
    cluster: str, space_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_shares, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(gpu_shares, "SETTLED_SECONDS", 0.0)
    path = tmp_path / "auto.yaml"
    values = yaml.safe_load(space_file.read_text())
    # a patch and a validation case for each process
    values["config"] |= {"val_fraction": 0.5, "train_batch_size": 2}
    path.write_text(yaml.safe_dump(values))
    more = ["--num-trials", "1", "--max-epochs", "6"]
    grown = run(path, tmp_path, "grown", *more)
    alone = run(path, tmp_path, "alone", *more, "--set", "resources.gpu=1")
    entry, other = grown.record.entries[0], alone.record.entries[0]
    assert (entry.state, entry.epochs, entry.failures) == (TrialState.COMPLETED, 6, 0)
    assert [d.action for d in grown.record.decisions if "it goes on with 2 GPUs" in d.reason] == [
        "interrupted",
        "resumed",
    ]
    assert (len(gpus(grown)), len(gpus(alone))) == (2, 1)
    config = yaml.safe_load((grown.folder / "trials" / "0000" / "config.yaml").read_text())
    assert (config["gpus"], config["train_batch_size"]) == (2, 1)
    # it saw the same patches, and was judged on the same cases
    assert list(entry.scores.values()) == pytest.approx(list(other.scores.values()), abs=0.02)


def test_small_trials_share_a_gpu_where_others_wait(
    cluster: str,
    space_file: Path,
    tmp_path: Path,
    toy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_shares, "RESTART_SECONDS", 0.0)
    gpu = {"peak": 10 * 2**30, "total": 80 * 2**30, "busy": 0.3}
    claims = {"peak": 1e9, "mean": 1e9, "used": 0.0, "limit": 1e11, "gpu": gpu}
    toy.beside(tmp_path / "small", toy.MEMORY).write_text(json.dumps(claims))
    toy.beside(tmp_path / "small", toy.PACE).write_text("0.5")
    more = ["--num-trials", "7", "--max-epochs", "6", "--set", "resources.max_concurrent=6"]
    study = run(space_file, tmp_path, "small", *more)
    entries = study.record.entries.values()
    ends = {(entry.state, entry.epochs, entry.failures) for entry in entries}
    assert ends == {(TrialState.COMPLETED, 6, 0)}
    reasons = [each.reason for each in study.record.decisions if each.action == "interrupted"]
    assert any("it goes on with a part, beside others (3 at once)" in why for why in reasons)
    # GPU-hours count what each had: some of the epochs, of half a second, a third of a GPU
    assert 3600 * gpu_hours_spent(entries) < 7 * 6 * 0.5 - 0.3
    for entry in entries:
        log = study.folder / "trials" / f"{entry.number:04d}" / toy.TRAINED
        assert toy.repeated(log) == []
