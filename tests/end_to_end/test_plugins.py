"""A foreign package in a study on two nodes: searched, exported, predicting, converted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from foreign_package import forget_package, write_package
from nibabel import load
from ray.cluster_utils import Cluster

from tuner.cli.main import main
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

VOLUME_ERROR = "liver_lab.metrics:volume_error"

SPACE = """\
metric: [liver_lab.metrics:volume_error, val_dice]
mode: [min, max]
config:
  data_dir: DATA
  num_classes: 3
  lightning_module: liver_lab.module:LabModule
  loss: liver_lab.training:SmoothCrossEntropy
  scheduler: liver_lab.training:halved
  patch_size: [8, 32, 32]
  steps_per_epoch: 2
  window_overlap: 0
  val_batch_size: 8
  max_epochs: 2
space:
  model_name: {choice: [liver_lab.nets:build_tiny, liver_lab.nets:TinyNet]}
  learning_rate: {loguniform: [1e-3, 1e-1]}
  optimizer: {choice: [sgd, liver_lab.training:rmsprop]}
search: {num_trials: 4, searcher: liver_lab.search:first_draw}
policy: {name: liver_lab.search:stop_odd}
resources: {logical_gpus: true}
"""


@pytest.fixture(scope="module")
def study(
    nodes: Cluster, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Study]:
    """A study whose code lay beside its search space, and is gone when it goes on."""
    before = list(sys.path)
    folder = tmp_path_factory.mktemp("plugins")
    beside = write_package(folder / "beside")
    space = beside / "lab.yaml"
    space.write_text(SPACE.replace("DATA", str(data_dir)))
    where = ["--name", "lab", "--studies-dir", str(folder)]
    assert main(["run", str(space), *where, "--epoch-budget", "3"]) == 0
    forget_package()
    # from here on the study has the only copy
    shutil.rmtree(beside)
    sys.path[:] = before
    where = ["lab", "--studies-dir", str(folder)]
    assert main(["resume", *where, "--epoch-budget", "100"]) == 0
    yield open_study(folder, "lab")
    sys.path[:] = before
    forget_package()


def test_trials_use_what_is_named(study: Study) -> None:
    entries = study.record.entries
    assert sorted(entries) == [0, 1, 2, 3]
    for number, entry in entries.items():
        expected = TrialState.STOPPED if number % 2 else TrialState.COMPLETED
        assert entry.state is expected, entry.reason
        assert entry.values["model_name"].startswith("liver_lab.nets:")
        assert {VOLUME_ERROR, "val_dice", "val_epochs_seen"} <= set(entry.metrics)
        assert entry.scores[1] >= 0
        trial = study.folder / "trials" / f"{number:04d}"
        config = yaml.safe_load((trial / "config.yaml").read_text())
        assert config["monitor"] == VOLUME_ERROR
        assert config["lightning_module"] == "liver_lab.module:LabModule"
    assert entries[1].reason.startswith("stopped by StopOdd")
    best = study.record.best()
    assert best is not None
    scores = [min(entry.scores.values()) for entry in entries.values()]
    assert min(best.scores.values()) == min(scores)


def test_the_study_keeps_the_code_that_it_names(study: Study) -> None:
    kept = json.loads((study.folder / "code.json").read_text())
    assert set(kept) == {
        "lab_blocks.py",
        *(f"liver_lab/{name}.py" for name in ("__init__", "broken", "metrics", "module", "nets")),
        *(f"liver_lab/{name}.py" for name in ("raises", "search", "training")),
    }
    for name in kept:
        assert (study.folder / "code" / name).is_file()


def tune(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a folder on its Python path or none."""
    root = Path(__file__).parents[2]
    python_path = os.pathsep.join(str(part) for part in (root, path) if part is not None)
    return subprocess.run(
        [sys.executable, "-m", "tuner", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": python_path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_exported_model_needs_the_network_alone(
    study: Study, data_dir: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    exported = tune("export", "lab", "--studies-dir", study.folder.parent, "-o", bundle)
    assert exported.returncode == 0, exported.stderr
    image = sorted((data_dir / "imagesTr").glob("*.nii.gz"))[0]
    refused = tune("predict", bundle, image, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert "its network is liver_lab.nets:" in refused.stderr
    assert "--trust-code" in refused.stderr
    missing = tune("predict", bundle, image, "-o", tmp_path / "out", "--trust-code")
    assert missing.returncode == 2
    assert "there is no module liver_lab" in missing.stderr
    # the network's module and what it imports, nothing that was only trained with
    own = write_package(tmp_path / "own")
    for name in ("training", "metrics", "module", "search"):
        (own / "liver_lab" / f"{name}.py").unlink()
    done = tune("predict", bundle, image, "-o", tmp_path / "out", "--trust-code", path=own)
    assert done.returncode == 0, done.stderr
    (label,) = (tmp_path / "out").iterdir()
    predicted = np.asarray(load(label).dataobj)
    assert predicted.shape == load(image).shape
    network = tmp_path / "network.pt2"
    assert tune("convert", bundle, "-o", network).returncode == 2
    converted = tune("convert", bundle, "-o", network, "--trust-code", path=own)
    assert converted.returncode == 0, converted.stderr
    logits = torch.export.load(network).module()(torch.zeros(1, 1, 8, 32, 32))
    assert logits.shape == (1, 3, 8, 32, 32)


def test_nodes_without_the_code_are_left_out(
    nodes: Cluster,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    space = write_package(tmp_path / "beside") / "lab.yaml"
    space.write_text(SPACE.replace("DATA", str(data_dir)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    # as if it was installed, on the driver's node alone: such code is not copied
    monkeypatch.setattr("tuner.study.code._is_installed", lambda file: True)
    try:
        where = ["--name", "lost", "--studies-dir", str(tmp_path)]
        # it would wait for a node that has it
        assert main(["run", str(space), *where, "--time-budget", "25s"]) == 1
    finally:
        forget_package()
    told = " ".join(capsys.readouterr().out.split())
    assert "no node can be used for a trial" in told
    assert f"node {socket.gethostname()} cannot import what the study names as" in told
    assert "there is no module liver_lab" in told
    entries = open_study(tmp_path, "lost").record.entries
    assert entries
    assert {entry.state for entry in entries.values()} == {TrialState.INTERRUPTED}
