"""Which paths are none of this machine: addresses such as `s3://bucket/folder`."""

from __future__ import annotations

import re
from pathlib import Path


def is_url(path: Path | str) -> bool:
    """Whether a path is an address; `Path` makes `s3:/` of its `s3://`.

    Example:
        >>> is_url(Path("s3://bucket/studies")), is_url("file:///data"), is_url("C:/data")
        (True, True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None


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
