"""Command lines for a study, ready to be typed in the working folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from tuner.study.files import DRIVER_LOCK
from tuner.study.remote.place import shown_studies_dir

STUDIES = Path("studies")
"""Where a command looks for studies unless `--studies-dir` says otherwise."""


def study_command(verb: str, folder: Path) -> str:
    """`tune VERB NAME` for a study, with `--studies-dir` where it needs that.

    Args:
        verb: `resume`, `status` or `export`.
        folder: The study's folder, or that of its confirmation inside it.
    """
    # only a study's folder has a lock: this is the confirmation's
    study = folder.parent if (folder.parent / DRIVER_LOCK).is_file() else folder
    return f"tune {verb} {shlex.quote(shown_name(study.name))}{studies_option(study.parent)}"


def studies_option(studies_dir: Path) -> str:
    """The option that names the folder of the studies; "" for the usual one."""
    if studies_dir.absolute() == STUDIES.absolute():
        return ""
    return f" --studies-dir {shlex.quote(shown_name(shown_studies_dir(studies_dir)))}"


def shown_name(name: str) -> str:
    """A name as a terminal can show it: no line breaks, control characters or undecodable bytes."""
    text = name.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)
