"""Our searcher and scheduler beside others, in simulated studies: epochs to a good model.

    python tests/benchmarks/bench_search.py [--seeds 20] [--workers 4 16 64] [--jobs 2]

The same objects that `tune run` uses propose and judge trials; training is a look-up with noise
and diverging trials (search/problems.py, search/learning_curves.py) and the clock is simulated.
What is counted is the epochs spent until the best checkpoint in hand is truly as good as 99 % of
the best known, and as 95 % of it: 99 % of the best learning curve is reached in a twenty
thousandth of its space, and by nobody within these budgets. A study may spend FULL_TRAININGS full
trainings, or so many that every worker could do 1.5, and random search ten times that; one that
spends them without a good checkpoint counts with all of them. A ratio is a bound where half of the
studies of one of the two end so (> or <), and there is none where half of both do. The searcher
was made with the first seeds, so the default starts at FIRST_SEED. Studies that the log beside
the file of --json has (.jsonl) are not simulated again, so a run may be cut off and gone on with:
remove the log after a change of a searcher or scheduler. Syne Tune is measured where
SYNE_TUNE_PYTHON names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

from learning_curves import LearningCurves
from peers import OURS, PEERS, RANDOM, STOCK, quieten
from problems import Hartmann
from rich.console import Console
from rich.table import Table
from simulator import Simulator

PROBLEMS: dict[str, Callable[[], Any]] = {
    "hartmann3": lambda: Hartmann(3),
    "hartmann6": lambda: Hartmann(6),
    "curves": LearningCurves,
}
FULL_TRAININGS = 120
RANDOM_MAY = 10
FIRST_SEED = 20
TARGETS = (95, 99)
"""Per cent of the best known."""

Cell = tuple[str, int, str]

problem = cache(lambda name: PROBLEMS[name]())


def simulate(cell: Cell, seed: int) -> dict[str, Any]:
    """One study.

    Args:
        cell: Problem, workers and contender.
        seed: Seed of searcher, scheduler and noise.
    """
    name, workers, contender = cell
    quieten()
    searched = problem(name)
    budget = searched.epochs * max(FULL_TRAININGS, workers * 3 // 2)
    budget *= RANDOM_MAY if contender == RANDOM else 1
    searcher, scheduler = PEERS[contender](searched, seed)
    targets = {percent: percent / 100 * searched.best for percent in TARGETS}
    simulator = Simulator(
        searched, searcher, scheduler, workers=workers, seed=seed, budget=budget,
        targets=tuple(targets.values()),
    )  # fmt: skip
    started = time.perf_counter()
    outcome = simulator.run()
    if hasattr(searcher, "close"):
        searcher.close()
    reached = {p: math.isfinite(outcome.epochs_to(target)) for p, target in targets.items()}
    return {
        "problem": name,
        "workers": workers,
        "contender": contender,
        "seed": seed,
        **{f"reached_{p}": reached[p] for p in targets},
        **{
            f"epochs_{p}": outcome.epochs_to(t) if reached[p] else budget
            for p, t in targets.items()
        },
        **{
            f"seconds_{p}": outcome.seconds_to(t) if reached[p] else outcome.seconds
            for p, t in targets.items()
        },
        "score": outcome.curve[-1][2] / searched.best if outcome.curve else 0.0,
        "idle": outcome.idle / (outcome.seconds * workers),
        "trials": outcome.trials,
        "wall": time.perf_counter() - started,
    }


def simulated(jobs: list[tuple[Cell, int]], log: Path, processes: int) -> list[dict[str, Any]]:
    """The studies of `jobs`, from the log where it has them."""
    known: dict[tuple[Cell, int], dict[str, Any]] = {}
    if log.is_file():
        for study in map(json.loads, log.read_text().splitlines()):
            cell = (study["problem"], study["workers"], study["contender"])
            known[cell, study["seed"]] = study
    with ProcessPoolExecutor(processes) as pool, log.open("a") as file:
        running = {pool.submit(simulate, *job): job for job in jobs if job not in known}
        for done in as_completed(running):
            known[running[done]] = done.result()
            file.write(json.dumps(done.result()) + "\n")
            file.flush()
    return [known[job] for job in jobs]


def summary(studies: list[dict[str, Any]]) -> dict[Cell, dict[str, float]]:
    """Medians and ratios of each problem, number of workers and contender."""
    groups: dict[Cell, list[dict[str, Any]]] = {}
    for study in studies:
        key = (study["problem"], study["workers"], study["contender"])
        groups.setdefault(key, []).append(study)
    found: dict[Cell, dict[str, float]] = {}
    for key, group in groups.items():
        row: dict[str, float] = {}
        for percent in TARGETS:
            spent = [study[f"epochs_{percent}"] for study in group]
            quartiles = statistics.quantiles(spent, n=4, method="inclusive")
            for name, value in zip(("lower", "median", "upper"), quartiles, strict=True):
                row[f"{name}_{percent}"] = value
            row[f"seconds_{percent}"] = statistics.median(s[f"seconds_{percent}"] for s in group)
            row[f"reached_{percent}"] = statistics.mean(s[f"reached_{percent}"] for s in group)
        row["score"] = statistics.median(study["score"] for study in group)
        row["idle"] = statistics.mean(study["idle"] for study in group)
        row["trials"] = statistics.median(study["trials"] for study in group)
        found[key] = row
    for (name, workers, _), row in found.items():
        for other in (STOCK, RANDOM):
            peer = found.get((name, workers, other))
            for percent in TARGETS if peer is not None else ():
                assert peer is not None
                # neither came there: their budgets say nothing
                known = max(peer[f"reached_{percent}"], row[f"reached_{percent}"]) > 0.5
                ratio = peer[f"median_{percent}"] / row[f"median_{percent}"]
                row[f"{other} / it, {percent}"] = ratio if known else math.nan
    return found


def efficiency(found: dict[Cell, dict[str, float]], contender: str) -> dict[str, float]:
    """Share of the speed-up that more workers could bring at most, from fewest to most.

    Of those problems whose target most studies reached with either.
    """
    shares = {}
    for name in {cell[0] for cell in found}:
        for percent in TARGETS:
            rows = {
                workers: row
                for (problem, workers, other), row in found.items()
                if (problem, other) == (name, contender)
            }
            few, many = min(rows), max(rows)
            if min(rows[few][f"reached_{percent}"], rows[many][f"reached_{percent}"]) <= 0.5:
                continue
            seconds = {workers: row[f"seconds_{percent}"] for workers, row in rows.items()}
            shares[f"{name}, {percent} %"] = seconds[few] * few / (seconds[many] * many)
    return shares


def table(found: dict[Cell, dict[str, float]], percent: int, title: str) -> Table:
    """The figures for people."""
    shown = Table(title=title, caption="> : as many studies as not had spent all their epochs")
    for heading in ("problem", "workers", "contender", f"epochs to {percent} %", "quartiles",
                    "reached", "of the best", "random / it", "stock / it", "idle",
                    "trials"):  # fmt: skip
        shown.add_column(
            heading, justify="left" if heading in {"problem", "contender"} else "right"
        )
    for (name, workers, contender), r in sorted(found.items(), key=lambda item: item[0][:2]):
        more = ">" if r[f"reached_{percent}"] <= 0.5 else ""
        shown.add_row(
            name, str(workers), contender, f"{more}{r[f'median_{percent}']:.0f}",
            f"{r[f'lower_{percent}']:.0f}-{r[f'upper_{percent}']:.0f}",
            f"{r[f'reached_{percent}']:.0%}", f"{r['score']:.3f}",
            *(_ratio(found, (name, workers), r, other, percent) for other in (RANDOM, STOCK)),
            f"{r['idle']:.1%}", f"{r['trials']:.0f}",
        )  # fmt: skip
    return shown


def _ratio(
    found: dict[Cell, dict[str, float]],
    where: tuple[str, int],
    row: dict[str, float],
    other: str,
    percent: int,
) -> str:
    """Epochs of another contender by those of a row, > or < where it is a bound."""
    ratio = row.get(f"{other} / it, {percent}", math.nan)
    if math.isnan(ratio):
        return "-"
    peer = found[(*where, other)]
    if peer[f"reached_{percent}"] <= 0.5:
        return f">{ratio:.2f}"
    return f"{'<' if row[f'reached_{percent}'] <= 0.5 else ''}{ratio:.2f}"


def main() -> None:
    """Simulate, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--contenders", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, default=Path("bench_search.json"))
    options = parser.parse_args()
    if RANDOM not in options.contenders or OURS not in options.contenders:
        parser.error(f"--contenders needs {OURS!r} and {RANDOM!r}, which others are set beside")
    cells = [
        (name, workers, contender)
        for name in options.problems
        for contender in options.contenders
        for workers in options.workers
    ]
    # one seed of everything before the next, so that a run that is cut off is of use
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(cell, seed) for seed in seeds for cell in cells]
    studies = simulated(jobs, options.json.with_suffix(".jsonl"), options.jobs)
    found = summary(studies)
    for percent in TARGETS:
        title = f"{options.seeds} seeds, {percent} % of the best known"
        Console(width=150).print(table(found, percent, title))
        for other in {STOCK, RANDOM} & set(options.contenders):
            ratios = [r[f"{other} / it, {percent}"] for c, r in found.items() if c[2] == OURS]
            known = [ratio for ratio in ratios if not math.isnan(ratio)]
            if known:
                print(f"{percent} %: {other} / {OURS}: geometric mean "
                      f"{statistics.geometric_mean(known):.2f}, least {min(known):.2f} "
                      f"of {len(known)} cells that either reached")  # fmt: skip
    shares = {contender: efficiency(found, contender) for contender in options.contenders}
    few, many = min(options.workers), max(options.workers)
    for contender, share in shares.items() if few < many else ():
        figures = ", ".join(f"{name} {value:.0%}" for name, value in sorted(share.items()))
        print(f"efficiency {few} to {many} workers, {contender}: {figures}")
    rows = [
        {"problem": c[0], "workers": c[1], "contender": c[2], **row} for c, row in found.items()
    ]
    facts = {"seeds": list(seeds), "efficiency": shares, "studies": studies}
    options.json.write_text(json.dumps({"measured": facts, "cells": rows}, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
