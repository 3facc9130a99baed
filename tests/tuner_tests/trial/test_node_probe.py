"""What a probe finds on a node; each fault is a real one, made on this machine."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from training.data import DataSource
from tuner.spec.load import parse_spec
from tuner.study.nodes import NodeEntry, NodeState, left_out_lines, read_nodes, write_nodes
from tuner.trial import node_probe
from tuner.trial.node_probe import (
    NodeNeeds,
    clock_problem,
    gpu_problems,
    probe_node,
    versions_here,
)


@pytest.fixture
def needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeNeeds:
    """What a node needs, and this one has."""
    monkeypatch.setattr(node_probe, "TOKEN_SECONDS", 0.0)
    study, raw = tmp_path / "study", tmp_path / "raw"
    study.mkdir()
    raw.mkdir()
    write_nodes(study, "token", [])
    spec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="s.yaml")
    source = DataSource(tmp_path / "cache", raw, "")
    return NodeNeeds(study, "token", (source,), spec, None, versions_here())


def found(needs: NodeNeeds) -> str:
    return "; ".join(probe_node(needs, 0).problems)


def test_a_node_that_has_all_is_fit(needs: NodeNeeds) -> None:
    before = sorted(needs.folder.iterdir())
    assert found(needs) == ""
    assert sorted(needs.folder.iterdir()) == before


def test_a_folder_that_is_not_seen_is_told(needs: NodeNeeds, tmp_path: Path) -> None:
    unseen = replace(needs, folder=tmp_path / "nowhere")
    assert f"does not see the study folder {unseen.folder}: put --studies-dir on" in found(unseen)


@pytest.mark.parametrize("content", [None, "{}", '{"token": "another"}', "{"])
def test_another_folder_of_the_same_name_is_told(needs: NodeNeeds, content: str | None) -> None:
    file = needs.folder / "nodes.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert f"its {needs.folder} is another folder than the driver's" in found(needs)


def test_a_folder_that_cannot_be_written_is_told(
    needs: NodeNeeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(folder: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(node_probe, "check_writable", read_only)
    words = f"it cannot write to the study folder {needs.folder} (Read-only file system)"
    assert words in found(needs)


def test_a_disk_that_is_nearly_full_is_told(
    needs: NodeNeeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_probe, "LEAST_ROOM", 2**62)
    assert f"the disk of its study folder {needs.folder} has " in found(needs)


def test_data_that_are_not_seen_are_told_once(needs: NodeNeeds, tmp_path: Path) -> None:
    source = DataSource(tmp_path / "cache", tmp_path / "elsewhere", "")
    words = found(replace(needs, data=(source, source)))
    assert words.count("it sees neither the preprocessed data") == 1


def test_other_versions_are_told(needs: NodeNeeds) -> None:
    assert set(needs.versions) == {"Python", "segtune", "ray", "torch"}
    words = found(replace(needs, versions={**needs.versions, "torch": "1.0", "Python": "3.99"}))
    assert f"it has torch {needs.versions['torch']}, and the driver 1.0: install the same" in words
    assert "and the driver 3.99" in words


def test_code_that_cannot_be_imported_is_told(needs: NodeNeeds) -> None:
    text = "config: {loss: nowhere_to_be_found:loss}\nspace: {learning_rate: {uniform: [0.1, 1]}}"
    words = found(replace(needs, spec=parse_spec(text, source="s.yaml")))
    assert "cannot import what the study names as loss" in words


@pytest.mark.parametrize(
    ("program", "gpus", "words"),
    [
        ("print(2)", 2, ""),
        ("print(8)", 2, ""),
        ("print(0)", 2, "Ray counts 2 GPUs there, and torch can use 0"),
        ("raise RuntimeError('CUDA error: ECC')", 1, "cannot be used (RuntimeError: CUDA error: E"),
        ("import os; os.kill(os.getpid(), 9)", 1, "its GPUs cannot be used (exit code -9)"),
        ("raise SystemExit('never asked')", 0, ""),
    ],
)
def test_gpus_that_torch_cannot_use_are_told(program: str, gpus: int, words: str) -> None:
    told = "; ".join(gpu_problems(gpus, program))
    assert words in told
    assert bool(words) == bool(told)


def test_gpus_that_do_not_answer_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_probe, "GPU_SECONDS", 0.2)
    (told,) = gpu_problems(1, "import time; time.sleep(600)")
    assert "do not answer within 0.2 s" in told


@pytest.mark.parametrize(
    ("clock", "words"),
    [
        (1000.0, None),
        (1005.0, None),
        (1069.0, None),
        (941.0, None),
        (1080.0, "its clock is 70 s ahead of the driver's"),
        (900.0, "its clock is 100 s behind the driver's"),
    ],
)
def test_a_clock_that_is_wrong_is_told(clock: float, words: str | None) -> None:
    told = clock_problem(clock, sent=1000.0, received=1010.0)
    assert (told is None) == (words is None)
    assert words is None or (told is not None and words in told)


def test_the_nodes_of_a_study_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_nodes(tmp_path) == []
    nodes = [
        NodeEntry("w1 (10.0.0.2)", "a", NodeState.USED, "", 1.0, 2.0, 0.0),
        NodeEntry("w2 (10.0.0.3)", "b", NodeState.LEFT_OUT, "no share", 2.0, 2.0, 1.0),
    ]
    write_nodes(tmp_path, "token", nodes)
    assert read_nodes(tmp_path) == nodes
    assert left_out_lines(nodes) == ["w2 (10.0.0.3) is left out: no share"]
