"""The end of a time budget: schedules that can be ended at any time, and studies that plan it.

    python tests/benchmarks/bench_finish.py [--seeds 4] [--epochs 12 24] [--studies 20]

`schedules` trains the small D-Former of search_spaces/dformer.yaml on a coarse phantom and asks
what a trial is worth that has to end after a number of epochs: wsd, which is ended there (its
schedule of `PLANNED` epochs was the same until its decay); poly that had been planned to end
there, which no search can know; poly of `PLANNED` epochs, cut off; and a constant rate, with and
without a moving average of the weights. Score: validation Dice of the last epoch, paired by seed.

`studies` simulates whole studies of two workers with time for so many full trainings
(search/deadlines.py) with the end planned and not planned, in both variants of ASHA: the true
score of what they have at the deadline, by the best known; how often it is annealed, how many
trials were cut off, how much of the time was not used.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

from deadlines import Scheduled, simulate_deadline
from peers import quieten
from problems import Hartmann
from rich.console import Console
from rich.table import Table

from training.config import ModelTrainingConfig
from training.data import get_dataloaders, prepare_dataset, resolve_data_dir
from training.models import build_model
from training.trainer import SegmentationTrainer
from tuner.spec.load import load_spec

SPACE = Path(__file__).parents[2] / "search_spaces/dformer.yaml"
PLANNED = 60
ENDED, FIXED, CUT = "wsd, ended here", "poly, planned for it", f"poly of {PLANNED}, cut off"
CONSTANT, AVERAGED = "constant rate", "constant rate, EMA"

SMALL: dict[str, Any] = {
    "target_spacing": (6.0, 4.5, 4.5), "patch_size": (12, 24, 24), "steps_per_epoch": 12,
}  # fmt: skip
"""Half the resolution, so that an epoch is a second."""

WORKERS = 2
BUDGETS = ((24, 4.5), (24, 7.0), (100, 10.0))
"""Trials of a study, and how many full trainings it has time for."""


def trained(config: ModelTrainingConfig, epochs: Sequence[int]) -> dict[int, float]:
    """Validation Dice of a training after some epochs.

    Args:
        config: The training.
        epochs: Epochs that are of interest.
    """
    from pytorch_lightning import Callback

    scores: dict[int, float] = {}

    class Noted(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            scores[trainer.current_epoch + 1] = float(trainer.callback_metrics["val_dice"])
            trainer.should_stop = trainer.current_epoch + 1 >= max(epochs)

    train, val, _ = get_dataloaders(config)
    SegmentationTrainer(
        config, build_model(config), train, val, callbacks=[Noted()], progress_bar=False
    ).fit()
    return {epoch: scores[epoch] for epoch in epochs}


def schedule_rows(ends: Sequence[int], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Scores of every schedule, epoch and seed."""
    spec = load_spec(SPACE)
    fields = {"optimizer": "adamw", "learning_rate": 5e-3, "loss": "dice_ce"}
    base = spec.trial_config({**fields, "augmentation": "default", **SMALL})
    data = prepare_dataset(resolve_data_dir(base.data_dir), base)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        plans: list[tuple[str, dict[str, Any], Sequence[int]]] = [
            *((ENDED, {"scheduler": "wsd", "max_epochs": end}, [end]) for end in ends),
            *((FIXED, {"scheduler": "poly", "max_epochs": end}, [end]) for end in ends),
            (CUT, {"scheduler": "poly", "max_epochs": PLANNED}, ends),
            (CONSTANT, {"scheduler": "none", "max_epochs": PLANNED}, ends),
            (AVERAGED, {"scheduler": "none", "ema_decay": 0.98, "max_epochs": PLANNED}, ends),
        ]
        for name, fields, epochs in plans:
            with tempfile.TemporaryDirectory() as folder:
                config = base.model_copy(
                    update={
                        **fields, "seed": seed, "data_dir": data, "gpus": 0,
                        "log_dir": Path(folder) / "logs", "checkpoint_dir": Path(folder),
                    }
                )  # fmt: skip
                started = time.process_time()
                scores = trained(config, epochs)
                spent = (time.process_time() - started) / max(epochs)
            rows += [
                {
                    "schedule": name, "epochs": epoch, "seed": seed, "val_dice": score,
                    "cpu_seconds": epoch * spent,
                }
                for epoch, score in scores.items()
            ]  # fmt: skip
    return rows


def study_rows(studies: int, schedulers: Sequence[str]) -> list[dict[str, Any]]:
    """What simulated studies have at their deadline."""
    quieten()
    return [
        {
            "problem": f"mfHartmann{dims}", "trials": trials, "full_trainings": full,
            "scheduler": scheduler, "planned": is_planned, "promotion": promotion, "seed": seed,
            **simulate_deadline(
                Scheduled(Hartmann(dims), scheduler), planned_end=is_planned,
                promotion=promotion, trials=trials, workers=WORKERS, full_trainings=full,
                seed=seed,
            ),
        }
        for dims in (3, 6)
        for trials, full in BUDGETS
        for scheduler in schedulers
        for promotion in (True, False)
        for is_planned in (False, True)
        for seed in range(studies)
    ]  # fmt: skip


def schedule_table(rows: list[dict[str, Any]]) -> Table:
    """Mean scores by schedule and epochs, and the difference from poly that was planned."""
    table = Table(title="A trial that has to end: validation Dice on the phantom")
    for heading in ("epochs", "schedule", "mean", "minus poly, planned", "CPU seconds"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    by = {(row["epochs"], row["schedule"], row["seed"]): row for row in rows}
    for epochs in sorted({row["epochs"] for row in rows}):
        for name in (FIXED, ENDED, CUT, CONSTANT, AVERAGED):
            group = [row for (e, n, _), row in by.items() if (e, n) == (epochs, name)]
            beside = [row["val_dice"] - by[epochs, FIXED, row["seed"]]["val_dice"] for row in group]
            error = statistics.stdev(beside) / len(beside) ** 0.5 if len(beside) > 1 else 0.0
            table.add_row(
                str(epochs), name, f"{statistics.fmean(row['val_dice'] for row in group):.3f}",
                f"{statistics.fmean(beside):+.3f} ± {error:.3f}",
                f"{statistics.fmean(row['cpu_seconds'] for row in group):.0f}",
            )  # fmt: skip
    return table


def study_table(rows: list[dict[str, Any]]) -> Table:
    """Means of the studies by problem, budget and way of ending."""
    table = Table(title="Simulated studies at their deadline", caption="± standard error, paired")
    for heading in (
        "problem", "trials", "full trainings", "schedule", "ASHA", "end", "of the best",
        "gain", "annealed", "cut off", "tried", "not used",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    keys = ("problem", "trials", "full_trainings", "scheduler", "promotion")
    groups: dict[tuple[Any, ...], dict[bool, list[dict[str, Any]]]] = {}
    for row in rows:
        group = groups.setdefault(tuple(row[key] for key in keys), {False: [], True: []})
        group[row["planned"]].append(row)
    for (problem, trials, full, scheduler, promotion), group in groups.items():
        gains = [b["score"] - a["score"] for a, b in zip(group[False], group[True], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        for is_planned, found in group.items():
            mean = {
                name: statistics.fmean(float(row[name]) for row in found)
                for name in ("score", "annealed", "cut", "tried", "unused")
            }
            table.add_row(
                problem, str(trials), f"{full:g}", scheduler,
                "promotes" if promotion else "stops", "planned" if is_planned else "as it comes",
                f"{mean['score']:.3f}",
                f"{statistics.fmean(gains):+.3f} ± {error:.3f}" if is_planned else "",
                f"{mean['annealed']:.0%}", f"{mean['cut']:.1f}", f"{mean['tried']:.0f}",
                f"{mean['unused']:.0%}",
            )  # fmt: skip
    return table


def main() -> None:
    """Train, simulate, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, nargs="+", default=[12, 24])
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--schedulers", nargs="+", choices=["wsd", "poly"], default=["wsd"])
    parser.add_argument("--only", choices=["schedules", "studies"])
    parser.add_argument("--json", type=Path, default=Path("bench_finish.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    facts: dict[str, Any] = {"planned_epochs": PLANNED, "workers": WORKERS}
    console = Console(width=150)
    if options.only != "studies":
        facts["schedules"] = schedule_rows(options.epochs, range(options.seeds))
        console.print(schedule_table(facts["schedules"]))
    if options.only != "schedules":
        facts["studies"] = study_rows(options.studies, options.schedulers)
        console.print(study_table(facts["studies"]))
    options.json.write_text(json.dumps(facts, indent=2))
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
