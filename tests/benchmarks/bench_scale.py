"""What a study of many workers and trials costs its driver: simulated to 500 and 10,000.

Searcher, policy, record on disk, log and gauges are those of `tune run`; workers and time are
simulated, and Ray Tune's own loop is not in it (`bench_overhead.py` has that). An epoch of a trial
takes a minute on average, and its score follows a curve of its own.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from rich.console import Console

from tuner.driver.callbacks import ViewCallback
from tuner.driver.gauges import StudyGauges
from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.report.live import StudyView
from tuner.search.policies import build_policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import TrialResources
from tuner.study.files import DATABASE
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Placement, TrialState
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest, TrialStart

SPACE = """
config: {{max_epochs: 27}}
space:
  learning_rate: {{loguniform: [1e-5, 1e-1]}}
  weight_decay: {{loguniform: [1e-6, 1e-2]}}
  optimizer: {{choice: [adamw, adam, sgd]}}
search: {{searcher: {searcher}, num_trials: {trials}, time_budget: null}}
policy: {{name: asha, grace_period: 1, reduction_factor: 3}}
"""
EPOCH_SECONDS = 60.0


@dataclass
class Cost:
    """What a study cost its driver.

    Attributes:
        workers: Workers that trained at once.
        trials: Trials of the study.
        searcher: What proposed them.
        epochs: Epochs that were reported.
        simulated_hours: How long the study would have taken.
        cpu_seconds: CPU time of the driver.
        cpu_share: CPU time an hour of the study, in cores.
        free_median: Seconds from a free worker to its next trial.
        free_p99: The same, of the 99th percentile.
        free_most: The same, at most.
        report_p99: Seconds that an epoch's report takes, 99th percentile.
        memory: Bytes that the driver grew by at most.
        record: Bytes of the record.
    """

    workers: int
    trials: int
    searcher: str
    epochs: int
    simulated_hours: float
    cpu_seconds: float
    cpu_share: float
    free_median: float
    free_p99: float
    free_most: float
    report_p99: float
    memory: int
    record: int


class Simulation:
    """A study whose workers are simulated.

    Args:
        folder: Where its record is written.
        workers: Workers that train at once.
        trials: Trials of the study.
        searcher: What proposes them.
    """

    def __init__(self, folder: Path, workers: int, trials: int, searcher: str) -> None:
        spec = parse_spec(SPACE.format(searcher=searcher, trials=trials), source="scale.yaml")
        self._record = StudyRecord(folder, spec.space, spec.mode)
        study = Study(folder, spec, self._record)
        policy = build_policy(self._record, spec)
        self._searcher = build_searcher(study, policy)
        self._scheduler = RecordScheduler(self._record, policy)
        self._log = (folder / "log.txt").open("w")
        self._view = StudyView(
            study, TrialResources(1, 1, workers), None, Console(file=self._log, width=200)
        )
        self._callbacks = [ViewCallback(self._view, spec.metric), StudyGauges(study)]
        self._max_epochs = spec.max_epochs
        self._rng = random.Random(0)
        self._waiting: list[tuple[float, int, Any]] = []
        self._started = 0
        self.free: list[float] = []
        self.reports: list[float] = []
        self.now = 0.0

    def run(self, workers: int) -> None:
        """Run the study to its end."""
        idle, finished = workers, False
        with self._view:
            while True:
                while idle and not finished:
                    found = self._next()
                    if found is None:
                        break
                    if found == Searcher.FINISHED:
                        finished = True
                        break
                    idle -= 1
                if not self._waiting:
                    break
                self.now, _, trial = heapq.heappop(self._waiting)
                idle += self._epoch(trial)
                for callback in self._callbacks:
                    callback.on_step_end(0, [])
        self._log.close()
        self._record.close()

    def _next(self) -> Any:
        """Start the next trial; None if there is none now."""
        began = time.perf_counter()
        trial_id = str(self._started)
        config = self._searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return config
        self._started += 1
        trial = SimpleNamespace(config=config, trial_id=trial_id, status=Trial.PENDING)
        self._scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        assert self._scheduler.choose_trial_to_run(None) is trial  # type: ignore[arg-type]
        trial.status = Trial.RUNNING
        number = TrialRequest.from_ray(config).number
        trial.epoch = self._record.entries[number].epochs
        where = Placement(f"node-{self._started % 64:02d}", (str(self._started % 8),))
        self._hear(trial, TrialStart(where).to_ray())
        self.free.append(time.perf_counter() - began)
        self._train(trial)
        return trial

    def _train(self, trial: Any) -> None:
        seconds = EPOCH_SECONDS * self._rng.uniform(0.5, 1.5)
        heapq.heappush(self._waiting, (self.now + seconds, id(trial), trial))

    def _hear(self, trial: Any, result: dict[str, Any]) -> str:
        decision = self._scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        for callback in self._callbacks:
            callback.on_trial_result(0, [], trial, result)
        return decision

    def _epoch(self, trial: Any) -> int:
        """Report an epoch of a trial; how many workers it leaves free."""
        trial.epoch += 1
        distance = abs(math.log10(trial.config["learning_rate"]) + 2)
        noise = self._rng.gauss(0, 0.01)
        score = 1 - 0.2 * distance - 0.5 / (trial.epoch + distance) + noise
        metrics = {"val_dice": score, "val_loss": 1 - score, "peak_memory": 4e9}
        began = time.perf_counter()
        result = EpochReport(trial.epoch, score, metrics, EPOCH_SECONDS, 1.0).to_ray()
        decision = self._hear(trial, result)
        ended = decision == "STOP"
        if not ended and trial.epoch == self._max_epochs:
            result |= TrialEnd(TrialState.COMPLETED, "trained to the end").to_ray()
            ended = True
        if ended:
            trial.status = Trial.TERMINATED
            self._searcher.on_trial_complete(trial.trial_id, result)
            for callback in self._callbacks:
                callback.on_trial_complete(0, [], trial)
        self.reports.append(time.perf_counter() - began)
        if not ended:
            self._train(trial)
        return int(ended)


def measure(workers: int, trials: int, searcher: str) -> Cost:
    """Simulate a study and measure what it cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        simulation = Simulation(folder, workers, trials, searcher)
        simulation.run(workers)
        cpu = time.process_time() - began
        hours = simulation.now / 3600
        median, p99, most = np.percentile(simulation.free, [50, 99, 100])
        return Cost(
            workers,
            trials,
            searcher,
            len(simulation.reports),
            hours,
            cpu,
            cpu / simulation.now,
            median,
            p99,
            most,
            float(np.percentile(simulation.reports, 99)),
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
            (folder / DATABASE).stat().st_size,
        )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 100, 500])
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--searchers", nargs="+", default=["random", "gp"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    console = Console(highlight=False)
    costs = []
    for searcher in options.searchers:
        for trials in options.trials:
            for workers in options.workers:
                cost = measure(workers, trials, searcher)
                costs.append(cost)
                console.print(
                    f"{searcher:<7} {trials:>6} trials {workers:>4} workers  "
                    f"{cost.epochs:>6} epochs in {cost.simulated_hours:6.1f} h  "
                    f"CPU {cost.cpu_seconds:6.1f} s ({cost.cpu_share:.2%} of a core)  "
                    f"free worker {cost.free_median * 1e3:.1f} ms, 99 % {cost.free_p99 * 1e3:.1f}, "
                    f"most {cost.free_most * 1e3:.1f}  "
                    f"report 99 % {cost.report_p99 * 1e3:.1f} ms  "
                    f"memory {cost.memory / 2**20:.0f} MB  record {cost.record / 2**20:.1f} MB"
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2))


if __name__ == "__main__":
    main()
