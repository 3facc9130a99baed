"""Recognises addresses such as `s3://bucket/folder`, which are not local paths."""

from __future__ import annotations

import os
import re
from pathlib import Path


def is_url(path: Path | str) -> bool:
    """Whether a path is an address; `Path` makes `s3:/` of its `s3://`, and `s3:` of that alone.

    Example:
        >>> is_url(Path("s3://bucket/studies")), is_url("file:///data"), is_url("C:/data")
        (True, True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)", str(path)) is not None


def url_refusal(path: Path | str, why: str = "files are read and written there directly") -> str:
    """Why an address is refused, and the way out.

    Example:
        >>> url_refusal(Path("s3://bucket"), "the cache is memory-mapped")
        's3://bucket is an address, not a folder or file that this machine has mounted, and the \
cache is memory-mapped: mount the storage and give the plain path'
    """
    scheme, _, rest = str(path).partition(":")
    root = "/" if scheme.lower() == "file" else ""
    return (
        f"{scheme}://{root}{rest.lstrip('/')} is an address, not a folder or file that this "
        f"machine has mounted, and {why}: mount the storage and give the plain path"
    )


def folder_problem(path: Path) -> str | None:
    """Why there is no readable folder at a path, None if there is one."""
    if (problem := absence(path)) is not None:
        return "this folder is missing" if problem == MISSING else problem
    if not path.is_dir():
        return "is a file, but must be a folder"
    if not os.access(path, os.R_OK | os.X_OK):
        return "cannot be listed: permission denied"
    return None


MISSING = "is missing"


def absence(path: Path) -> str | None:
    """Why nothing is found at a path, None if something is."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a broken link to {os.readlink(path)}"
        return MISSING
    except OSError as error:
        # a folder above it without permission, a link to itself, a name too long
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return None
