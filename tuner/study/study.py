"""A study: its folder, its spec and its record; opening, showing and locking it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.durable_write import write_durably
from tuner.errors import StudyError, TunerError
from tuner.spec.grid import planned_trials
from tuner.spec.load import load_resolved_spec
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override
from tuner.study.budget import spent_budget
from tuner.study.commands import shown_name, study_command
from tuner.study.confirmation import confirm_record, is_confirmed
from tuner.study.data import StudyData
from tuner.study.driver_lock import driver_is_running
from tuner.study.folder import (
    PROVENANCE,
    RESOLVED_SPEC,
    FolderBefore,
    check_studies_dir,
    driver_lock,
    spec_time,
    study_path,
)
from tuner.study.provenance import provenance, resumed
from tuner.study.record import DATABASE, StudyRecord
from tuner.study.records import DRIVER_FAILED, DRIVER_GONE, close_records
from tuner.study.spec_changes import spec_changes
from tuner.study.storage import unreadable
from tuner.study.trial_entry import TrialState


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
    spec = load_resolved_spec(folder / RESOLVED_SPEC)
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


def change_budgets(study: Study, overrides: Mapping[str, Override]) -> Study:
    """The study with other budgets, which its folder keeps.

    Args:
        study: The study; nobody may run it now.
        overrides: Values of the section `search` by dotted key.

    Raises:
        SpecError: if a value is not valid.
        StudyError: if another process runs the study.
    """
    spec = study.spec.with_settings(overrides)
    with only_driver(study):
        write_durably(study.folder / RESOLVED_SPEC, spec.to_yaml())
    return Study(study.folder, spec, study.record)


@contextmanager
def only_driver(study: Study) -> Iterator[None]:
    """Hold the lock of a study, which is as it was opened."""
    with driver_lock(study.folder):
        # the driver before may have written on since the study was opened
        study.record.reload()
        path = study.folder / RESOLVED_SPEC
        if spec_changes(load_resolved_spec(path), study.spec):
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
        with only_driver(study):
            return True
    except (StudyError, OSError):
        return False


def write_provenance(study: Study, data: StudyData) -> None:
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
