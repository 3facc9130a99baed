"""What a person sees of a confirmation: a table, a verdict, `confirm.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.report.results_table import metrics, params, write_csv
from tuner.study.confirmation import ConfirmedConfig

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.statistics import Interval


def confirm_columns(spec: StudySpec) -> list[str]:
    """Headings of the table of confirmed configs."""
    test = spec.metric.replace("val_", "test_", 1)
    return ["config", "seeds", spec.metric, test, "95 % interval", "minus default", "p"]


def confirm_rows(configs: Sequence[ConfirmedConfig], spec: StudySpec) -> list[list[str]]:
    """A row a config, the winner first."""
    assert spec.confirm is not None
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
                f"{len(config.trials)} of {spec.confirm.seeds}",
                f"{config.validation:.4f}",
                f"{config.test.mean:.4f}{grid}",
                _range(config.test),
                f"{against.difference.mean:+.4f} {_range(against.difference)}" if against else "",
                f"{against.p_value:.2g}" if against else "",
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


def _range(interval: Interval) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]"
