"""Runs the confirmation of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.report.live import StudyView
from tuner.run.callbacks import ViewCallback
from tuner.run.failures import full_disk_is_named
from tuner.run.stopping import StudyStopper, nothing_waited_for_in_vain
from tuner.run.tune_run import run_tune
from tuner.spec.settings import TrialResources
from tuner.spec.study_spec import StudySpec
from tuner.study.confirmation import (
    CONFIRM_FOLDER,
    candidates,
    confirmed_configs,
    is_confirmed,
    missing,
)
from tuner.study.data import StudyData
from tuner.study.files import remove_checkpoints
from tuner.study.record import StudyRecord
from tuner.study.records import describe_study
from tuner.study.study import Study

if TYPE_CHECKING:
    from rich.console import Console


def confirm_study(
    study: Study,
    data: StudyData,
    resources: TrialResources,
    stopper: StudyStopper,
    dashboard: str | None,
    console: Console | None,
) -> None:
    """Train the best trials of the study and its default config again, with other seeds."""
    spec, folder = data.spec, study.folder / CONFIRM_FOLDER
    chosen = candidates(study.record, spec)
    if not chosen:
        return
    folder.mkdir(exist_ok=True)
    confirmation = StudyRecord(folder, spec.space, spec.mode)
    describe_study(confirmation, study.name, study.spec, data)
    if is_confirmed(study.record, confirmation, spec):
        _keep_confirmed(study, confirmation, spec)
        confirmation.close()
        return
    trials = len(confirmation.entries) + len(missing(confirmation, chosen, spec))
    # what is confirmed is given, so no grid has an end
    given = {"searcher": "random", "num_trials": trials, "time_budget": None}
    search = spec.search.model_copy(update=given)
    shown = spec.model_copy(update={"search": search})
    second = Study(folder, spec, confirmation)
    view = StudyView(confirmation, shown, folder, resources, dashboard, console)
    with full_disk_is_named(second), view, nothing_waited_for_in_vain(stopper, confirmation):
        run_tune(second, data, resources, [ViewCallback(view, spec.metric)], stopper, chosen)
    confirmation.close_running(confirmation.halted or stopper.reason)
    if confirmation.halted:
        study.record.halt(confirmation.halted)
    if is_confirmed(study.record, confirmation, spec):
        _keep_confirmed(study, confirmation, spec)
    confirmation.close()


def _keep_confirmed(study: Study, confirmation: StudyRecord, spec: StudySpec) -> None:
    """Remove the checkpoints of a confirmation but those of each configuration's best trial."""
    configs = confirmed_configs(study.record, confirmation, spec)
    kept = {config.trials[0].number for config in configs}
    for number in confirmation.entries.keys() - kept:
        remove_checkpoints(confirmation.folder, number)
