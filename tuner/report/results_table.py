"""The tables of a study as CSV files: a row a trial, with columns that can mean one thing only.

Facts of a trial have plain names, hyperparameters begin with `params_` and logged metrics with
`metrics_`, as the columns of Optuna's data frames do.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.durable_write import write_durably
from tuner.report.placement import PLACE_COLUMNS, place_cells, places_differ
from tuner.study.pareto import pareto_front

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


def write_results_csv(path: Path, study: Study) -> None:
    """Write every trial with its ending, its best score, and the values of that score."""
    write_csv(path, *results_table(study))


def results_table(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of `results.csv`: every trial by number."""
    spec = study.spec
    entries = sorted(study.record.entries.values(), key=lambda entry: entry.number)
    shown = shown_values(entries, spec)
    rows = [_row(entry, spec.mode, values) for entry, values in zip(entries, shown, strict=True)]
    columns = list(_FACTS)
    if places_differ(entries):
        columns += PLACE_COLUMNS
        for row, entry in zip(rows, entries, strict=True):
            row.update(zip(PLACE_COLUMNS, place_cells(entry), strict=True))
    if spec.folds > 1:
        columns += _FOLD_FACTS
        for row, entry in zip(rows, entries, strict=True):
            row["folds"] = entry.finished_folds
            row["fold_values"] = json.dumps(_defined(entry.fold_scores(spec.mode)))
    if spec.further_metrics:
        columns.append("on_front")
        front = {entry.number for entry in pareto_front(entries, spec.objectives)}
        rows = [{**row, "on_front": row["trial"] in front} for row in rows]
    if spec.population:
        columns.append("takes_over")
        for row, entry in zip(rows, entries, strict=True):
            row["takes_over"] = "; ".join(step.describe() for step in entry.lineage)
    columns += params(dict.fromkeys(value_names(entries, spec)))
    columns += metrics(dict.fromkeys(sorted({name for e in entries for name in e.metrics})))
    return columns, rows


def _defined(scores: Iterable[float]) -> list[float | None]:
    """Scores as JSON has them: null for one that is not defined."""
    return [score if math.isfinite(score) else None for score in scores]


def value_names(entries: Iterable[TrialEntry], spec: StudySpec) -> list[str]:
    """Fields that vary, and those that a retry replaced."""
    names = [name for name, _ in spec.space.items()]
    return names + sorted({name for entry in entries for name in entry.overrides} - set(names))


def shown_values(entries: Sequence[TrialEntry], spec: StudySpec) -> list[dict[str, Any]]:
    """Of each trial the values that its best score was reached with.

    A field that does not vary, but that a retry of some trial replaced, has its value of the
    config in the others.
    """
    replaced = [name for name in value_names(entries, spec) if name not in spec.space.domains]
    config = spec.base_config().model_dump(mode="json") if replaced else {}
    fixed = {name: config[name] for name in replaced}
    return [{**fixed, **entry.best_values(spec.mode)} for entry in entries]


def params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters by the names of their columns; lists and null are JSON."""
    return {
        f"params_{name}": json.dumps(value)
        if value is None or isinstance(value, list | tuple | dict)
        else value
        for name, value in values.items()
    }


def metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Logged metrics by the names of their columns."""
    return {f"metrics_{name}": value for name, value in values.items()}


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table, whole or not at all.

    Raises:
        ValueError: if two columns have the same name, or a row has a cell of no column.
    """
    if len(set(columns)) < len(columns):
        twice = sorted({name for name in columns if columns.count(name) > 1})
        raise ValueError(f"{path.name} would have two columns of one name: {', '.join(twice)}")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_durably(path, text.getvalue())


_FOLD_FACTS = ("folds", "fold_values")

_FACTS = ("trial", "state", "reason", "epochs", "best_epoch", "value", "seconds")


def _row(entry: TrialEntry, mode: str, values: Mapping[str, Any]) -> dict[str, Any]:
    best = entry.best(mode)
    return {
        "trial": entry.number,
        "state": entry.state.value,
        "reason": entry.reason,
        "epochs": entry.epochs_trained,
        # without a score the cells are missing, in a data frame too
        **({"best_epoch": best[0], "value": best[1]} if best else {}),
        "seconds": round(entry.seconds, 1),
        **params(values),
        **metrics(entry.metrics),
    }
