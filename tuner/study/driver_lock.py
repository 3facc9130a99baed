"""Whether a process drives a study: it holds the lock of the study's folder."""

from __future__ import annotations

import fcntl
import os
from contextlib import closing
from pathlib import Path

from tuner.study.files import DRIVER_LOCK
from tuner.study.remote.study import driven_elsewhere


def driver_is_running(folder: Path) -> bool:
    """Whether a process drives the study of a folder.

    It asks for a share of the lock and gives it back at once, which needs no right to write. Where
    the file system has no locks, a driver is assumed to run, as in the record.

    Args:
        folder: The study folder.

    Raises:
        StudyError: if the study is at an address, and the storage does not answer.
    """
    return _is_locked(folder) or driven_elsewhere(folder)


def _is_locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / DRIVER_LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        # a driver makes the file before anything else, and never removes it
        return False
    except OSError:
        return True
    with closing(os.fdopen(descriptor)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
