"""Runs that are killed, changed or prolonged go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.config import ModelTrainingConfig
from training.data import generate_phantom, prepare_dataset

SCRIPT = Path(__file__).parents[1] / "helpers/training_process.py"
STEPS, EPOCHS = 3, 4


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("resume")
    raw = generate_phantom(base / "raw", num_cases=5, seed=0)
    config = ModelTrainingConfig(target_spacing=(12, 9, 9))
    return prepare_dataset(raw, config, cache_dir=base / "cache")


class Runs:
    """Collects runs over the same data, makes them all at once, and reads their results."""

    def __init__(self, data_dir: Path, folder: Path) -> None:
        self.data_dir = data_dir
        self.folder = folder
        self.runs: list[dict[str, Any]] = []

    def add(self, name: str, *, of: str | None = None, **run: Any) -> None:
        """A run with its result under `name`; with `of`, in the folder of another run."""
        fields = run.pop("config", {})
        config = {
            "model_name": "unet3d",
            # what dropout draws must be the same after a resume
            "model_params": {"channels": [4, 8], "num_res_units": 1, "dropout": 0.2},
            "data_dir": str(self.data_dir),
            "patch_size": [8, 16, 16],
            "steps_per_epoch": STEPS,
            "max_epochs": EPOCHS,
            "learning_rate": 0.01,
            "deterministic": True,
            "gpus": 0,
            "log_dir": str(self.folder / (of or name) / "logs"),
            "checkpoint_dir": str(self.folder / (of or name)),
            **fields,
        }
        result = str(self.folder / f"{name}.json")
        self.runs.append({"config": config, "result": result, **run})

    def make(self) -> dict[str, Any]:
        listed = self.folder / "runs.json"
        listed.write_text(json.dumps(self.runs))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", SCRIPT, listed],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {
            file.stem: json.loads(file.read_text())
            for file in self.folder.glob("*.json")
            if file != listed
        }


KILLED: dict[str, dict[str, Any]] = {
    "cosine": {"scheduler": "cosine", "warmup_epochs": 1, "loss": "dice_ce"},
    "plateau": {
        "scheduler": "plateau",
        "plateau_patience": 0,
        "warmup_epochs": 1,
        "optimizer": "sgd",
        "nesterov": True,
        "monitor": "val_loss",
    },
    "one_cycle": {"scheduler": "one_cycle", "loss": "tversky", "early_stopping_patience": 3},
    "ema": {"scheduler": "poly", "ema_decay": 0.9, "loss": "focal", "augmentation": "none"},
    "dformer": {
        "model_name": "dformer3d",
        "model_params": {
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "drop_path_rate": 0.3,
            "deep_supervision": True,
        },
        "scheduler": "exponential",
        "class_weights": "median_frequency",
        "optimizer": "adam",
        "ema_decay": 0.8,
    },
}


def test_a_killed_run_resumes_to_the_same_metrics(data_dir: Path, tmp_path: Path) -> None:
    runs = Runs(data_dir, tmp_path)
    steps = random.Random(0)
    for name, config in KILLED.items():
        runs.add(name, config=config)
        # once in the first epoch, before any checkpoint, or at any later step, then once more
        first = steps.randint(1, STEPS * EPOCHS - 1)
        second = steps.randint(first, STEPS * EPOCHS)
        for kill_at_step in (first, second):
            runs.add(
                "lost", of=f"{name}-cut", config=config, resume=True, kill_at_step=kill_at_step
            )
        runs.add(f"{name}-resumed", of=f"{name}-cut", config=config, resume=True)
    results = runs.make()
    assert len(results) == 2 * len(KILLED)
    for name in KILLED:
        whole, resumed = results[name], results[f"{name}-resumed"]
        assert resumed["metrics"] == pytest.approx(whole["metrics"], abs=0, rel=0, nan_ok=True)
        assert resumed["weights"] == whole["weights"]
        assert len(whole["steps"]) == STEPS * EPOCHS
        # loss and learning rate of every step since the checkpoint
        assert resumed["steps"] == whole["steps"][-len(resumed["steps"]) :]


def test_a_finished_run_can_be_prolonged_and_changed(data_dir: Path, tmp_path: Path) -> None:
    runs = Runs(data_dir, tmp_path)
    longer = {"scheduler": "poly", "max_epochs": 6}
    runs.add("short", config={"scheduler": "poly", "ema_decay": 0.9})
    runs.add("longer", of="short", config={**longer, "ema_decay": 0.9}, resume=True)
    runs.add("again", of="short", config={**longer, "ema_decay": 0.9}, resume=True)
    averaged = {"optimizer": "sgd", "ema_decay": 0.9}
    runs.add("whole", config={**averaged, "max_epochs": 3})
    runs.add("part", config={**averaged, "max_epochs": 1})
    runs.add("rest", of="part", config={**averaged, "max_epochs": 3}, resume=True)
    runs.add("constant", config={"max_epochs": 2, "optimizer": "sgd", "loss": "cross_entropy"})
    changed = {
        "max_epochs": 4,
        "scheduler": "cosine",
        "learning_rate": 0.004,
        "loss": "dice_ce",
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "ema_decay": 0.5,
    }
    runs.add("changed", of="constant", config=changed, resume=True)
    runs.add("stopped", config={"learning_rate": 1e-12, "early_stopping_patience": 1})
    patient = {"learning_rate": 1e-12, "early_stopping_patience": 9}
    runs.add("patient", of="stopped", config=patient, resume=True)
    results = runs.make()

    rates = [rate for _, rate, _ in results["longer"]["steps"]]
    assert [epoch for _, _, epoch in results["longer"]["steps"]] == [4] * STEPS + [5] * STEPS
    # the learning rate of a run that was to have six epochs from the start
    poly = [0.01 * (1 - epoch / 6) ** 0.9 for epoch in (4, 5)]
    assert rates[::STEPS] == pytest.approx(poly)
    # nothing is left to train, and the averaged weights are what they were
    assert results["again"]["steps"] == []
    assert results["again"]["weights"] == results["longer"]["weights"]

    # and it goes on from its weights, not from their average
    assert results["rest"]["steps"] == results["whole"]["steps"][STEPS:]
    assert results["rest"]["metrics"] == pytest.approx(results["whole"]["metrics"], abs=0, rel=0)

    rates = [rate for _, rate, _ in results["changed"]["steps"]]
    assert rates == pytest.approx([0.002] * STEPS + [0.004 * (1 - 0.5**0.5) / 2] * STEPS)
    before, after = (results[name]["steps"] for name in ("constant", "changed"))
    assert after[0][0] > before[-1][0] + 0.2  # Dice is added to the cross-entropy

    epochs = {epoch for _, _, epoch in results["stopped"]["steps"]}
    assert max(epochs) < EPOCHS - 1
    assert results["patient"]["steps"][-1][2] == EPOCHS - 1


def test_a_run_that_is_ended_early_is_a_shorter_run(data_dir: Path, tmp_path: Path) -> None:
    """wsd is cut off in its constant part, and ends its schedule in the epochs that are left."""
    config = {"scheduler": "wsd", "decay_share": 0.5, "warmup_epochs": 1, "ema_decay": 0.9}
    long, short = {**config, "max_epochs": 20}, {**config, "max_epochs": 4}
    assert ModelTrainingConfig(**long).shortest_ending(2) == 4
    runs = Runs(data_dir, tmp_path)
    runs.add("short", config=short)
    runs.add("lost", of="cut", config=long, resume=True, kill_at_step=2 * STEPS + 1)
    runs.add("ended", of="cut", config=short, resume=True)
    results = runs.make()
    assert results["ended"]["steps"] == results["short"]["steps"][2 * STEPS :]
    assert results["ended"]["metrics"] == pytest.approx(
        results["short"]["metrics"], abs=0, rel=0, nan_ok=True
    )
    assert results["ended"]["weights"] == results["short"]["weights"]
