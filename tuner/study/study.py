"""A study: its folder, its spec and its record, passed whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError
from tuner.spec.grid import planned_trials
from tuner.study.commands import study_command
from tuner.study.files import CONFIRM_FOLDER, PROVENANCE
from tuner.study.folder import holds_study

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.folder import FolderBefore
    from tuner.study.record import StudyRecord


@dataclass(frozen=True)
class Study:
    """A study folder that was opened.

    Attributes:
        folder: The study folder.
        spec: Its resolved spec; while it runs, with what the data decide.
        record: Its trials.
        before: What there was of its folder when this call began to make it, None if it was
            opened.
    """

    folder: Path
    spec: StudySpec
    record: StudyRecord
    before: FolderBefore | None = None

    @property
    def name(self) -> str:
        """Name of the study: that of its folder."""
        return self.folder.name

    @property
    def label(self) -> str:
        """Name of the study for others to see: a confirmation has that of its study as well."""
        study = self.folder.parent
        if self.folder.name == CONFIRM_FOLDER and holds_study(study):
            return confirmation_label(study.name)
        return self.name

    @property
    def searched(self) -> bool:
        """Whether every trial of the search has ended."""
        entries = self.record.entries.values()
        return len(entries) >= planned_trials(self.spec) and all(
            entry.state.finished for entry in entries
        )

    def provenance(self) -> dict[str, Any]:
        """Versions, commit and data of the study.

        Raises:
            StudyError: if they cannot be read.
        """
        try:
            values: dict[str, Any] = json.loads((self.folder / PROVENANCE).read_text())
        except FileNotFoundError as error:
            raise StudyError(
                f"the study {self.name!r} has not begun ({PROVENANCE} is not there): start it "
                f"with `{study_command('resume', self.folder)}`"
            ) from error
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{self.folder / PROVENANCE} cannot be read ({error}): put back a copy of it"
            ) from error
        return values


def confirmation_label(name: str) -> str:
    """Name of the confirmation of a study for others to see."""
    return f"{name}-{CONFIRM_FOLDER}"


def actor_name(label: str) -> str:
    """What Ray's dashboard, its logs and the list of processes call a trial's actor.

    Ray shows what follows the last dot.
    """
    return label.replace(".", "_")
