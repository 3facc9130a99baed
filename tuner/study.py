"""A study from start to end: its folder, its Ray Tune run, resuming and listing it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from filelock import FileLock, Timeout
from ray import tune
from ray.tune.stopper import CombinedStopper, Stopper

from training.durable_write import write_durably
from tuner.assembly import RAY_FOLDER, assemble
from tuner.budget import BudgetStopper, check_gpu_hours, spent_budget
from tuner.checkpoints import CheckpointKeeper, remove_checkpoints
from tuner.cluster import ray_cluster
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
from tuner.earlier import check_comparable, import_earlier, not_imported
from tuner.errors import StudyError, TunerError
from tuner.preparation_view import preparation_view
from tuner.provenance import provenance
from tuner.record import StudyRecord
from tuner.report import StudyView, write_results
from tuner.resources import TrialResources, nodes_of, plan_resources
from tuner.schedulers import Policy, build_policy
from tuner.searchers import RecordSearcher, build_searcher, planned_trials
from tuner.spec import Override, StudySpec, load_spec, parse_spec
from tuner.stopping import StudyStopper, signals_stop
from tuner.study_records import DRIVER_FAILED, DRIVER_GONE, close_records, describe_study
from tuner.trial import StudyContext, TrialTrainable
from tuner.worker_death import lost_worker_ends_one_trial

if TYPE_CHECKING:
    from rich.console import Console

GIVEN_SPEC = "spec.yaml"
RESOLVED_SPEC = "spec.resolved.yaml"
PROVENANCE = "provenance.json"
LOCK = "driver.lock"


@dataclass(frozen=True)
class Study:
    """A study folder that was opened.

    Attributes:
        folder: The study folder.
        spec: Its resolved spec.
        record: Its trials.
    """

    folder: Path
    spec: StudySpec
    record: StudyRecord

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
        """Versions, commit and data of the study."""
        values: dict[str, Any] = json.loads((self.folder / PROVENANCE).read_text())
        return values


def create_study(spec: StudySpec, studies_dir: Path, name: str | None) -> Study:
    """Make the folder of a new study, or open the study of that name and the same spec.

    Raises:
        StudyError: if the name is not usable, or belongs to a study of another spec.
    """
    name = name or f"{spec.source.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StudyError(
            f"the study name {name!r} must start with a letter or digit and "
            "hold only letters, digits, '.', '_' and '-'"
        )
    folder = studies_dir.absolute() / name
    if (folder / RESOLVED_SPEC).is_file():
        existing = open_study(studies_dir, name)
        if existing.spec.to_yaml() == spec.to_yaml():
            return existing
        # a study that never got as far as a trial, for wrong data say, may be given again
        if existing.record.entries:
            raise StudyError(
                f"the study {name!r} exists in {studies_dir} with another search space: "
                f"choose another --name, or go on with it by `tune resume {name}`"
            )
        (folder / PROVENANCE).unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / GIVEN_SPEC, spec.source_text)
        write_durably(folder / RESOLVED_SPEC, spec.to_yaml())
    except OSError as error:
        raise StudyError(
            f"the study folder {folder} cannot be written ({error.strerror}): "
            "choose another --studies-dir"
        ) from error
    return Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))


def open_study(studies_dir: Path, name: str) -> Study:
    """Open an existing study.

    Raises:
        StudyError: if there is no study of that name, or its record cannot be read.
    """
    folder = studies_dir.absolute() / name
    if not (folder / RESOLVED_SPEC).is_file():
        known = [path.name for path in study_folders(studies_dir)]
        there = f"there are: {', '.join(known)}" if known else "there is none yet"
        raise StudyError(f"no study {name!r} in {studies_dir} ({there})")
    spec = load_spec(folder / RESOLVED_SPEC)
    return Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))


def study_folders(studies_dir: Path) -> list[Path]:
    """Folders of all studies, the oldest first."""
    return sorted(
        (path.parent for path in studies_dir.glob(f"*/{RESOLVED_SPEC}")),
        key=lambda folder: (folder / RESOLVED_SPEC).stat().st_mtime,
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
        _nothing_left_of_a_false_start(study),
        _full_disk_is_named(study),
    ):
        earlier = [
            open_study(study.folder.parent, name) for name in not_imported(study.folder, study.spec)
        ]
        check_comparable(earlier, study.spec)
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
                    with StudyView(
                        study.record, spec, study.folder, resources, dashboard, console
                    ) as view:
                        stoppers = CombinedStopper(stopper, budgets)
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
        if halted:
            raise StudyError(
                f"{halted}: every finished epoch is kept; go on with "
                f"`tune resume {study.name}` when that is put right"
            )
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
    with _full_disk_is_named(second), view:
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
    shutil.rmtree(study.folder / RAY_FOLDER, ignore_errors=True)
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
            f"go on with `tune resume {study.name}`; every finished epoch is kept"
        ) from error


@contextmanager
def _nothing_left_of_a_false_start(study: Study) -> Iterator[None]:
    """Remove the folder of a study that an error kept from its first trial."""
    try:
        yield
    except ValueError:
        if not study.record.entries:
            shutil.rmtree(study.folder, ignore_errors=True)
        raise


@contextmanager
def _only_driver(study: Study) -> Iterator[None]:
    lock = FileLock(study.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StudyError(
            f"another process runs the study {study.name!r} already: "
            f"watch it with `tune status {study.name}`"
        ) from error
    try:
        # the driver before may have written on since the study was opened
        study.record.reload()
        close_records(study.record, study.spec, DRIVER_GONE)
        try:
            yield
        except BaseException:
            # the error is what counts
            with suppress(TunerError):
                close_records(study.record, study.spec, DRIVER_FAILED)
            raise
    finally:
        lock.release()


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
    if path.is_file():
        fingerprint = study.provenance()["data"]["fingerprint"]
        if fingerprint != data.fingerprint:
            raise StudyError(
                f"the data in {data.source} have changed since the study {study.name!r} "
                f"began (fingerprint {data.fingerprint}, was {fingerprint}): "
                "its trials cannot be compared any more; start a new study"
            )
    values = provenance(data, seed=study.spec.search.seed)
    write_durably(path, json.dumps(values, indent=2))
