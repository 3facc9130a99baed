"""Opens existing studies: one by its name, one to be shown, all of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.errors import StudyError
from tuner.spec.load import load_resolved_spec
from tuner.study.commands import shown_name, study_command
from tuner.study.driver import DRIVER_GONE, close_if_not_driven
from tuner.study.driver_lock import driver_is_running
from tuner.study.files import DATABASE, RESOLVED_SPEC
from tuner.study.folder import check_studies_dir, spec_time, study_path
from tuner.study.record import StudyRecord
from tuner.study.remote.place import shown_studies_dir
from tuner.study.remote.study import fetch_study, remote_studies
from tuner.study.storage import unreadable
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState


def open_study(studies_dir: Path, name: str) -> Study:
    """Open an existing study; nothing is written.

    Raises:
        StudyError: if there is no study of that name, or its record cannot be read.
        SpecError: if its spec cannot be read.
    """
    folder = study_path(studies_dir, name)
    fetch_study(folder)
    try:
        there = (folder / RESOLVED_SPEC).is_file()
    except OSError as error:
        raise StudyError(f"the study folder {folder} cannot be read: {error.strerror}") from error
    if not there and os.path.lexists(folder / RESOLVED_SPEC):
        raise StudyError(f"{folder / RESOLVED_SPEC} is not a file, or is a broken link")
    if not there:
        known = [path.name for path in study_folders(studies_dir)]
        others = f"there are: {', '.join(known)}" if known else "there is none yet"
        raise StudyError(f"no study {name!r} in {shown_studies_dir(studies_dir)} ({others})")
    spec = load_resolved_spec(folder / RESOLVED_SPEC)
    if not (folder / DATABASE).is_file():
        raise unreadable(folder / DATABASE, ValueError("it is not there"))
    record = StudyRecord(folder, spec.space, spec.mode, fold_epochs=spec.fold_epochs)
    # all of it is read; an open file would be in the way of a process that makes the study anew,
    # and the record opens it again when something is to be written
    record.close()
    return Study(folder, spec, record)


def open_to_show(studies_dir: Path, name: str) -> tuple[Study, str | None]:
    """Open a study to show it, with a message if its driver is gone.

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
    if study.record.with_state(TrialState.RUNNING) and not close_if_not_driven(study):
        # one that may only be read, or that another process runs just now
        study.record.assume_interrupted(way_on)
    left = study.record.with_state(TrialState.INTERRUPTED)
    cut_off = any(entry.reason in (DRIVER_GONE, way_on) for entry in left)
    return study, f"{shown_name(name)} was {way_on}" if cut_off else None


def study_folders(studies_dir: Path) -> list[Path]:
    """Folders of all studies, the oldest first, with those that may not be looked into.

    Those at an address are fetched.

    Raises:
        StudyError: if no studies can be kept in `studies_dir`, or it cannot be read.
    """
    check_studies_dir(studies_dir)
    if not studies_dir.is_dir():
        return []
    for name in remote_studies(studies_dir):
        fetch_study(studies_dir / name)
    try:
        ages = {folder: spec_time(folder) for folder in sorted(studies_dir.iterdir())}
    except OSError as error:
        raise StudyError(f"{studies_dir} cannot be read: {error.strerror}") from error
    return sorted(
        (folder for folder, age in ages.items() if age is not None),
        key=lambda folder: ages[folder] or 0.0,
    )
