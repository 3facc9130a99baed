"""Runs the confirmation of a study."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tuner.driver.callbacks import ViewCallback
from tuner.driver.gauges import StudyGauges
from tuner.driver.stopping import StudyStopper, leave_when_stuck
from tuner.driver.tune_run import run_tune
from tuner.report.live import StudyView
from tuner.spec.settings import TrialResources
from tuner.study.checkpoint_files import remove_checkpoints
from tuner.study.confirmation import (
    begin_confirmation,
    candidates,
    confirmed_configs,
    is_confirmed,
    missing,
    plan_confirmation,
)
from tuner.study.data import StudyData
from tuner.study.files import CONFIRM_FOLDER
from tuner.study.provenance import describe_study
from tuner.study.study import Study
from tuner.trial.failures import full_disk_explained

if TYPE_CHECKING:
    from ray.tune import Callback
    from rich.console import Console

    from tuner.driver.study_cluster import StudyCluster


def confirm_study(
    study: Study,
    data: StudyData,
    resources: TrialResources,
    stopper: StudyStopper,
    cluster: StudyCluster,
    dashboard: str | None,
    console: Console | None,
) -> None:
    """Train the best trials of the study and its default config again, with other seeds.

    It is not limited by the time budget, but `confirm: auto` begins only what fits in it.

    Args:
        study: The study, with the spec that its folder has.
        data: Its data, and the spec with what they decide.
        resources: Share of a trial.
        stopper: What ends the study early.
        cluster: The nodes that trials may use.
        dashboard: Address of the Ray dashboard, if there is one.
        console: Where the confirmation is shown.
    """
    searched = replace(study, spec=data.spec)
    chosen = candidates(searched)
    if not chosen:
        return
    # what was begun is trained to the end
    seconds = stopper.seconds_left
    stopper.lift_time_budget()
    why_not = plan_confirmation(searched, seconds, resources.max_concurrent)
    if why_not is not None:
        if console is not None:
            console.print(why_not, markup=False)
        return
    (study.folder / CONFIRM_FOLDER).mkdir(exist_ok=True)
    confirmation = begin_confirmation(searched)
    record = confirmation.record
    describe_study(study, record, data)
    if is_confirmed(searched, confirmation):
        _keep_confirmed(searched, confirmation)
        record.close()
        return
    trials = len(record.entries) + len(missing(confirmation, chosen))
    # what is confirmed is given, so no grid has an end
    given = {"searcher": "random", "num_trials": trials, "time_budget": None, "folds": 1}
    search = data.spec.search.model_copy(update=given)
    shown = replace(confirmation, spec=data.spec.model_copy(update={"search": search}))
    view = StudyView(shown, resources, dashboard, console, cluster=cluster.nodes)
    callbacks: list[Callback] = [ViewCallback(view, data.spec.metric), StudyGauges(shown)]
    with full_disk_explained(confirmation), view, leave_when_stuck(stopper, record):
        run_tune(confirmation, data, resources, callbacks, stopper, cluster, chosen)
    record.close_running(record.halted or stopper.reason)
    if record.halted:
        study.record.halt(record.halted)
    if is_confirmed(searched, confirmation):
        _keep_confirmed(searched, confirmation)
    record.close()


def _keep_confirmed(study: Study, confirmation: Study) -> None:
    """Remove the checkpoints of a confirmation but those of each configuration's best trial."""
    configs = confirmed_configs(study, confirmation)
    kept = {config.trials[0].number for config in configs}
    for number in confirmation.record.entries.keys() - kept:
        remove_checkpoints(confirmation.folder, number)
