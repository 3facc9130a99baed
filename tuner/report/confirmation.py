"""A confirmation as a table and as `confirm.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.report import numbers
from tuner.report.results_table import metrics, params, write_csv
from tuner.study.confirmation import ConfirmedConfig

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.statistics import Interval


def confirm_columns(spec: StudySpec) -> list[str]:
    """Headings of the table of confirmed configs."""
    test = spec.metric.replace("val_", "test_", 1)
    return ["config", "seeds", spec.metric, test, "95 % interval", "minus default", "p"]


def confirm_rows(configs: Sequence[ConfirmedConfig]) -> list[list[str]]:
    """A row a config, the winner first."""
    rows = []
    for config in configs:
        against = config.against_default
        grid = "" if config.grid == "file" else f" ({config.grid} grid)"
        name = config.candidate.name
        if config.candidate.is_default and config.candidate.trial is not None:
            name += " (default)"
        rows.append(
            [
                name,
                f"{len(config.trials)} of {config.seeds}",
                numbers.score(config.validation),
                numbers.score(config.test.mean) + grid,
                numbers.interval(config.test),
                _difference(against.difference) if against else "",
                numbers.p_value(against.p_value) if against else "",
            ]
        )
    return rows


def write_confirm_csv(path: Path, configs: Sequence[ConfirmedConfig], spec: StudySpec) -> None:
    """Write a row a config: its means, intervals and comparison with the default."""
    rows = [_csv_row(config, spec) for config in configs]
    write_csv(path, list(dict.fromkeys(name for row in rows for name in row)), rows)


def _csv_row(config: ConfirmedConfig, spec: StudySpec) -> dict[str, Any]:
    against = config.against_default
    test = spec.metric.replace("val_", "test_", 1)
    scores = {
        spec.metric: config.validation,
        test: config.test.mean,
        f"{test}_low": config.test.low,
        f"{test}_high": config.test.high,
    }
    return {
        "config": config.candidate.name,
        "is_default": config.candidate.is_default,
        "trial": "" if config.candidate.trial is None else config.candidate.trial,
        "seeds": len(config.trials),
        "cases": len(config.cases),
        "test_grid": config.grid,
        "minus_default": against.difference.mean if against else "",
        "minus_default_low": against.difference.low if against else "",
        "minus_default_high": against.difference.high if against else "",
        "p_value": against.p_value if against else "",
        "p_value_cases": against.p_cases if against else "",
        "distinguishable": against.distinguishable if against else "",
        **metrics(scores),
        **params(config.candidate.values),
    }


def _difference(found: Interval) -> str:
    return f"{numbers.difference(found.mean)} {numbers.interval(found)}"
