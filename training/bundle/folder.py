"""The folder of an exported model: filled or replaced whole, and nothing else in it touched.

A bundle of one network has its weights and config at the top; one of several has a folder a network
in `members/`. A new bundle is written into a hidden folder inside the target, then moved in entry
by entry, with the manifest last. Without a manifest a folder is not a bundle, so one that is half
replaced is never taken for a whole one, and the old files are put back by the next export.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from training.durable_write import check_writable
from training.errors import BundleError
from training.local_path import is_url, url_refusal

WEIGHTS = "weights.pt"
CONFIG = "config.yaml"
PREPROCESSING = "preprocessing.json"
MANIFEST = "bundle.json"

MEMBERS = "members"
"""The folder of an ensemble's networks: `members/0`, `members/1`, ..."""

MEMBER_FILES = (WEIGHTS, CONFIG)
"""The files of each network of an ensemble, in its folder."""

BUNDLE_FILES = (WEIGHTS, CONFIG, PREPROCESSING, MANIFEST)
"""All files of a bundle of one network."""

ENTRIES = (MEMBERS, *BUNDLE_FILES)
"""What is moved, in this order: the manifest is written last and removed first."""

STAGING = ".segtune-export-"
"""Prefix of the name of the hidden folder."""

NEW, MOVING, OLD = "new", "moving", "old"
"""Its parts: the new entries; the old ones while they are moved out; and when all of them are."""


def member_folder(index: int) -> str:
    """The folder of a network of an ensemble, in that of the bundle."""
    return f"{MEMBERS}/{index}"


def check_bundle_folder(folder: Path) -> None:
    """Check that a bundle can be written to a folder, before hours are spent; leaves no file.

    Raises:
        BundleError: if it is not a folder, holds other files than a bundle's, or cannot be written.
    """
    if is_url(folder):
        raise BundleError(url_refusal(folder))
    try:
        _refuse_foreign(folder)
        check_writable(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextmanager
def replaced_bundle(folder: Path) -> Iterator[Path]:
    """A folder to write the files of a bundle into, which then take their place in `folder`.

    If the block raises, `folder` is as it was.

    Raises:
        BundleError: if `folder` holds other files than a bundle's, cannot be written, or another
            process exports to it now.
    """
    check_bundle_folder(folder)
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_exporter(folder):
            _refuse_foreign(folder)
            for left in _stagings(folder):
                _put_back(left, folder)
            staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
            try:
                (staging / NEW).mkdir()
                yield staging / NEW
                _swap(staging, folder)
            finally:
                _put_back(staging, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        for path in made:
            # not empty if all went well
            with suppress(OSError):
                path.rmdir()


def _swap(staging: Path, folder: Path) -> None:
    """Move the old entries out and the new ones in."""
    new, moving, old = staging / NEW, staging / MOVING, staging / OLD
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    moving.mkdir()
    for name in reversed(ENTRIES):
        if os.path.lexists(folder / name):
            (folder / name).rename(moving / name)
    moving.rename(old)
    for name in ENTRIES:
        if (new / name).exists():
            (new / name).rename(folder / name)
    _remove_entries(old)


def _put_back(staging: Path, folder: Path) -> None:
    """Undo a replacement that was cut off, and remove its hidden folder."""
    if not (folder / MANIFEST).is_file():
        if (staging / OLD).is_dir():
            # what is not there any more was moved in
            moved_in = [name for name in ENTRIES if not (staging / NEW / name).exists()]
            _remove_entries(folder, moved_in)
        for part in (OLD, MOVING):
            for name in ENTRIES:
                if (staging / part / name).exists():
                    _remove_entries(folder, [name])
                    (staging / part / name).replace(folder / name)
    for part in (NEW, MOVING, OLD):
        _remove_entries(staging / part)
        with suppress(OSError):
            (staging / part).rmdir()
    with suppress(OSError):
        staging.rmdir()


def _remove_entries(folder: Path, names: Sequence[str] = ENTRIES) -> None:
    """Remove a bundle's entries of these names: its own files one by one, then empty folders."""
    for name in names:
        if name != MEMBERS:
            (folder / name).unlink(missing_ok=True)
            continue
        for member in folder.glob(f"{MEMBERS}/*"):
            for file in MEMBER_FILES:
                (member / file).unlink(missing_ok=True)
            with suppress(OSError):
                member.rmdir()
        with suppress(OSError):
            (folder / MEMBERS).rmdir()


def _refuse_foreign(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: choose another with -o or --export")
    stagings = {path.name for path in _stagings(folder)}
    names = {path.name for path in folder.iterdir()} - stagings
    foreign = sorted(name for name in names if not _is_entry(folder / name))
    cut_off = any((folder / name / part).is_dir() for name in stagings for part in (MOVING, OLD))
    if not foreign and names and not cut_off and not _is_manifest(folder / MANIFEST):
        foreign = sorted(names)
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if foreign[5:] else "")
        raise BundleError(
            f"{folder} holds files that are not an exported model's ({shown}): nothing was "
            "changed; choose another folder with -o or --export, or move that away"
        )


def _is_entry(path: Path) -> bool:
    """Whether a path is what a bundle has under that name, with nothing else in it."""
    if path.name != MEMBERS:
        return path.name in BUNDLE_FILES and path.is_file()
    return _is_folder(path) and all(
        found.name.isdecimal()
        and _is_folder(found)
        and all(file.name in MEMBER_FILES and file.is_file() for file in found.iterdir())
        for found in path.iterdir()
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_manifest(path: Path) -> bool:
    """Whether a file is the manifest of a bundle, of whatever version."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and "format_version" in content


def _stagings(folder: Path) -> list[Path]:
    """Hidden folders that killed exports left behind, without other files in them."""
    return [path for path in folder.glob(f"{STAGING}*") if _is_staging(path)]


def _is_staging(path: Path) -> bool:
    return _is_folder(path) and all(
        part.name in (NEW, MOVING, OLD)
        and _is_folder(part)
        and all(_is_entry(entry) for entry in part.iterdir())
        for part in path.iterdir()
    )


@contextmanager
def _only_exporter(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself, so that no file is left of it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError(
                f"another process exports to {folder} now: wait for it, or choose another folder"
            ) from error
        except OSError as error:
            # network file systems that lock no folders: there each export has its own hidden one
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(handle)


def _unwritable(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"{folder} cannot be written ({error.strerror or error}): choose another folder with "
        "-o or --export"
    )
