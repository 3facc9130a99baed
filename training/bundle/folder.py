"""The folder of an exported model: filled or replaced whole, and nothing else in it touched.

A new bundle is written into a hidden folder inside the target, then moved in file by file, with
the manifest last. Without a manifest a folder is not a bundle, so one that is half replaced is
never taken for a whole one, and the old files are put back by the next export.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.durable_write import check_writable
from training.errors import BundleError
from training.local_path import is_url, url_refusal

WEIGHTS = "weights.pt"
CONFIG = "config.yaml"
PREPROCESSING = "preprocessing.json"
MANIFEST = "bundle.json"

BUNDLE_FILES = (WEIGHTS, CONFIG, PREPROCESSING, MANIFEST)
"""All files of a bundle; the manifest is written last and removed first."""

STAGING = ".segtune-export-"
"""Prefix of the name of the hidden folder."""

NEW, OLD = "new", "old"


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
    """Move the old files out and the new ones in."""
    for name in BUNDLE_FILES:
        with (staging / NEW / name).open("rb") as file:
            os.fsync(file.fileno())
    old = staging / OLD
    old.mkdir()
    for name in reversed(BUNDLE_FILES):
        if (folder / name).is_file():
            (folder / name).rename(old / name)
    for name in BUNDLE_FILES:
        (staging / NEW / name).rename(folder / name)
    for name in BUNDLE_FILES:
        (old / name).unlink(missing_ok=True)


def _put_back(staging: Path, folder: Path) -> None:
    """Undo a replacement that was cut off, and remove its hidden folder."""
    if not (folder / MANIFEST).is_file() and (staging / OLD).is_dir():
        for name in BUNDLE_FILES:
            if (staging / OLD / name).is_file():
                (staging / OLD / name).replace(folder / name)
            elif not (staging / NEW / name).is_file():
                # a new file that was moved in already
                (folder / name).unlink(missing_ok=True)
    for part in (NEW, OLD):
        for name in BUNDLE_FILES:
            (staging / part / name).unlink(missing_ok=True)
        with suppress(OSError):
            (staging / part).rmdir()
    with suppress(OSError):
        staging.rmdir()


def _refuse_foreign(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: choose another with -o or --export")
    stagings = {path.name for path in _stagings(folder)}
    names = {path.name for path in folder.iterdir()} - stagings
    foreign = sorted(
        name for name in names if name not in BUNDLE_FILES or not (folder / name).is_file()
    )
    cut_off = any((folder / name / OLD).is_dir() for name in stagings)
    if not foreign and names and not cut_off and not _is_manifest(folder / MANIFEST):
        foreign = sorted(names)
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if foreign[5:] else "")
        raise BundleError(
            f"{folder} holds files that are not an exported model's ({shown}): nothing was "
            "changed; choose another folder with -o or --export, or move that away"
        )


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
    if not path.is_dir() or path.is_symlink():
        return False
    inside = {found.relative_to(path) for found in path.rglob("*")}
    own = {Path(part, name) for part in (NEW, OLD) for name in BUNDLE_FILES}
    return inside <= {*own, Path(NEW), Path(OLD)}


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
