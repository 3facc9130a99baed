"""What our record, scheduler and searcher add to Ray Tune, by trials that do nothing.

    python tests/benchmarks/bench_overhead.py [--trials 2000] [--rounds 2] [--json FILE]

Every run is a whole study on the real Ray Tune, with reused actors, of trials that train nothing
and report five times. Stock Tune and ours (record on the disk, lines of the view to a file) take
turns on the same cluster, in two kinds of studies: in one every trial is better than those
before it, so that the stopping ASHA of both judges all reports and stops nobody; in the other
both ASHA stop early, ours in its default, the promotion variant, which lets fewer trials go on but
runs those that do a second time: compare the milliseconds a report as well. Ratios are to stock
Tune with the same kind of searcher, without the loggers (CSV, JSON, TensorBoard) that it adds by
default; a row tells what these cost.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import CombinedStopper
from rich.console import Console
from rich.table import Table

from tuner.driver.callbacks import ViewCallback
from tuner.driver.checkpoint_keeper import CheckpointKeeper
from tuner.driver.cluster import RAY_SETTINGS
from tuner.driver.searcher import build_searcher
from tuner.driver.stopping import BudgetStopper, StudyStopper
from tuner.driver.tune_run import assemble
from tuner.report.live import StudyView
from tuner.search.policies import build_policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import SearchSettings, TrialResources
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest

REPORTS = 5
WORKERS = 2

SPEC = """
config: {{max_epochs: {reports}}}
space:
  learning_rate: {{loguniform: [1e-5, 1e-2]}}
  weight_decay: {{loguniform: [1e-6, 1e-2]}}
  optimizer: {{choice: [adamw, adam, sgd]}}
search: {{num_trials: {trials}, searcher: {searcher}, default_first: false}}
policy: {{name: asha, promotion: {promotion}}}
"""

RANDOM, OPTUNA = "Ray Tune", "Ray Tune, OptunaSearch"
LOGGED = "Ray Tune with its loggers"
OURS_RANDOM, OURS_DEFAULT = "ours, random", "ours, default searcher"
PEER_OF = {LOGGED: RANDOM, OURS_RANDOM: RANDOM, OURS_DEFAULT: OPTUNA}

TO_THE_END, EARLY = "5 reports each", "stopped early"
CONTENDERS = {
    TO_THE_END: (RANDOM, LOGGED, OURS_RANDOM),
    EARLY: (RANDOM, OURS_RANDOM, OPTUNA, OURS_DEFAULT),
}


class Trivial(tune.Trainable):  # type: ignore[misc]
    """A trial that trains nothing and reports as `TrialTrainable` does."""

    _improves = False

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
        if self._improves:
            score = time.time()
        metrics = {"val_dice": score, "val_loss": 1.0 - score}
        result = EpochReport(self._epoch, score, metrics, 0.0).to_ray()
        # what Tune's own schedulers read; a trial of ours reports it in its message alone
        result |= {"epoch": self._epoch, "score": score}
        if self._epoch == REPORTS:
            result |= TrialEnd(TrialState.COMPLETED, "trained to the end").to_ray()
        return result


class Promoted(Trivial):
    """A trial of ours that goes on where it was when it paused, as `TrialTrainable` does."""

    def setup(self, config: dict[str, Any], folder: Path) -> None:  # type: ignore[override]
        """Begin a trial."""
        self._folder = folder
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on after the last report."""
        super().reset_config(new_config)
        self._checkpoint = self._folder / str(TrialRequest.from_ray(new_config).number)
        if self._checkpoint.is_file():
            self._epoch = int(self._checkpoint.read_text())
        return True

    def step(self) -> dict[str, Any]:
        """One report, which a later run of the trial goes on after."""
        result = super().step()
        self._checkpoint.write_text(str(self._epoch))
        return result


class Improving(Trivial):
    """Every trial is better than those before it."""

    _improves = True


def stock(trials: int, folder: Path, trainable: type[Trivial], *, optuna: bool) -> int:
    """Ray Tune as its documentation has it: ASHA, reused actors, random search or Optuna."""
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={
            "learning_rate": tune.loguniform(1e-5, 1e-2),
            "weight_decay": tune.loguniform(1e-6, 1e-2),
            "optimizer": tune.choice(["adamw", "adam", "sgd"]),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            search_alg=OptunaSearch() if optuna else None,
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


def ours(trials: int, folder: Path, trainable: type[Trivial], searcher: str) -> int:
    """A study as `tune run` assembles it, but for what a trial does."""
    promotion = "false" if trainable is Improving else "true"
    text = SPEC.format(trials=trials, reports=REPORTS, searcher=searcher, promotion=promotion)
    spec = parse_spec(text, source="overhead.yaml")
    record = StudyRecord(folder, spec.space, spec.mode)
    study = Study(folder, spec, record)
    resources = TrialResources(cpu=1, gpu=0, max_concurrent=WORKERS)
    trial: Any = trainable
    if trainable is Trivial:
        (folder / "trials").mkdir()
        trial = tune.with_parameters(Promoted, folder=folder / "trials")
    with (folder / "log.txt").open("w") as log:
        view = StudyView(study, resources, None, Console(file=log))
        policy = build_policy(record, spec)
        proposes = build_searcher(study, policy)
        stopper = StudyStopper(None)
        with view:
            keeper = CheckpointKeeper(study)
            stoppers = CombinedStopper(stopper, BudgetStopper(study))
            watchers = [ViewCallback(view, spec.metric), keeper]
            assemble(study, trial, proposes, policy, resources, watchers, stoppers).fit()
    record.close()
    entries = record.entries.values()
    assert len(entries) == trials
    assert all(entry.state.finished for entry in entries)
    return sum(entry.epochs for entry in entries)


def run(name: str, kind: str, trials: int, folder: Path) -> int:
    """One study of a contender; how many reports there were."""
    if name in {OURS_RANDOM, OURS_DEFAULT}:
        os.environ.update(RAY_SETTINGS)
    else:
        for variable in RAY_SETTINGS:
            os.environ.pop(variable, None)
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # no tables in either
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0" if name == LOGGED else "1"
    trainable = Improving if kind == TO_THE_END else Trivial
    if name == OURS_RANDOM:
        return ours(trials, folder, trainable, "random")
    if name == OURS_DEFAULT:
        return ours(trials, folder, trainable, SearchSettings().searcher)
    return stock(trials, folder, trainable, optuna=name == OPTUNA)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="trials of a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each")
    parser.add_argument("--kinds", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.update(RAY_SETTINGS)
    console = Console()
    ray.init(address="local", num_cpus=WORKERS, log_to_driver=False, logging_level="error")
    cells = [(kind, name) for kind in options.kinds for name in CONTENDERS[kind]]
    seconds: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    reports: dict[tuple[str, str], list[int]] = {cell: [] for cell in cells}
    for kind in options.kinds:  # workers load Ray's libraries
        run(OURS_RANDOM, kind, 8, Path(tempfile.mkdtemp()))
        run(LOGGED, kind, 8, Path(tempfile.mkdtemp()))
    for number in range(options.rounds):
        # forth and back, so that a machine that gets slower favours nobody
        for kind, name in cells if number % 2 == 0 else cells[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                reports[kind, name].append(run(name, kind, options.trials, Path(folder)))
                seconds[kind, name].append(time.perf_counter() - began)
            console.print(
                f"{kind:<16} {name:<26} {seconds[kind, name][-1]:7.1f} s  "
                f"{reports[kind, name][-1]} reports",
                highlight=False,
            )
    ray.shutdown()
    table = Table(title=f"{options.trials} trials, {WORKERS} workers, {options.rounds} rounds")
    for heading in ("study", "", "s, median", "reports", "ms a report", "ratio to its peer"):
        table.add_column(heading)
    figures: dict[str, Any] = {"trials": options.trials, "rounds": options.rounds, "cells": []}
    for (kind, name), runs in seconds.items():
        base = seconds[kind, PEER_OF.get(name, name)]
        ratios = [one / other for one, other in zip(runs, base, strict=True)]
        median = statistics.median(runs)
        counts = reports[kind, name]
        per_report = [1000 * one / count for one, count in zip(runs, counts, strict=True)]
        table.add_row(
            *(kind, name, f"{median:.1f}", f"{statistics.median(counts):.0f}"),
            f"{statistics.median(per_report):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
        figures["cells"].append(
            {"study": kind, "contender": name, "seconds": runs, "reports": counts, "ratios": ratios}
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
