"""Where the cache is, and what keeps it from being written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import DatasetError
from training.local_path import folder_problem, is_url, url_refusal


def cache_root() -> Path:
    """Folder of all preprocessed data: `$SEGTUNE_CACHE`, or `segtune` in the user's cache.

    Raises:
        DatasetError: if `$SEGTUNE_CACHE` is an address.
    """
    if "SEGTUNE_CACHE" in os.environ:
        if is_url(os.environ["SEGTUNE_CACHE"]):
            why = "the cache is memory-mapped"
            raise DatasetError(f"SEGTUNE_CACHE: {url_refusal(os.environ['SEGTUNE_CACHE'], why)}")
        return Path(os.environ["SEGTUNE_CACHE"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "segtune"


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Turn what goes wrong with the cache into an error that says what to do.

    Errors of the data themselves must be `DatasetError` before they get here.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            way_out = "make room, or choose another folder"
        elif (problem := _blocked_by(root)) is not None:
            raise DatasetError(
                f"the cache {root} cannot be used: {problem}; choose another folder with the "
                "environment variable SEGTUNE_CACHE"
            ) from error
        else:
            way_out = "choose another folder"
        raise DatasetError(
            f"the cache {root} cannot be used ({error.strerror or error}): {way_out} with the "
            "environment variable SEGTUNE_CACHE"
        ) from error


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def _blocked_by(root: Path) -> str | None:
    """What stands where the cache's folder should be."""
    for path in (root, *root.parents):
        if os.path.lexists(path):
            problem = folder_problem(path)
            return None if problem is None else f"{path} {problem}"
    return None
