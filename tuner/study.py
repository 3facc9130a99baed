"""A study from start to end: its folder, its Ray Tune run, resuming and listing it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.stopper import CombinedStopper, Stopper

from training.durable_write import write_durably
from tuner.assembly import RAY_FOLDER, assemble
from tuner.budget import BudgetStopper, check_gpu_hours, spent_budget
from tuner.checkpoints import CheckpointKeeper, remove_checkpoints
from tuner.cluster import ray_cluster
from tuner.cluster_check import check_cluster, starts_own_cluster
from tuner.confirm import (
    CONFIRM_FOLDER,
    Candidate,
    candidates,
    confirm_record,
    confirmed_configs,
    is_confirmed,
    missing,
)
from tuner.confirm_searcher import ConfirmSearcher
from tuner.dataset import StudyData, prepare_data
from tuner.driver_lock import driver_is_running
from tuner.earlier import check_comparable, import_earlier, not_imported
from tuner.errors import StudyError, TunerError
from tuner.gpus import check_own_gpus
from tuner.preparation_view import preparation_view
from tuner.provenance import provenance, resumed
from tuner.record import DATABASE, StudyRecord, TrialState
from tuner.report import StudyView, write_results
from tuner.resources import TrialResources, nodes_of, plan_resources
from tuner.schedulers import Policy, build_policy
from tuner.searchers import RecordSearcher, build_searcher, planned_trials
from tuner.spec import Override, StudySpec, load_spec, parse_spec
from tuner.spec_difference import spec_changes
from tuner.stopping import StudyStopper, lost_message, nothing_waited_for_in_vain, signals_stop
from tuner.storage import unreadable
from tuner.study_command import shown_name, study_command
from tuner.study_folder import (
    PROVENANCE,
    RESOLVED_SPEC,
    FolderBefore,
    check_studies_dir,
    driver_lock,
    refuse_foreign_confirmation,
    remove_ray_files,
    spec_time,
    study_path,
)
from tuner.study_records import DRIVER_FAILED, DRIVER_GONE, close_records, describe_study
from tuner.trial import StudyContext, TrialTrainable
from tuner.worker_death import lost_worker_ends_one_trial

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Study:
    """A study folder that was opened.

    Attributes:
        folder: The study folder.
        spec: Its resolved spec.
        record: Its trials.
        before: What there was of its folder when this call began to make it, None if it was
            opened.
    """

    folder: Path
    spec: StudySpec
    record: StudyRecord
    before: FolderBefore | None = None

    @property
    def name(self) -> str:
        """Name of the study: that of its folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: to search, or to confirm."""
        searched = self.searched or spent_budget(self.record, self.spec) is not None
        return searched and is_confirmed(
            self.record, confirm_record(self.folder, self.spec), self.spec
        )

    @property
    def searched(self) -> bool:
        """Whether every trial of the search has ended."""
        entries = self.record.entries.values()
        return len(entries) >= planned_trials(self.spec) and all(
            entry.state.finished for entry in entries
        )

    def provenance(self) -> dict[str, Any]:
        """Versions, commit and data of the study.

        Raises:
            StudyError: if they cannot be read.
        """
        try:
            values: dict[str, Any] = json.loads((self.folder / PROVENANCE).read_text())
        except FileNotFoundError as error:
            raise StudyError(
                f"the study {self.name!r} has not begun ({PROVENANCE} is not there): start it "
                f"with `{study_command('resume', self.folder)}`"
            ) from error
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{self.folder / PROVENANCE} cannot be read ({error}): put back a copy of it"
            ) from error
        return values


def open_study(studies_dir: Path, name: str) -> Study:
    """Open an existing study; nothing is written.

    Raises:
        StudyError: if there is no study of that name, or its record cannot be read.
        SpecError: if its spec cannot be read.
    """
    folder = study_path(studies_dir, name)
    try:
        there = (folder / RESOLVED_SPEC).is_file()
    except OSError as error:
        raise StudyError(f"the study folder {folder} cannot be read: {error.strerror}") from error
    if not there and os.path.lexists(folder / RESOLVED_SPEC):
        raise StudyError(f"{folder / RESOLVED_SPEC} is no file, or a link to none")
    if not there:
        known = [path.name for path in study_folders(studies_dir)]
        others = f"there are: {', '.join(known)}" if known else "there is none yet"
        raise StudyError(f"no study {name!r} in {studies_dir} ({others})")
    spec = load_spec(folder / RESOLVED_SPEC)
    if not (folder / DATABASE).is_file():
        raise unreadable(folder / DATABASE, ValueError("it is not there"))
    return Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))


def seen_study(studies_dir: Path, name: str) -> tuple[Study, str | None]:
    """Open a study to show it, and what to say of it if its driver is gone.

    Its running trials are interrupted then, in the record as well where that can be written.

    Raises:
        StudyError: if there is no study of that name, or its record cannot be read.
    """
    # asked first: a driver that ends now has written all before
    driven = driver_is_running(studies_dir.absolute() / name)
    study = open_study(studies_dir, name)
    if driven:
        return study, None
    command = study_command("resume", study.folder)
    way_on = f"cut off: no process runs the study; go on with `{command}`"
    if study.record.with_state(TrialState.RUNNING) and not put_right(study):
        # one that may only be read, or that another process runs just now
        study.record.take_for_cut_off(way_on)
    left = study.record.with_state(TrialState.INTERRUPTED)
    cut_off = any(entry.reason in (DRIVER_GONE, way_on) for entry in left)
    return study, f"{shown_name(name)} was {way_on}" if cut_off else None


def study_folders(studies_dir: Path) -> list[Path]:
    """Folders of all studies, the oldest first, with those that may not be looked into.

    Raises:
        StudyError: if no studies can be kept in `studies_dir`, or it cannot be read.
    """
    check_studies_dir(studies_dir)
    if not studies_dir.is_dir():
        return []
    try:
        ages = {folder: spec_time(folder) for folder in sorted(studies_dir.iterdir())}
    except OSError as error:
        raise StudyError(f"{studies_dir} cannot be read: {error.strerror}") from error
    return sorted(
        (folder for folder, age in ages.items() if age is not None),
        key=lambda folder: ages[folder] or 0.0,
    )


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
        _only_driver(study),
        _false_start_removed(study),
        _full_disk_is_named(study),
    ):
        if study.spec.confirm is not None:
            refuse_foreign_confirmation(study.folder)
        earlier = [
            open_study(study.folder.parent, name) for name in not_imported(study.folder, study.spec)
        ]
        check_comparable(earlier, study.spec)
        check_cluster(address)
        if starts_own_cluster(address):
            note = check_own_gpus(study.spec.resources)
            if note is not None and console is not None:
                console.print(note, markup=False)
        with preparation_view(console) as show:
            data = prepare_data(study.spec, *show)
        _write_provenance(study, data)
        spec = data.spec
        describe_study(study.record, study.name, study.spec, data)
        if earlier:
            import_earlier(study.folder, data, earlier, console)
        with ray_cluster(address) as dashboard:
            resources = plan_resources(spec.resources, nodes_of(ray.nodes()), planned_trials(spec))
            check_gpu_hours(spec, resources.gpu)
            budgets = BudgetStopper(study.record, spec)
            stopper = StudyStopper(spec.search.time_budget)
            keeper = CheckpointKeeper(
                study.record,
                study.folder,
                spec.checkpoints,
                console,
                spec.objectives,
                planned_trials(spec) if spec.population else 0,
            )
            keeper.prune()
            with signals_stop(stopper), lost_worker_ends_one_trial():
                if budgets.reason is None and not study.searched:
                    view = StudyView(
                        study.record, spec, study.folder, resources, dashboard, console
                    )
                    stoppers = CombinedStopper(stopper, budgets)
                    with view, nothing_waited_for_in_vain(stopper, study.record):
                        _tune(study, data, resources, [view, keeper], stoppers)
                study.record.close_running(study.record.halted or budgets.reason or stopper.reason)
                if spec.confirm is not None and not (stopper.interrupted or study.record.halted):
                    stopper.lift_time_budget()
                    _confirm(study, data, resources, stopper, dashboard, console)
        halted = study.record.halted
        study.record.close_running(halted or stopper.reason)
        keeper.prune()
        write_results(study.folder, study.record, spec)
        study.record.close()
        if halted and not stopper.interrupted:
            raise StudyError(lost_message(halted, study.folder))
        return stopper.interrupted


def change_budgets(study: Study, overrides: Mapping[str, Override]) -> Study:
    """The study with other budgets, which its folder keeps.

    Args:
        study: The study; nobody may run it now.
        overrides: Values of the section `search`, as for `parse_spec`.

    Raises:
        SpecError: if a value is not valid.
        StudyError: if another process runs the study.
    """
    source = study.folder / RESOLVED_SPEC
    spec = parse_spec(study.spec.to_yaml(), source=source, overrides=overrides)
    with _only_driver(study):
        write_durably(source, spec.to_yaml())
    return Study(study.folder, load_spec(source), study.record)


def _confirm(
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
    with _full_disk_is_named(second), view, nothing_waited_for_in_vain(stopper, confirmation):
        _tune(second, data, resources, [view], stopper, chosen)
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


def _tune(
    study: Study,
    data: StudyData,
    resources: TrialResources,
    callbacks: list[tune.Callback],
    stopper: Stopper,
    chosen: list[Candidate] | None = None,
) -> None:
    """Let Tune run the search; or with candidates, their confirmation."""
    spec, record = data.spec, study.record
    # nothing is read back from it, and half a file in it would be in the way
    remove_ray_files(study.folder / RAY_FOLDER)
    context = StudyContext(
        study.folder,
        spec.to_yaml(),
        data.for_trials,
        resources.gpu,
        judged=chosen is not None,
    )
    trainable = tune.with_parameters(TrialTrainable, study=context)
    if chosen is None:
        policy = build_policy(record, spec)
        searcher: RecordSearcher = build_searcher(record, spec, policy)
    else:
        policy = Policy(record)
        searcher = ConfirmSearcher(record, spec, chosen)
    run = assemble(record, spec, trainable, searcher, policy, resources, callbacks, stopper)
    run.fit()


@contextmanager
def _full_disk_is_named(study: Study) -> Iterator[None]:
    """Say that the disk is full instead of where Ray, Tune or a report met it."""
    try:
        yield
    except TunerError:
        raise
    except Exception as error:
        if study.record.failure is not None:
            raise study.record.failure from error
        # Tune hands on no more than the text of an error
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise StudyError(
            f"the disk of {study.folder} is full ({os.strerror(errno.ENOSPC)}): make room, then "
            f"go on with `{study_command('resume', study.folder)}`; every finished epoch is kept"
        ) from error


@contextmanager
def _false_start_removed(study: Study) -> Iterator[None]:
    """Remove what this call made if an error keeps the study from its first trial."""
    before = study.before or FolderBefore.of(study.folder)
    try:
        yield
    except Exception:
        if not study.record.entries:
            before.restore()
        raise


@contextmanager
def _only_driver(study: Study) -> Iterator[None]:
    """Hold the lock of a study, which is as it was opened."""
    with driver_lock(study.folder):
        # the driver before may have written on since the study was opened
        study.record.reload()
        path = study.folder / RESOLVED_SPEC
        if spec_changes(load_spec(path), study.spec):
            raise StudyError(
                f"another process gave the study {study.name!r} another search space just now: "
                "choose another --name"
            )
        close_records(study.record, study.spec, DRIVER_GONE)
        try:
            yield
        except BaseException:
            # the error is what counts
            with suppress(TunerError):
                close_records(study.record, study.spec, DRIVER_FAILED)
            raise


def put_right(study: Study) -> bool:
    """Put a study's records right if nobody runs it, as far as its folder can be written.

    Returns:
        Whether nobody runs it, and the records are right now.
    """
    try:
        with _only_driver(study):
            return True
    except (StudyError, OSError):
        return False


def _write_provenance(study: Study, data: StudyData) -> None:
    """Write where the study comes from, or check that it still has the same data."""
    path = study.folder / PROVENANCE
    first = study.provenance() if path.is_file() and study.record.entries else None
    if first is not None:
        fingerprint = first["data"]["fingerprint"]
        if fingerprint != data.fingerprint:
            raise StudyError(
                f"the data in {data.source}, or the way in which this version prepares them, have "
                f"changed since the study {study.name!r} began (fingerprint {data.fingerprint}, "
                f"was {fingerprint}): its trials cannot be compared any more; start a new study"
            )
    values = provenance(data, seed=study.spec.search.seed)
    if first is not None:
        values = resumed(first, values)
    write_durably(path, json.dumps(values, indent=2))
