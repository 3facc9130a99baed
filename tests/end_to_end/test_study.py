"""A study from its search space to a label map, on two nodes with four logical GPUs."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import optuna
import pytest
import ray
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.config import ModelTrainingConfig
from tuner.cli.main import main
from tuner.study.confirmation import is_finished
from tuner.study.open import open_study
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState


@pytest.fixture(scope="module")
def study(cluster: str, space_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    studies = tmp_path_factory.mktemp("studies")
    # a promoted trial may go on elsewhere than where it began
    options = ["--name", "tiny", "--studies-dir", str(studies), "--set", "policy.promotion=false"]
    assert main(["run", str(space_file), *options]) == 0
    return open_study(studies, "tiny")


def placements(study: Study) -> list[dict[str, object]]:
    return [
        yaml.safe_load(path.read_text())
        for path in sorted((study.folder / "trials").glob("*/placement.yaml"))
    ]


def test_every_trial_ends_with_a_reason(study: Study) -> None:
    entries = study.record.entries
    assert sorted(entries) == [0, 1, 2, 3, 4]
    assert is_finished(study)
    for entry in entries.values():
        assert entry.state in {TrialState.COMPLETED, TrialState.STOPPED}
        assert list(entry.scores) == list(range(1, entry.epochs + 1))
        if entry.state is TrialState.COMPLETED:
            assert (entry.epochs, entry.reason) == (4, "trained 4 epochs")
        else:
            assert entry.epochs in (1, 2)
            assert "by ASHA at rung" in entry.reason
    best = study.record.best()
    assert best is not None
    assert (
        max(score for e in entries.values() for score in e.scores.values()) == best.best("max")[1]
    )  # type: ignore[index]


def test_concurrent_trials_see_a_gpu_each(study: Study) -> None:
    found: list[dict[str, Any]] = placements(study)
    assert all(len(place["gpu_ids"]) == 1 for place in found)
    # the first two begin together; the other node is used when it has been looked at
    first, second = ((place["node_id"], place["gpu_ids"]) for place in found[:2])
    assert first != second


def test_a_study_without_an_address_runs_on_its_own_cluster(
    cluster: str, space_file: Path, tmp_path: Path
) -> None:
    """Ray joins whatever cluster it finds on the machine if it is not told to start one."""
    short = ["--num-trials", "1", "--max-epochs", "1", "--set", "policy=none"]
    where = ["--name", "own", "--studies-dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-m", "tuner", "run", str(space_file), *where, *short],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"Ray dashboard +http://127.0.0.1:\d+", result.stdout)
    (place,) = placements(open_study(tmp_path, "own"))
    assert place["node_id"] not in {node["NodeID"] for node in ray.nodes()}


def test_the_study_folder_is_complete(study: Study) -> None:
    names = {path.name for path in study.folder.iterdir()}
    assert names >= {
        "spec.yaml",
        "spec.resolved.yaml",
        "provenance.json",
        "optuna.db",
        "trials",
        "results.csv",
        "report.html",
    }
    provenance = study.provenance()
    assert provenance["data"]["fingerprint"]
    assert provenance["versions"]["ray"]
    with (study.folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        entry = study.record.entries[int(row["trial"])]
        assert row["state"] == entry.state.value
        assert float(row["params_learning_rate"]) == entry.values["learning_rate"]
        assert float(row["value"]) == entry.best("max")[1]  # type: ignore[index]
        assert row["metrics_val_dice"] == row["value"]
    report = (study.folder / "report.html").read_text()
    assert report.count("<polyline") == 5
    assert "http" not in report.replace("http://www.w3.org", "")


def test_each_trial_keeps_config_metrics_and_checkpoints(study: Study) -> None:
    for number, entry in study.record.entries.items():
        folder = study.folder / "trials" / f"{number:04d}"
        config = ModelTrainingConfig(**yaml.safe_load((folder / "config.yaml").read_text()))
        assert config.learning_rate == entry.values["learning_rate"]
        assert config.optimizer == entry.values["optimizer"]
        # `auto` is resolved by the labels of the data
        assert config.mirror_axes == ["depth", "height", "width"]
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(entry.scores)
        assert [float(row["val_dice"]) for row in rows] == list(entry.scores.values())
        assert {path.name for path in folder.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
        events = EventAccumulator(str(folder))
        events.Reload()
        scalars = events.Tags()["scalars"]
        assert {"val_dice", "train_loss", "val_boundary_f1"} <= set(scalars)
        assert [event.value for event in events.Scalars("val_dice")] == pytest.approx(
            list(entry.scores.values())
        )
        assert events.Scalars("best_val_dice")[-1].value == pytest.approx(
            entry.best("max")[1]  # type: ignore[index]
        )
        assert [event.step for event in events.Scalars("lr")] == list(entry.scores)
        assert (folder / "hparams.yaml").is_file()


def test_optuna_opens_the_record(study: Study) -> None:
    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{study.folder / 'optuna.db'}")
    best = study.record.best()
    assert best is not None
    assert loaded.best_trial.number == best.number
    assert loaded.best_value == best.best("max")[1]  # type: ignore[index]
    told = {
        entry.number: "COMPLETE"
        if entry is best or entry.state is TrialState.COMPLETED
        else "PRUNED"
        for entry in study.record.entries.values()
    }
    assert {trial.number: trial.state.name for trial in loaded.trials} == told
    assert loaded.metric_names == ["val_dice"]
    attributes = loaded.user_attrs
    assert attributes["study"] == study.name
    assert attributes["data_fingerprint"] == study.provenance()["data"]["fingerprint"]
    assert attributes["spec"] == (study.folder / "spec.resolved.yaml").read_text()


def test_status_list_and_running_again(
    study: Study, space_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies-dir", str(study.folder.parent)]
    assert main(["status", "tiny", *where]) == 0
    assert "trained 4 epochs" in capsys.readouterr().out
    assert main(["list", *where]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["resume", "tiny", *where]) == 0
    assert "has finished already" in capsys.readouterr().out
    same = [str(space_file), "--name", "tiny", "--set", "policy.promotion=false"]
    assert main(["run", *same, *where]) == 0
    assert "has finished already" in capsys.readouterr().out
    assert main(["run", str(space_file), "--name", "tiny", "--seed", "9", *where]) == 2
    assert "another search space" in capsys.readouterr().err


def test_the_winner_is_exported_and_predicts_nifti(
    study: Study, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies-dir", str(study.folder.parent)]
    alone = ["--ensemble", "1", "--no-mirroring", "--no-postprocessing"]
    assert main(["export", "tiny", "-o", str(tmp_path / "bundle"), *alone, *where]) == 0
    shown = capsys.readouterr().out
    assert "as the trial's model does" in shown
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    best = study.record.best()
    assert best is not None
    assert manifest["labels"] == ["background", "liver", "tumour"]
    assert manifest["metrics"]["val_dice"] == pytest.approx(best.best("max")[1])  # type: ignore[index]
    assert "test_dice" in manifest["metrics"]
    for label in (1, 2):
        for name in ("dice_{}", "nsd_{}", "hd95_{}", "assd_{}", "hd95_{}_missing"):
            assert f"test_{name.format(label)}" in manifest["metrics"]
    for heading in ("Dice", "NSD 1 mm", "HD95 mm", "ASSD mm", "missing", "liver", "tumour"):
        assert heading in shown
    assert manifest["provenance"]["trial"] == best.number
    image = data_dir / "imagesTr" / "liver_001.nii.gz"
    output = tmp_path / "out" / "liver_001.nii.gz"
    assert main(["predict", str(tmp_path / "bundle"), str(image), "-o", str(output.parent)]) == 0
    source, label = nib.load(image), nib.load(output)
    assert label.shape == source.shape
    np.testing.assert_allclose(label.affine, source.affine)
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2}
    capsys.readouterr()
    assert main(["export", "tiny", "--trial", "99", *where]) == 2
    assert "has no trial 99: they are 0 to 4" in capsys.readouterr().err


def test_a_moved_study_is_still_whole(study: Study, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    study.folder.rename(moved)
    try:
        where = ["--studies-dir", str(moved.parent)]
        assert main(["status", "renamed", *where]) == 0
        assert main(["export", "renamed", "-o", str(tmp_path / "bundle"), *where]) == 0
    finally:
        moved.rename(study.folder)


def test_two_trials_share_a_gpu_and_no_more(cluster: str, space_file: Path, tmp_path: Path) -> None:
    arguments = ["--gpus-per-trial", "0.5", "--cpus-per-trial", "0.5", "--max-concurrent", "4"]
    smaller = ["--num-trials", "4", "--max-epochs", "1", "--seed", "3"]
    code = main(
        [
            "run",
            str(space_file),
            "--name",
            "half",
            "--studies-dir",
            str(tmp_path),
            *arguments,
            *smaller,
        ]
    )
    assert code == 0
    found = placements(open_study(tmp_path, "half"))
    used = Counter((place["node_id"], *place["gpu_ids"]) for place in found)  # type: ignore[misc]
    assert len(found) == 4
    assert max(used.values()) <= 2


def test_what_no_node_has_is_told_and_waited_for(
    cluster: str, space_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a look at the other node comes first
    where = ["--studies-dir", str(tmp_path), "--time-budget", "12s"]
    assert main(["run", str(space_file), "--name", "no", "--cpus-per-trial", "3", *where]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "no node can be used for a trial, which needs" in told
    assert "the study waits for one" in told
