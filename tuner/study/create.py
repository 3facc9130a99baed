"""Creates a study: its folder and first files."""

from __future__ import annotations

import re
import time
from pathlib import Path

from training.durable_write import write_durably
from tuner.errors import StudyError
from tuner.spec.study_spec import StudySpec
from tuner.study.code import keep_code
from tuner.study.files import (
    DATABASE,
    DRIVER_LOCK,
    GIVEN_SPEC,
    PROVENANCE,
    RESOLVED_SPEC,
    TRIALS_FOLDER,
    WARM_START,
)
from tuner.study.folder import (
    RECORD_FILES,
    FolderBefore,
    driver_lock,
    holds_study,
    new_study_path,
    refuse_foreign,
    write_errors_explained,
)
from tuner.study.open import open_study
from tuner.study.record import StudyRecord
from tuner.study.remote.study import fetch_study
from tuner.study.spec_changes import refusal, spec_changes
from tuner.study.storage import refuse_lost_record
from tuner.study.study import Study


def create_study(spec: StudySpec, studies_dir: Path, name: str | None) -> Study:
    """Make the folder of a new study, or open the study of that name and the same spec.

    Everything is written under the study's lock. A study that never got as far as a trial, for
    wrong data say, may be given again with another spec.

    Raises:
        StudyError: if the name is not usable, or belongs to a study of another spec or to a
            folder with other content, or another process runs the study. Nothing was changed then.
    """
    name = usual_name(spec.source) if name is None else name
    folder = new_study_path(studies_dir, name)
    fetch_study(folder)
    with write_errors_explained(folder):
        # looked at before the lock, which would be a file in a folder of the user's
        existing = _same_study(spec, studies_dir, name)
        if existing is not None:
            return existing
        before = FolderBefore.of(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with driver_lock(folder):
                # and again: another process may have made it meanwhile
                return _same_study(spec, studies_dir, name) or _make_study(spec, before)
        except BaseException:
            before.remove_folders()
            raise


def usual_name(source: Path) -> str:
    """The name of a space's file and the time."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.stem).lstrip("._-") or "study"
    return f"{stem[:200]}-{time.strftime('%Y%m%d-%H%M%S')}"


def _same_study(spec: StudySpec, studies_dir: Path, name: str) -> Study | None:
    """The study of that name if it has the same spec, None if it is still to be made."""
    folder = studies_dir.absolute() / name
    if not holds_study(folder):
        if (folder / DRIVER_LOCK).is_file() and (folder / RESOLVED_SPEC).is_file():
            refuse_lost_record(folder / DATABASE)
        refuse_foreign(folder)
        return None
    existing = open_study(studies_dir, name)
    # a study goes on as it began, also where an earlier version made it
    changes = spec_changes(existing.spec, spec.model_copy(update={"format": existing.spec.format}))
    if not changes:
        return existing
    existing.record.close()
    if existing.record.entries:
        raise StudyError(refusal(name, studies_dir, changes))
    return None


def _make_study(spec: StudySpec, before: FolderBefore) -> Study:
    """Write the files of a new study, or replace those of one without trials; its lock is held."""
    folder = before.folder
    if any((folder / TRIALS_FOLDER).glob("*")):
        raise StudyError(
            f"the study {folder.name!r} has no trial, but there are files in "
            f"{folder / TRIALS_FOLDER}: move them away, or choose another --name"
        )
    try:
        for name in (PROVENANCE, WARM_START, *RECORD_FILES):
            (folder / name).unlink(missing_ok=True)
        write_durably(folder / GIVEN_SPEC, spec.source_text)
        write_durably(folder / RESOLVED_SPEC, spec.to_yaml())
        keep_code(folder, spec)
        record = StudyRecord(folder, spec.space, spec.mode, fold_epochs=spec.fold_epochs)
        return Study(folder, spec, record, before)
    except BaseException:
        before.restore()
        raise
