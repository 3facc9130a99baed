"""The study as one web page that needs no network: trials, learning curves, best config."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from training.durable_write import write_durably
from tuner.report.confirmation import confirm_columns, confirm_rows
from tuner.report.plots import front_plot, learning_curves, state_legend
from tuner.report.results_table import shown_values, value_names
from tuner.report.tables import front_rows
from tuner.study.confirmation import verdict
from tuner.study.lineage import schedule
from tuner.study.pareto import pareto_front
from tuner.study.record import StudyRecord
from tuner.study.statistics import METHOD
from tuner.study.trial_entry import TrialEntry, TrialState, epochs_spent

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.confirmation import ConfirmedConfig
    from tuner.study.study import Study


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
       padding: 0 1rem; color: #1e293b }
h1, h2 { font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e2e8f0;
         vertical-align: top }
.scroll { overflow-x: auto }
td.sentence { min-width: 22rem }
svg text { font: 12px system-ui, sans-serif; fill: #475569 }
.figures { display: flex; gap: 2.5rem; flex-wrap: wrap }
.figures b { display: block; font-size: 1.6rem }
"""

SENTENCE = 40
"""Characters above which a cell would be squeezed to a word a line beside many columns."""


def write_html_report(path: Path, study: Study, confirmed: Sequence[ConfirmedConfig] = ()) -> None:
    """Write the report of a study to `path`, with what its confirmation says."""
    name, record, spec = study.name, study.record, study.spec
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    spent = epochs_spent(entries)
    full = max(1, len(entries) * spec.max_epochs)
    best = record.best()
    score = best.best(record.mode) if best else None
    figures = [
        (f"best {spec.metric}", f"{score[1]:.4f}" if score else "none"),
        ("best trial", f"{best.number}{_running(best)}" if best else "none"),
        ("trials", str(len(entries))),
        ("epochs spent", f"{spent} of {full} ({spent / full:.0%})"),
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{escape(name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Study {escape(name)}</h1><div class='figures'>",
        *(f"<div>{escape(title)}<b>{escape(value)}</b></div>" for title, value in figures),
        f"</div><h2>{escape(spec.metric)} by epoch</h2>",
        state_legend(entries),
        learning_curves(entries, best),
        *_confirmation(confirmed, spec),
        *_front(entries, spec),
        "<h2>Best config</h2>",
        _best_config(record, best, score[0] if score else 0),
        "<h2>Trials</h2>",
        _trials(entries, record.mode, spec),
        "</body></html>",
    ]
    write_durably(path, "\n".join(parts))


def _best_config(record: StudyRecord, best: TrialEntry | None, epoch: int) -> str:
    """Values that the best score was reached with; a column a trial that had a part in it."""
    stretches = schedule(record.entries, best.number, epoch) if best else []
    several = len(stretches) > 1
    names = dict.fromkeys(name for stretch in stretches for name in stretch.values)
    columns = [
        f"epochs {s.first} to {s.last} (trial {s.trial})" if several else "value" for s in stretches
    ]
    rows = [[name, *(str(s.values.get(name, "")) for s in stretches)] for name in names]
    return _table(["field", *columns], rows)


def _confirmation(confirmed: Sequence[ConfirmedConfig], spec: StudySpec) -> list[str]:
    if spec.confirm is None:
        return []
    return [
        "<h2>Confirmed with other seeds</h2>",
        f"<p><b>{escape(verdict(confirmed))}.</b></p>",
        *([_table(confirm_columns(spec), confirm_rows(confirmed, spec))] if confirmed else []),
        f"<p>{escape(METHOD)}</p>",
    ]


def _front(entries: list[TrialEntry], spec: StudySpec) -> list[str]:
    """The Pareto front: a table, and a picture of the first two metrics."""
    if not spec.further_metrics:
        return []
    front = pareto_front(entries, spec.objectives)
    columns = ["trial", *(f"{name} ({mode})" for name, mode in spec.objectives)]
    return [
        "<h2>Pareto front</h2>",
        "<p>No other trial is better in one of these without being worse in another.</p>",
        front_plot(entries, front, spec.objectives[:2]),
        _table(columns, front_rows(front, spec.objectives)),
    ]


def _trials(entries: list[TrialEntry], mode: str, spec: StudySpec) -> str:
    names = value_names(entries, spec)
    rows = []
    for entry, values in zip(entries, shown_values(entries, spec), strict=True):
        best = entry.best(mode)
        rows.append(
            [
                str(entry.number),
                entry.state.value,
                str(entry.epochs),
                f"{best[1]:.4f}" if best else "",
                entry.reason,
                *(_value(values.get(name, "")) for name in names),
            ]
        )
    return _table(["trial", "state", "epochs", f"best {spec.metric}", "why it ended", *names], rows)


def _running(entry: TrialEntry) -> str:
    return " (still running)" if entry.state is TrialState.RUNNING else ""


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _cell(text: str) -> str:
    """A cell; a sentence in one gets the room to be read in."""
    kind = " class='sentence'" if len(text) > SENTENCE else ""
    return f"<td{kind}>{escape(text)}</td>"
