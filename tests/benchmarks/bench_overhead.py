"""What our record, searcher and scheduler add to Ray Tune, by trials that do nothing.

    python tests/benchmarks/bench_overhead.py [--trials 2000] [--rounds 2] [--json FILE]

Every run is a whole study on the real Ray Tune, with reused actors: trials of five reports each,
which train nothing. Stock Tune (its random search and its ASHA, with and without the loggers
that it adds by default) and ours (record on the disk, live view, random search or the default
searcher) take turns on the same cluster. The ratio is to stock Tune without loggers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from tuner.assembly import assemble
from tuner.cluster import RAY_SETTINGS
from tuner.record import StudyRecord
from tuner.report import StudyView
from tuner.resources import TrialResources
from tuner.schedulers import build_policy
from tuner.searchers import build_searcher
from tuner.spec import StudySpec, parse_spec
from tuner.stopping import StudyStopper

REPORTS = 5
WORKERS = 2
LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"

SPEC = """
config: {{max_epochs: {reports}}}
space:
  learning_rate: {{loguniform: [1e-5, 1e-2]}}
  weight_decay: {{loguniform: [1e-6, 1e-2]}}
  optimizer: {{choice: [adamw, adam, sgd]}}
search: {{num_trials: {trials}, searcher: {searcher}, default_first: false}}
"""


class Trivial(tune.Trainable):  # type: ignore[misc]
    """A trial that trains nothing and reports as `TrialTrainable` does."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin a trial."""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another one."""
        self._rate, self._epoch = new_config["learning_rate"], 0
        return True

    def step(self) -> dict[str, Any]:
        """One report."""
        self._epoch += 1
        score = 1.0 - self._rate - 0.5 / self._epoch
        result = {
            "epoch": self._epoch,
            "score": score,
            "metrics": {"val_dice": score, "val_loss": 1.0 - score},
            "epoch_seconds": 0.0,
        }
        if self._epoch == REPORTS:
            result |= {"done": True, "outcome": "completed", "reason": "trained to the end"}
        return result


def stock(trials: int, folder: Path) -> int:
    """Ray Tune as its documentation has it: random search, ASHA, reused actors."""
    tuner = tune.Tuner(
        tune.with_resources(Trivial, {"cpu": 1}),
        param_space={
            "learning_rate": tune.loguniform(1e-5, 1e-2),
            "weight_decay": tune.loguniform(1e-6, 1e-2),
            "optimizer": tune.choice(["adamw", "adam", "sgd"]),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="epoch", max_t=REPORTS, grace_period=1, reduction_factor=3
            ),
            max_concurrent_trials=WORKERS,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(folder),
            verbose=0,
            # there is nothing to save
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    return sum(result.metrics["epoch"] for result in tuner.fit() if result.metrics)


def ours(trials: int, folder: Path, searcher: str) -> int:
    """A study as `tune run` assembles it, but for what a trial does."""
    text = SPEC.format(trials=trials, reports=REPORTS, searcher=searcher)
    spec = parse_spec(text, source="overhead.yaml")
    record = StudyRecord(folder, spec.space, spec.mode)
    resources = TrialResources(cpu=1, gpu=0, max_concurrent=WORKERS)
    view = StudyView(record, spec, folder, resources, None, Console(quiet=True))
    policy = build_policy(record, spec)
    proposes = build_searcher(record, spec, policy)
    stopper = StudyStopper(None)
    with view:
        assemble(record, spec, Trivial, proposes, policy, resources, [view], stopper).fit()
    record.close()
    entries = record.entries.values()
    assert len(entries) == trials
    assert all(entry.state.finished for entry in entries)
    return sum(entry.epochs for entry in entries)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="trials of a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.update(RAY_SETTINGS)
    console = Console()
    ray.init(address="local", num_cpus=WORKERS, log_to_driver=False, logging_level="error")
    kinds: dict[str, Callable[[int, Path], int]] = {
        "stock, with its loggers": stock,
        "stock": stock,
        "ours, random": lambda trials, folder: ours(trials, folder, "random"),
        "ours, default searcher": lambda trials, folder: ours(trials, folder, _default_searcher()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    reports: dict[str, int] = {}
    stock(8, Path(tempfile.mkdtemp()))  # workers load Ray's libraries
    for _ in range(options.rounds):
        for name, run in kinds.items():
            os.environ[LOGGERS] = "0" if name == "stock, with its loggers" else "1"
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                reports[name] = run(options.trials, Path(folder))
                seconds[name].append(time.perf_counter() - began)
            console.print(f"{name:<26} {seconds[name][-1]:7.1f} s  {reports[name]} reports")
    ray.shutdown()
    base = seconds["stock"]
    table = Table(title=f"{options.trials} trials of {REPORTS} reports, {WORKERS} workers")
    for heading in ("", "s, median", "ms a report", "ratio to stock"):
        table.add_column(heading)
    figures: dict[str, Any] = {"trials": options.trials, "rounds": options.rounds}
    for name, runs in seconds.items():
        per_report = statistics.median(runs) / reports[name]
        ratios = [one / other for one, other in zip(runs, base, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(runs):.1f}",
            f"{1000 * per_report:.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
        figures[name] = {
            "seconds": runs,
            "reports": reports[name],
            "ratio_to_stock": statistics.median(ratios),
        }
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def _default_searcher() -> str:
    spec: StudySpec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="x.yaml")
    return spec.search.searcher


if __name__ == "__main__":
    main()
