"""Files that are on the disk in full or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""What the name of a file ends in while it is written."""

DAMAGED = ".damaged"
"""What the name of a file that cannot be used is made to end in."""


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


def write_durably(path: Path, text: str) -> None:
    """Write a text file in full or not at all."""
    with durable_file(path) as file:
        file.write(text.encode())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is whole whenever it is there, whatever ends the process."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
