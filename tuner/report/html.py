"""The study as one web page that needs no network: trials, learning curves, best config."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from training.durable_write import write_durably
from tuner.report import numbers
from tuner.report.confirmation import confirm_columns, confirm_rows
from tuner.report.placement import PLACE_COLUMNS, place_cells, places_differ
from tuner.report.plots import front_plot, learning_curves, state_legend
from tuner.report.results_table import shown_values, value_names
from tuner.report.tables import best_line, best_score, front_rows, html_table
from tuner.report.worth import QUESTION, did_it_pay
from tuner.study.confirmation import verdict
from tuner.study.lineage import schedule
from tuner.study.nodes import left_out_lines, read_nodes
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


def write_html_report(path: Path, study: Study, confirmed: Sequence[ConfirmedConfig] = ()) -> None:
    """Write the report of a study to `path`, with its confirmation if there is one."""
    name, record, spec = study.name, study.record, study.spec
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    spent = epochs_spent(entries)
    full = max(1, len(entries) * spec.full_epochs)
    best = record.best()
    score = best.best(record.mode) if best else None
    figures = [
        (f"best {spec.metric}", (best_score(best, record.mode) if best else "") or "none"),
        ("best trial", f"{best.number}{_running(best)}" if best else "none"),
        ("trials", str(len(entries))),
        ("epochs spent", f"{spent} of {full} ({numbers.share(spent, full)})"),
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{escape(name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Study {escape(name)}</h1>",
        f"<p><b>{QUESTION}</b> {escape(did_it_pay(study))}.</p><div class='figures'>",
        *(f"<div>{escape(title)}<b>{escape(value)}</b></div>" for title, value in figures),
        f"</div><h2>{escape(spec.metric)} by epoch</h2>",
        state_legend(entries),
        learning_curves(entries, best, spec.metric),
        *_confirmation(confirmed, spec),
        *_front(entries, spec),
        "<h2>Best config</h2>",
        _best_config(record, best, score[0] if score else 0),
        *(f"<p>Node {escape(line)}.</p>" for line in left_out_lines(read_nodes(study.folder))),
        "<h2>Trials</h2>",
        _trials(entries, record.mode, spec),
        "</body></html>",
    ]
    write_durably(path, "\n".join(parts))


def _best_config(record: StudyRecord, best: TrialEntry | None, epoch: int) -> str:
    """Values that the best score was reached with; one column for each trial of its lineage."""
    stretches = schedule(record.entries, best.number, epoch) if best else []
    several = len(stretches) > 1
    names = dict.fromkeys(name for stretch in stretches for name in stretch.values)
    columns = [
        f"epochs {s.first} to {s.last} (trial {s.trial})" if several else "value" for s in stretches
    ]
    rows = [
        [name, *(numbers.exact(s.values[name]) if name in s.values else "" for s in stretches)]
        for name in names
    ]
    return html_table(["field", *columns], rows)


def _confirmation(confirmed: Sequence[ConfirmedConfig], spec: StudySpec) -> list[str]:
    if spec.confirm is None:
        return []
    return [
        "<h2>Confirmed with other seeds</h2>",
        f"<p><b>{escape(verdict(confirmed))}.</b></p>",
        *([html_table(confirm_columns(spec), confirm_rows(confirmed))] if confirmed else []),
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
        html_table(columns, front_rows(front, spec.objectives)),
    ]


def _trials(entries: list[TrialEntry], mode: str, spec: StudySpec) -> str:
    names = value_names(entries, spec)
    placed = places_differ(entries)
    rows = []
    for entry, values in zip(entries, shown_values(entries, spec), strict=True):
        rows.append(
            [
                str(entry.number),
                entry.state.value,
                str(entry.epochs),
                best_score(entry, mode),
                *(place_cells(entry) if placed else ()),
                entry.reason,
                *(numbers.value(values[name]) if name in values else "" for name in names),
            ]
        )
    columns = ["trial", "state", "epochs", f"best {spec.metric}"]
    return html_table([*columns, *(PLACE_COLUMNS if placed else ()), "why it ended", *names], rows)


def trials_html(study: Study) -> str:
    """A study in a notebook: its best score, and a table of all trials."""
    entries = [entry for _, entry in sorted(study.record.entries.items())]
    head = f"<p><b>Study {escape(study.name)}</b>: best {escape(best_line(study))}</p>"
    return head + _trials(entries, study.record.mode, study.spec)


def _running(entry: TrialEntry) -> str:
    return " (still running)" if entry.state is TrialState.RUNNING else ""
