"""Writes the files of a study that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.report.confirmation import write_confirm_csv
from tuner.report.html import write_html_report
from tuner.report.results_table import write_results_csv
from tuner.study.confirmation import confirmed_configs, open_confirmation
from tuner.study.files import CONFIRM_CSV, REPORT, RESULTS

if TYPE_CHECKING:
    from tuner.study.study import Study


def write_results(study: Study) -> None:
    """Write `results.csv` and `report.html`: every trial, its ending, metrics and values."""
    write_results_csv(study.folder / RESULTS, study)
    confirmed = confirmed_configs(study, open_confirmation(study))
    if confirmed:
        write_confirm_csv(study.folder / CONFIRM_CSV, confirmed, study.spec)
    write_html_report(study.folder / REPORT, study, confirmed)
