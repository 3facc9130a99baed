"""Code of the user's own on the node of a trial."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import PluginError
from tuner.spec.plugins import trial_plugins
from tuner.trial.node_faults import CodeMissingError

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec


def look_into_code(folder: Path | None) -> None:
    """Let this process import the study's code before any other of the same name.

    Args:
        folder: Where the study keeps it; None if it has none.
    """
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def check_code(spec: StudySpec) -> None:
    """Check, in the process of a trial, that the code that the study names can be imported.

    Raises:
        CodeMissingError: naming the node and what it cannot import; every trial there would meet
            it.
    """
    for path, (field, kind) in trial_plugins(spec).items():
        try:
            kind.resolve(path)
        except PluginError as error:
            raise CodeMissingError(
                f"node {socket.gethostname()} cannot import what the study names as {field}: "
                f"{error}; what is installed beside Python is not copied into the study: install "
                "it on that node, then go on"
            ) from error
