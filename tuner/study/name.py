"""Checks study names, before the libraries of the trials are loaded."""

from __future__ import annotations

import os
import re

from tuner.errors import StudyError

LONGEST_NAME = 255
"""Bytes of a file name on the usual file systems."""


def check_name(name: str) -> None:
    """Check that a folder can have a name.

    Raises:
        StudyError: if it is too long.
    """
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise StudyError(
            f"the study name {name[:20]}... has {len(name)} characters: file systems do not "
            f"allow that; choose another --name of at most {LONGEST_NAME}"
        )


def check_new_name(name: str) -> None:
    """Check that a new study can have a name.

    Raises:
        StudyError: if it is too long, or has characters that are not for names.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StudyError(
            f"the study name {name!r} must start with a letter or digit and "
            "hold only letters, digits, '.', '_' and '-'"
        )
    check_name(name)
