"""Two processes train and measure as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, generate_phantom, get_dataloaders, prepare_dataset
from training.models import build_model
from training.trainer import SegmentationTrainer

SCRIPT = Path(__file__).parents[1] / "helpers/training_process.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("distributed")
    raw = generate_phantom(base / "raw", num_cases=9, seed=0)
    config = ModelTrainingConfig(target_spacing=(12, 9, 9), val_fraction=1 / 3, test_fraction=1 / 3)
    return prepare_dataset(raw, config, cache_dir=base / "cache")


def fields(data_dir: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name": "unet3d",
        "model_params": {"channels": [4, 8], "num_res_units": 1},
        "data_dir": str(data_dir),
        "patch_size": [8, 16, 16],
        "steps_per_epoch": 4,
        "max_epochs": 2,
        "learning_rate": 0.01,
        # a mean over voxels, which is one over processes, too
        "loss": "cross_entropy",
        "scheduler": "one_cycle",
        "optimizer": "sgd",
        "ema_decay": 0.9,
        "log_dir": str(folder / "logs"),
        "checkpoint_dir": str(folder),
        **more,
    }


def train(listed: Path, *runs: dict[str, Any]) -> None:
    listed.write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, listed],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one(data_dir: Path, tmp_path: Path) -> None:
    # an uneven share: one rank has two of the three cases
    splits = PreprocessedDataset.load(data_dir).splits
    assert (len(splits["val"]), len(splits["test"])) == (3, 3)
    two, one = tmp_path / "two", tmp_path / "one"
    results = {name: str(tmp_path / f"{name}.json") for name in ("two", "one", "retested")}
    in_two = fields(data_dir, two, gpus=2, train_batch_size=2)
    train(tmp_path / "a.runs", {"config": in_two, "processes": True, "result": results["two"]})
    in_one = fields(data_dir, one, gpus=0, train_batch_size=4)
    train(
        tmp_path / "b.runs",
        {"config": in_one, "result": results["one"]},
        {"config": in_one, "result": results["retested"], "test": str(two / "best.ckpt")},
    )
    found = {name: json.loads(Path(path).read_text()) for name, path in results.items()}

    # the same weights, measured by two processes and by one
    tested = {name: value for name, value in found["two"]["metrics"].items() if "test_" in name}
    assert len(tested) >= 7
    assert found["retested"]["metrics"] == pytest.approx(tested, rel=1e-5, nan_ok=True)

    # the same patches, so the same gradients up to the order of sums
    assert len(found["two"]["steps"]) == 8
    for in_two_processes, in_one_process in zip(
        found["two"]["steps"], found["one"]["steps"], strict=True
    ):
        assert in_two_processes == pytest.approx(in_one_process, rel=1e-4)
    assert found["two"]["weights"] == pytest.approx(found["one"]["weights"], rel=1e-4)
    for name, value in found["one"]["metrics"].items():
        # metrics of hard labels move by a voxel or two
        assert found["two"]["metrics"][name] == pytest.approx(value, rel=1e-2, nan_ok=True), name


def test_an_epoch_has_as_many_patches_for_each_process(data_dir: Path, tmp_path: Path) -> None:
    for gpus, batches in ((1, 3), (2, 6)):
        config = ModelTrainingConfig(
            **fields(data_dir, tmp_path, gpus=gpus, train_batch_size=2, steps_per_epoch=3)
        )
        # the sampler divides by the number of ranks, which here is one
        assert len(get_dataloaders(config)[0]) == batches
    # by default an epoch is a patch a case, whatever the number of processes
    config = ModelTrainingConfig(
        **fields(data_dir, tmp_path, gpus=3, train_batch_size=1, steps_per_epoch=None)
    )
    assert len(get_dataloaders(config)[0].sampler) == 3  # type: ignore[arg-type]


def test_more_processes_than_cases_are_refused(data_dir: Path, tmp_path: Path) -> None:
    config = ModelTrainingConfig(**fields(data_dir, tmp_path, gpus=4))
    with pytest.raises(ValueError, match=r"gpus=4 but there are 3 validation cases.*at most 3"):
        SegmentationTrainer(config, build_model(config), *get_dataloaders(config))
