"""How long after it is scheduled a trial trains its first batch.

    python tests/benchmarks/bench_start.py [--trials 12] [--space FILE] [--json FILE]

A real study of search_spaces/dformer.yaml on the embedded phantom, by `tune run`, two trials at
once. A trial is scheduled when the record has the decision that it begins (or, paused, goes on);
it has started when Lightning begins its first batch. The first trial of a worker process waits
for that process and for torch, Lightning and MONAI; later ones are handed to a process that has
them. Beside it Ray Tune with the same trainer as a function, as its Lightning guide has it: every
trial has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import ray
from pytorch_lightning import Callback, LightningModule, Trainer
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher
from rich.console import Console
from rich.table import Table

import tuner.driver.tune_run
from tuner.cli.main import main as tune_command
from tuner.driver.cluster import RAY_SETTINGS
from tuner.spec.load import load_spec
from tuner.study.record import StudyRecord
from tuner.trial.trainable import TrialTrainable

SPACE = Path(__file__).parents[2] / "search_spaces" / "dformer.yaml"
WORKERS = 2
FIRST_BATCH = "first_batch.txt"


class FirstBatch(Callback):
    """Notes when a training begins its first batch, and in which process."""

    def __init__(self, folder: Path) -> None:
        self._file: Path | None = folder / FIRST_BATCH

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Write the time, once."""
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
            self._file = None


def watch_first_batches() -> None:
    """Let every training of this process note its first batch."""
    import training.trainer

    plain = training.trainer.get_callbacks
    training.trainer.get_callbacks = lambda config: [*plain(config), FirstBatch(config.log_dir)]


class Watched(TrialTrainable):  # type: ignore[misc]
    """The trial of `tune run`, watched."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Begin to watch."""
        watch_first_batches()
        super().setup(config, **given)


def ours(space: Path, trials: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds to the first batch of each process's first trial, and of all later ones."""
    tuner.driver.tune_run.TrialTrainable = Watched  # type: ignore[misc]
    arguments = ["run", str(space), "--name", "start", "--studies-dir", str(folder)]
    arguments += ["--num-trials", str(trials), "--max-concurrent", str(WORKERS)]
    arguments += ["--set", "config.max_epochs=6", "--set", "policy.grace_period=1"]
    status = tune_command([*arguments, "--set", "search.time_budget=null"])
    assert status == 0
    spec = load_spec(space)
    record = StudyRecord(folder / "start", spec.space, spec.mode)
    starts: list[tuple[float, float, str]] = []
    for path in (folder / "start" / "trials").glob(f"*/{FIRST_BATCH}"):
        number = int(path.parent.name)
        scheduled = [
            decision.time
            for decision in record.decisions
            if decision.trial == number and decision.action in {"proposed", "promoted", "resumed"}
        ]
        begun = [line.split() for line in path.read_text().splitlines()]
        for began, process in begun:
            # a run that failed before its first batch has no line
            at = max(time for time in scheduled if time <= float(began))
            starts.append((float(began), float(began) - at, process))
    record.close()
    return _first_and_later(starts)


class Random(Searcher):  # type: ignore[misc]
    """Random search that notes when it proposes a trial."""

    def __init__(self, space: Path, trials: int, folder: Path) -> None:
        super().__init__()
        self._values = load_spec(space).space
        self._left = trials
        self._folder = folder
        self._rng = random.Random(0)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial."""
        if not self._left:
            return str(Searcher.FINISHED)
        self._left -= 1
        folder = self._folder / trial_id
        folder.mkdir()
        (folder / "scheduled.txt").write_text(str(time.time()))
        return {"values": self._values.sample(self._rng), "folder": str(folder)}

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Nothing: it does not learn."""


def train_as_a_function(config: dict[str, Any], space: Path, data: Path) -> None:
    """A trial as Ray's guide has it: a function that trains and reports."""
    from training.data import get_dataloaders
    from training.models import build_model
    from training.trainer import SegmentationTrainer

    class Report(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
            tune.report({"score": float(trainer.callback_metrics["val_dice"])})
            trainer.should_stop = True

    watch_first_batches()
    settings = load_spec(space).trial_config(config["values"])
    settings.log_dir = settings.checkpoint_dir = Path(config["folder"])
    settings.data_dir, settings.gpus = data, 0
    train, val, _ = get_dataloaders(settings)
    SegmentationTrainer(
        settings, build_model(settings), train, val, callbacks=[Report()], progress_bar=False
    ).fit()


def stock(space: Path, trials: int, folder: Path) -> tuple[list[float], list[float]]:
    """The same of Ray Tune, with trials of an epoch."""
    from training.data import prepare_dataset, resolve_data_dir

    os.environ.update(RAY_SETTINGS)
    ray.init(address="local", num_cpus=WORKERS, log_to_driver=False, logging_level="error")
    data = prepare_dataset(resolve_data_dir("phantom"), load_spec(space).base_config())
    trainable = tune.with_parameters(train_as_a_function, space=space, data=data)
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            search_alg=ConcurrencyLimiter(Random(space, trials, folder), WORKERS),
        ),
        run_config=tune.RunConfig(name="stock", storage_path=str(folder / "ray"), verbose=0),
    ).fit()
    ray.shutdown()
    starts = []
    for path in folder.glob(f"*/{FIRST_BATCH}"):
        began, process = path.read_text().split()
        at = float((path.parent / "scheduled.txt").read_text())
        starts.append((float(began), float(began) - at, process))
    return _first_and_later(starts, first=WORKERS)


def _first_and_later(
    starts: list[tuple[float, float, str]], first: int | None = None
) -> tuple[list[float], list[float]]:
    """Seconds of the first trial of each process, or of the `first` ones, and of the others."""
    firsts: list[float] = []
    later: list[float] = []
    seen: set[str] = set()
    for index, (_, seconds, process) in enumerate(sorted(starts)):
        is_first = process not in seen if first is None else index < first
        seen.add(process)
        (firsts if is_first else later).append(seconds)
    return firsts, later


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    for name, run in (("segtune", ours), ("Ray Tune, a function", stock)):
        with tempfile.TemporaryDirectory() as folder:
            first, later = run(options.space, options.trials, Path(folder))
        figures[name] = {"first": sorted(first), "later": sorted(later)}
    table = Table(title="seconds from being scheduled to the first batch")
    for heading in ("", "first trials, median", "later trials, median", "quartiles", "worst", "of"):
        table.add_column(heading)
    for name, row in figures.items():
        lower, median, upper = statistics.quantiles(row["later"], n=4, method="inclusive")
        table.add_row(
            *(name, f"{statistics.median(row['first']):.2f}", f"{median:.2f}"),
            *(f"{lower:.2f} to {upper:.2f}", f"{row['later'][-1]:.2f}", str(len(row["later"]))),
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
