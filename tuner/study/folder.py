"""The folder of a study: which of its files are the program's own, and which are the user's.

A folder becomes a study's with its lock, which is made first; its record is made last. Nothing
else in it is ever removed or replaced.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from training.bundle.folder import check_bundle_folder
from training.durable_write import PARTIAL
from training.local_path import is_url, url_refusal
from tuner.errors import StudyError
from tuner.study.code import CODE_LIST, remove_code
from tuner.study.commands import study_command
from tuner.study.files import (
    CONFIRM_CSV,
    CONFIRM_FOLDER,
    DATABASE,
    DRIVER_LOCK,
    GIVEN_SPEC,
    NODES_FILE,
    PROVENANCE,
    RAY_FOLDER,
    REPORT,
    RESOLVED_SPEC,
    RESULTS,
    TRIALS_FOLDER,
    WARM_START,
)
from tuner.study.name import check_name, check_new_name
from tuner.study.remote.lease import LeaseHeldError
from tuner.study.remote.study import driven_here

RECORD_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")

START_FILES = (DRIVER_LOCK, GIVEN_SPEC, RESOLVED_SPEC)
"""Files that a start which was killed before it made a record leaves behind."""

OWN_FILES = (
    *(GIVEN_SPEC, RESOLVED_SPEC, PROVENANCE, WARM_START, NODES_FILE),
    *(RESULTS, REPORT, CONFIRM_CSV, *RECORD_FILES),
    DRIVER_LOCK,
)
"""Files of a study folder that the program writes; the lock is the last to be removed."""

RAY_FILES = (
    *(".validate_storage_marker", "tuner.pkl", "trainable.pkl"),
    *("experiment_state-*.json", "search_gen_state-*.json", "searcher-state-*.pkl"),
)
"""Files that Ray Tune writes into its folder."""

LOCK_TIMEOUT = 1.0
"""Seconds to wait for the lock of a study: commands that only read it hold it for a moment."""


def study_path(studies_dir: Path, name: str) -> Path:
    """The folder of a study of that name, whether it is there or not.

    Raises:
        StudyError: if no folder can be of that name, or there.
    """
    check_studies_dir(studies_dir)
    check_name(name)
    return studies_dir.absolute() / name


def new_study_path(studies_dir: Path, name: str) -> Path:
    """The folder of a study that may be made.

    Raises:
        StudyError: if the name is not usable.
    """
    check_new_name(name)
    return study_path(studies_dir, name)


def check_studies_dir(studies_dir: Path) -> None:
    """Check that studies can be where the user wants them.

    Raises:
        StudyError: if it is an address, or a file.
    """
    if is_url(studies_dir):
        why = "this command looks into the folder itself"
        raise StudyError(f"--studies-dir {url_refusal(studies_dir, why)}")
    if studies_dir.exists() and not studies_dir.is_dir():
        raise StudyError(f"--studies-dir {studies_dir} is a file, not a folder: choose another")


def check_export(export: Path, studies_dir: Path, name: str | None) -> None:
    """Check before a search that its model can be exported to a folder at its end.

    Args:
        export: The folder.
        studies_dir: Folder of the studies.
        name: Name of the study, None for one that is still to be found.

    Raises:
        StudyError: if the study itself would be there.
        training.errors.BundleError: if a bundle cannot be written there.
    """
    study = studies_dir.absolute() / (name or "")
    if export.absolute() in (study, *study.parents):
        raise StudyError(
            f"--export {export} is where the study itself is kept: choose another folder"
        )
    check_bundle_folder(export)


def holds_study(folder: Path) -> bool:
    """Whether a folder is that of a study: it has a spec and a record."""
    return (folder / RESOLVED_SPEC).is_file() and (folder / DATABASE).is_file()


def spec_time(folder: Path) -> float | None:
    """When the spec of a study was written; None if there is none, 0 if that cannot be read."""
    try:
        return (folder / RESOLVED_SPEC).lstat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return 0.0


def refuse_foreign(folder: Path) -> None:
    """Check that a new study may be made in a folder: it is empty, or not there.

    Raises:
        StudyError: naming what is in it.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise StudyError(
            f"{folder} is not a folder: choose another --name or another --studies-dir"
        )
    names = {path.name for path in folder.iterdir()}
    if DRIVER_LOCK in names:
        own = {*START_FILES, *(name + PARTIAL for name in START_FILES)}
        names = {name for name in names - own if not _is_new_record(name)}
    if names:
        raise StudyError(
            f"the folder {folder} holds files that are not a study's ({listed(names)}): nothing "
            "was changed; choose another --name or another --studies-dir"
        )


def refuse_foreign_confirmation(folder: Path) -> None:
    """Check that the confirmation of a study may be made in its folder.

    Raises:
        StudyError: naming the files that prevent it.
    """
    confirm = folder / CONFIRM_FOLDER
    if not os.path.lexists(confirm) or (confirm / DATABASE).is_file():
        return
    names = {path.name for path in confirm.iterdir()} if confirm.is_dir() else {confirm.name}
    names = {name for name in names if not _is_new_record(name)}
    if names:
        raise StudyError(
            f"{confirm} holds files that are not a confirmation's ({listed(names)}): move them "
            f"away, then go on with `{study_command('resume', folder)}`"
        )


def _is_new_record(name: str) -> bool:
    """Whether a name is that of a record that was being made."""
    return fnmatch.fnmatchcase(name, f"{DATABASE}.*{PARTIAL}*")


def listed(names: set[str], most: int = 5) -> str:
    """Names as text: the first ones, and the number of the others."""
    shown = ", ".join(sorted(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


@dataclass(frozen=True)
class FolderBefore:
    """The content of a study folder before a call wrote into it.

    Attributes:
        folder: The folder.
        names: What it held.
        missing: Folders that were not there, the deepest first.
    """

    folder: Path
    names: frozenset[str]
    missing: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> FolderBefore:
        """Look at a folder."""
        missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        names = frozenset() if missing else frozenset(path.name for path in folder.iterdir())
        return cls(folder, names, tuple(missing))

    def restore(self) -> None:
        """Remove what the call made; the study's lock must be held."""
        if RAY_FOLDER not in self.names:
            remove_ray_files(self.folder / RAY_FOLDER)
        for name in (TRIALS_FOLDER, RAY_FOLDER):
            if name not in self.names:
                _remove_empty(self.folder / name)
        if CODE_LIST not in self.names:
            remove_code(self.folder)
        for name in OWN_FILES:
            if name not in self.names:
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
        self.remove_folders()

    def remove_folders(self) -> None:
        """Remove the folders that the call made, if they are empty."""
        for path in self.missing:
            _remove_empty(path)


def remove_ray_files(folder: Path) -> None:
    """Remove files that Ray Tune left from an earlier run, and folders that are empty."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove_empty(path)
        elif any(fnmatch.fnmatchcase(path.name, pattern) for pattern in RAY_FILES):
            path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    # not empty, or not there
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def write_errors_explained(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"the study folder {folder} cannot be written ({error.strerror or error}): "
            "choose another --studies-dir"
        ) from error


@contextmanager
def driver_lock(
    folder: Path,
    lost: Callable[[str], None] = lambda why: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Hold the lock of a study: only its holder runs the study and writes into its folder.

    Of a study at an address, what the storage has is here then, and what changes is sent there.

    Args:
        folder: The study's folder.
        lost: Called if another machine has taken a study at an address over.
        tell: Takes a sentence when storage does not answer, and when it does again.

    Raises:
        StudyError: if another process has it, or it cannot be made.
    """
    lock = FileLock(folder / DRIVER_LOCK)
    with write_errors_explained(folder):
        try:
            lock.acquire(timeout=LOCK_TIMEOUT)
        except Timeout as error:
            raise _runs_already(folder, "another process") from error
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(driven_here(folder, lost, tell))
            except LeaseHeldError as error:
                raise _runs_already(folder, f"another machine ({error.holder})") from error
            yield
    finally:
        lock.release()


def _runs_already(folder: Path, who: str) -> StudyError:
    return StudyError(
        f"{who} runs the study {folder.name!r} already: "
        f"watch it with `{study_command('status', folder)}`"
    )
