"""Writes files atomically and durably, also if the process or the machine is stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Suffix of the name of a file that is still being written."""

DAMAGED = ".damaged"
"""Suffix that is added to the name of a damaged file."""


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when all of it is on the disk.

    Raises:
        OSError: if it cannot be written, for a full disk say; a file that was there stays.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # the name itself is part of the folder
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names of the files of a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file in full or not at all."""
    with durable_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def link_durably(source: Path, target: Path) -> None:
    """Give a file that is replaced and never changed a second name: a link, or a copy of it."""
    partial = target.with_name(target.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        # a file system without hard links
        shutil.copyfile(source, partial)
    partial.replace(target)


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or made with it where it is not there.

    Nothing is left behind.

    Raises:
        OSError: if not.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass
