"""Racing over folds beside judging every configuration on all of them: epochs, and what is chosen.

    python tests/benchmarks/bench_folds.py [--seeds 20] [--folds 3 5] [--jobs 2]

The same objects that `tune run` uses decide; training is a look-up with the noise that folds,
configurations and epochs have on data sets of the Decathlon (search/folds.py), and the clock is
simulated. For each study without a race (`search.race: false`) there is one with it, with the same
configurations and scores. `epochs` is its share of the other's epochs. `same` is how often both
choose the same trial; `lost` is the mean difference of the levels without noise of what they
choose, and `noise` the standard deviation of the difference of two configurations over all folds:
what is lost should be below it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

from folds import PUBLISHED, FoldedCurves
from optuna.storages import InMemoryStorage
from peers import quieten
from rich.console import Console
from rich.table import Table
from simulator import Simulator

from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.search.policies import build_policy
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study

POLICIES: dict[str, Any] = {
    "none": "none",
    "asha": {"name": "asha", "reduction_factor": 3},
    "hyperband": "hyperband",
    "median": {"name": "median", "grace_period": 3},
}
SPREADS = (0.5, 1.0, 2.0)
"""How far configurations are apart: their standard deviation by that of a fold's paired noise."""

FOLD_EPOCHS = 27
TRIALS = 40
WORKERS = 4

Cell = tuple[str, str, int, float]
"""Data set, policy, folds, spread."""


def study(cell: Cell, seed: int, *, race: bool) -> tuple[int, dict[str, Any], FoldedCurves]:
    """Epochs of a study, the values that it chose, and the problem."""
    data, policy, folds, spread = cell
    noise = PUBLISHED[data]
    problem = FoldedCurves(noise, spread * noise.paired, folds, FOLD_EPOCHS)
    spec = StudySpec.from_dict(
        {
            "config": {"max_epochs": FOLD_EPOCHS},
            "space": {"learning_rate": {"uniform": [0.001, 1.0]}},
            # what is proposed must not depend on what is decided
            "search": {"searcher": "random", "num_trials": TRIALS, "seed": seed,
                       "folds": folds, "race": race, "default_first": False},
            "policy": POLICIES[policy],
        }
    )  # fmt: skip
    record = StudyRecord(
        Path("simulated"), spec.space, "max", InMemoryStorage(), fold_epochs=spec.fold_epochs
    )
    built = build_policy(record, spec)
    outcome = Simulator(
        problem,
        build_searcher(Study(record.folder, spec, record), built),
        RecordScheduler(record, built),
        workers=WORKERS,
        seed=seed,
        budget=10**9,
    ).run()
    best = record.best()
    assert best is not None
    assert best.finished_folds == folds
    return outcome.epochs, best.values, problem


def compare(cell: Cell, seed: int) -> dict[str, Any]:
    """A study with a race beside the same one without."""
    quieten()
    started = time.perf_counter()
    raced, chosen, problem = study(cell, seed, race=True)
    all_folds, reference, _ = study(cell, seed, race=False)
    lost = problem.true(reference, FOLD_EPOCHS) - problem.true(chosen, FOLD_EPOCHS)
    data, policy, folds, spread = cell
    return {
        "data": data,
        "policy": policy,
        "folds": folds,
        "spread": spread,
        "seed": seed,
        "epochs": raced,
        "epochs_without": all_folds,
        "share": raced / all_folds,
        "same": chosen == reference,
        "lost": lost,
        "wall": time.perf_counter() - started,
    }


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, by cell."""
    groups: dict[Cell, list[dict[str, Any]]] = {}
    for row in found:
        key = (row["data"], row["policy"], row["folds"], row["spread"])
        groups.setdefault(key, []).append(row)
    cells = []
    for (data, policy, folds, spread), group in groups.items():
        losses = [row["lost"] for row in group]
        cells.append(
            {
                "data": data,
                "policy": policy,
                "folds": folds,
                "spread": spread,
                "share": statistics.mean(row["share"] for row in group),
                "greatest_share": max(row["share"] for row in group),
                "same": statistics.mean(row["same"] for row in group),
                "lost": statistics.mean(losses),
                "standard_error": statistics.stdev(losses) / len(losses) ** 0.5,
                "noise": PUBLISHED[data].paired / folds**0.5,
            }
        )
    return cells


def table(cells: list[dict[str, Any]]) -> Table:
    """The figures for people."""
    shown = Table(title="racing over folds beside all folds for every trial")
    for heading in ("data", "policy", "folds", "spread", "epochs", "same", "lost", "noise"):
        shown.add_column(heading, justify="left" if heading in {"data", "policy"} else "right")
    for cell in cells:
        shown.add_row(
            cell["data"], cell["policy"], str(cell["folds"]), f"{cell['spread']:g}",
            f"{cell['share']:.2f}", f"{cell['same']:.0%}",
            f"{cell['lost']:+.4f} ± {cell['standard_error']:.4f}", f"{cell['noise']:.4f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Simulate, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--folds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--data", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--spreads", type=float, nargs="+", default=list(SPREADS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, default=Path("bench_folds.json"))
    options = parser.parse_args()
    jobs = [
        ((data, policy, folds, spread), seed)
        for policy in options.policies
        for folds in options.folds
        for data in options.data
        for spread in options.spreads
        for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(compare, *zip(*jobs, strict=True)))
    cells = summary(found)
    Console(width=120).print(table(cells))
    for policy in options.policies:
        own = [cell for cell in cells if cell["policy"] == policy]
        print(
            f"{policy}: {statistics.mean(cell['share'] for cell in own):.2f} of the epochs, at "
            f"most {max(cell['share'] for cell in own):.2f} in a cell; what is lost is at most "
            f"{max(cell['lost'] / cell['noise'] for cell in own):+.2f} of the noise"
        )
    options.json.write_text(json.dumps({"cells": cells, "studies": found}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
