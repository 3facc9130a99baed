"""Trains configurations of learning_curves.yaml and adds their curves to learning_curves.csv.

    python tests/benchmarks/search/make_curves.py [--number 160] [--output FILE]

Configurations are those of a scrambled Sobol sequence, after the default. What the file has
already is not trained again, so the run may be cut off and gone on with.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy.stats import qmc

from training.data import get_dataloaders, prepare_dataset, resolve_data_dir
from training.errors import TrainingDivergedError
from training.models import build_model
from training.trainer import SegmentationTrainer
from tuner.search.encoding import SpaceEncoding
from tuner.spec.load import load_spec
from tuner.spec.study_spec import StudySpec

HERE = Path(__file__).parent
SPACE = HERE / "learning_curves.yaml"
TABLE = HERE / "learning_curves.csv"
SEED = 0


def main() -> None:
    """Train what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=160, help="configurations in all")
    parser.add_argument("--output", type=Path, default=TABLE, help="the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    spec = load_spec(SPACE)
    done = 0
    if options.output.is_file():
        with options.output.open(newline="") as file:
            done = sum(1 for _ in csv.reader(file)) - 1
    configurations = _configurations(spec, options.number)
    with options.output.open("a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            epochs = [f"epoch_{epoch}" for epoch in range(1, spec.max_epochs + 1)]
            writer.writerow(["values", "seconds_per_epoch", *epochs])
        for index in range(done, options.number):
            curve, seconds = _train(spec, configurations[index], index)
            cells = [f"{score:.5f}" for score in curve] + [""] * (spec.max_epochs - len(curve))
            writer.writerow([json.dumps(configurations[index]), f"{seconds:.3f}", *cells])
            file.flush()
            print(index, f"{seconds:.2f} s", f"{max(curve, default=0):.4f}", flush=True)


def _configurations(spec: StudySpec, number: int) -> list[dict[str, Any]]:
    encoding = SpaceEncoding(spec.space)
    sobol = qmc.Sobol(encoding.size, scramble=True, rng=SEED)
    drawn = [encoding.decode(vector) for vector in sobol.random_base2(number.bit_length())]
    return [spec.default_point(), *drawn][:number]


class Scores(Callback):
    """Keeps the metric of every epoch."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.scores: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's score."""
        self.scores.append(float(trainer.callback_metrics[self.metric]))


def _train(spec: StudySpec, values: dict[str, Any], index: int) -> tuple[list[float], float]:
    """The metric by epoch, up to where training diverged, and the seconds of an epoch."""
    config = spec.trial_config(values)
    config.data_dir = prepare_dataset(resolve_data_dir("phantom"), config)
    work = Path(tempfile.mkdtemp(prefix="curves-"))
    config.log_dir = config.checkpoint_dir = work
    config.gpus = 0
    train, val, _ = get_dataloaders(config)
    scores = Scores(spec.metric)
    trainer = SegmentationTrainer(
        config, build_model(config), train, val, callbacks=[scores], progress_bar=False
    )
    started = time.perf_counter()
    try:
        trainer.fit()
    except TrainingDivergedError:
        pass
    finally:
        shutil.rmtree(work)
    return scores.scores, (time.perf_counter() - started) / max(1, len(scores.scores))


if __name__ == "__main__":
    main()
