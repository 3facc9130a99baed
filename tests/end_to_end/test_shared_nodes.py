"""Trials that share the memory and the GPUs of nodes: two, with two logical GPUs each."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tuner.cli.main import main
from tuner.driver import spare_gpus
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import MEMORY, TrialState


def run(space: Path, studies: Path, name: str, *more: str) -> Study:
    where = ["--name", name, "--studies-dir", str(studies), "--set", "policy=none"]
    assert main(["run", str(space), *where, *more]) == 0
    return open_study(studies, name)


def places(study: Study) -> list[tuple[str, ...]]:
    """Node and GPUs of each trial."""
    found = []
    for number in study.record.entries:
        path = study.folder / "trials" / f"{number:04d}" / "placement.yaml"
        placement = yaml.safe_load(path.read_text())
        found.append((placement["node_id"], *placement["gpu_ids"]))
    return found


def most_at_once(study: Study) -> list[int]:
    """How many trials run, after each decision."""
    running: set[int] = set()
    counts = []
    for decision in study.record.decisions:
        if decision.action in {"proposed", "resumed"}:
            running.add(decision.trial)
        elif decision.action in {state.value for state in TrialState}:
            running.discard(decision.trial)
        counts.append(len(running))
    return counts


def test_trials_too_large_for_a_nodes_memory_run_one_after_the_other(
    cluster: str,
    space_file: Path,
    tmp_path: Path,
    toy: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claims = {"peak": 5e9, "mean": 5e9, "used": 0.0, "limit": 8e9}
    toy.beside(tmp_path / "large", toy.MEMORY).write_text(json.dumps(claims))
    toy.beside(tmp_path / "large", toy.PACE).write_text("0.3")
    study = run(space_file, tmp_path, "large", "--num-trials", "6")
    entries = study.record.entries.values()
    assert {(entry.state, entry.epochs) for entry in entries} == {(TrialState.COMPLETED, 4)}
    assert {entry.notes[MEMORY] for entry in entries} == {5e9}
    assert {entry.metrics["host_memory"] for entry in entries} == {5e9}
    decisions = study.record.decisions
    paused = [index for index, each in enumerate(decisions) if each.action == "interrupted"]
    assert "makes room: 2 trials of its node need 9.3 GiB" in decisions[paused[0]].reason
    # the first ones are let in unmeasured; then each node has one
    assert max(most_at_once(study)[paused[-1] :]) <= 2
    assert "1 at once instead of 2 on" in capsys.readouterr().out


def test_halves_of_gpus_are_spread_before_they_are_packed(
    cluster: str, space_file: Path, tmp_path: Path, toy: ModuleType
) -> None:
    toy.beside(tmp_path / "halves", toy.PACE).write_text("0.5")
    # a node has cores for two: Ray itself would put both on its first GPU
    more = ["--set", "resources.gpu=0.5", "--set", "resources.cpu=1"]
    study = run(space_file, tmp_path, "halves", "--num-trials", "4", *more)
    for node in {node for node, _ in places(study)}:
        gpus = [gpu for found, gpu in places(study) if found == node]
        assert len(set(gpus)) == min(2, len(gpus))
    assert max(most_at_once(study)) >= 2


def test_the_last_trial_goes_on_with_both_gpus_of_its_node(
    cluster: str, space_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_gpus, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(spare_gpus, "SETTLED_SECONDS", 0.0)
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
    assert len(places(grown)[0]) == 3
    assert len(places(alone)[0]) == 2
    config = yaml.safe_load((grown.folder / "trials" / "0000" / "config.yaml").read_text())
    assert (config["gpus"], config["train_batch_size"]) == (2, 1)
    # it saw the same patches, and was judged on the same cases
    assert list(entry.scores.values()) == pytest.approx(list(other.scores.values()), abs=0.02)
