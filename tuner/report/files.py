"""Writes the files of a study that people read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuner.report.confirmation import write_confirm_csv
from tuner.report.html import write_html_report
from tuner.report.results_table import write_results_csv
from tuner.study.confirmation import confirm_record, confirmed_configs
from tuner.study.files import CONFIRM_CSV, REPORT, RESULTS
from tuner.study.record import StudyRecord

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec


def write_results(folder: Path, record: StudyRecord, spec: StudySpec) -> None:
    """Write `results.csv` and `report.html`: every trial, its ending, metrics and values."""
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    write_results_csv(folder / RESULTS, entries, spec)
    confirmed = confirmed_configs(record, confirm_record(folder, spec), spec)
    if confirmed:
        write_confirm_csv(folder / CONFIRM_CSV, confirmed, spec)
    write_html_report(folder / REPORT, folder.name, record, spec, confirmed)
