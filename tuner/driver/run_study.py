"""Runs a study on Ray from start to end, or goes on with one that was cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ray.tune.stopper import CombinedStopper

from tuner.driver.callbacks import ViewCallback
from tuner.driver.checkpoint_keeper import CheckpointKeeper
from tuner.driver.cluster import ray_cluster
from tuner.driver.cluster_check import check_cluster, starts_own_cluster
from tuner.driver.confirm import confirm_study
from tuner.driver.gauges import StudyGauges
from tuner.driver.gpus import check_own_gpus
from tuner.driver.ray_internals import (
    lost_worker_ends_one_trial,
    places_given_back,
    workers_let_go,
)
from tuner.driver.resources import check_gpu_hours
from tuner.driver.spare_cores import SpareCores
from tuner.driver.stopping import (
    BudgetStopper,
    StudyStopper,
    leave_when_stuck,
    signals_stop,
)
from tuner.driver.study_cluster import StudyCluster, study_cluster
from tuner.driver.tune_run import run_tune
from tuner.errors import StudyError
from tuner.report.files import write_results
from tuner.report.live import StudyView
from tuner.report.preparation import preparation_view
from tuner.search.deadline import TimePlan
from tuner.spec.plugins import CODE_FOLDER, import_plugins
from tuner.study.code import edited_code, study_code
from tuner.study.data import prepare_data
from tuner.study.driver import only_driver
from tuner.study.folder import FolderBefore, refuse_foreign_confirmation
from tuner.study.open import open_study
from tuner.study.provenance import describe_study, write_provenance
from tuner.study.study import Study
from tuner.study.warm_start import check_comparable, import_earlier, not_imported
from tuner.trial.failures import full_disk_explained, halted_message
from tuner.trial.networks import check_some_network_builds

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.study.data import StudyData


def run_study(study: Study, address: str | None = None, console: Console | None = None) -> bool:
    """Run a study to its end, or go on with one that was cut off.

    Args:
        study: The study; its record says which trials are left.
        address: Ray cluster to join; RAY_ADDRESS (which `ray job submit` sets) without one,
            and without both a cluster of this machine, of the study's own, is started.
        console: Where the study is shown.

    Returns:
        Whether the study was interrupted (Ctrl-C or SIGTERM) before its end.

    Raises:
        StudyError: if another process runs this study, or the data have changed.
        ResourceError: if no node can hold a trial, or the cluster cannot be reached.
    """
    with (
        only_driver(study, partial(_tell, console)),
        _remove_empty_study(study),
        full_disk_explained(study),
        study_code(study.folder),
    ):
        if study.spec.confirm is not None:
            refuse_foreign_confirmation(study.folder)
        earlier = [open_study(study.folder.parent, name) for name in not_imported(study)]
        check_comparable(earlier, study.spec)
        check_cluster(address)
        import_plugins(study.spec)
        _tell_edited_code(study, console)
        own = starts_own_cluster(address)
        if own:
            note = check_own_gpus(study.spec.resources)
            if note is not None and console is not None:
                console.print(note, markup=False)
        with preparation_view(console) as show:
            data = prepare_data(study.spec, *show, check=check_some_network_builds)
        write_provenance(study, data)
        describe_study(study, study.record, data)
        if earlier:
            import_earlier(study, data.spec, data.fingerprint, earlier, console)
        spec, given = data.spec, study
        study = replace(study, spec=spec)
        with ray_cluster(address, study.name) as dashboard:
            stopper = StudyStopper(spec.search.time_budget)
            with (
                signals_stop(stopper),
                lost_worker_ends_one_trial(),
                study_cluster(study, data, console, own=own) as cluster,
                workers_let_go(cluster.lets_go, cluster.idle),
                places_given_back(lambda: not study.record.halted),
            ):
                _run(given, study, data, cluster, stopper, dashboard, console)
        halted = study.record.halted
        study.record.close_running(halted or stopper.reason)
        CheckpointKeeper(study, console).prune()
        write_results(study)
        study.record.close()
        if halted and not stopper.interrupted:
            raise StudyError(halted_message(halted, study.folder))
        return stopper.interrupted


def _run(
    given: Study,
    study: Study,
    data: StudyData,
    cluster: StudyCluster,
    stopper: StudyStopper,
    dashboard: str | None,
    console: Console | None,
) -> None:
    """Run the search and the confirmation of a study on a cluster.

    Args:
        given: The study, with the spec that its folder has.
        study: The same, with the spec that its data complete.
        data: Its data.
        cluster: The nodes that trials may use.
        stopper: What ends it early.
        dashboard: Address of the Ray dashboard, if there is one.
        console: Where it is shown.
    """
    spec = study.spec
    resources = cluster.share(stopper.stop_all)
    if resources is None:
        return
    check_gpu_hours(spec, resources.gpu)
    budgets = BudgetStopper(study)
    keeper = CheckpointKeeper(study, console)
    keeper.prune()
    if budgets.reason is None and not study.searched:
        spare = SpareCores.of(spec, resources, cluster.cores)
        plan = _time_plan(study, cluster, stopper, spare)
        view = StudyView(study, resources, dashboard, console, plan, cluster.nodes)
        stoppers = CombinedStopper(stopper, budgets)
        with view, leave_when_stuck(stopper, study.record):
            watchers = [ViewCallback(view, spec.metric), keeper, StudyGauges(study)]
            watchers += [] if spare is None else [spare]
            run_tune(study, data, resources, watchers, stoppers, cluster, plan=plan)
    study.record.close_running(study.record.halted or budgets.reason or stopper.reason)
    if spec.confirm is not None and not (stopper.interrupted or study.record.halted):
        confirm_study(given, data, resources, stopper, cluster, dashboard, console)


def _time_plan(
    study: Study, cluster: StudyCluster, stopper: StudyStopper, spare: SpareCores | None
) -> TimePlan | None:
    """The plan of a study with a time budget; None for a population, and for several folds.

    Trials of a population end together, and one of several folds ends with its first fold.
    """
    spec = study.spec
    if spec.search.time_budget is None or spec.population or spec.folds > 1:
        return None
    alone = None if spare is None else spare.alone
    return TimePlan.of(study, cluster.nodes.places, lambda: stopper.seconds_left, alone)


def _tell(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(f"storage        {line}", markup=False)


def _tell_edited_code(study: Study, console: Console | None) -> None:
    edited = edited_code(study.folder)
    if edited and console is not None:
        console.print(
            f"{', '.join(edited)}: edited since the study began; it goes on with its own copy in "
            f"{study.folder / CODE_FOLDER}",
            markup=False,
        )


@contextmanager
def _remove_empty_study(study: Study) -> Iterator[None]:
    """Remove what this call made if an error keeps the study from its first trial."""
    before = study.before or FolderBefore.of(study.folder)
    try:
        yield
    except Exception:
        if not study.record.entries:
            before.restore()
        raise
