"""What only the driver of a study may do: hold its lock, close its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from training.durable_write import write_durably
from tuner.errors import StudyError, TunerError
from tuner.spec.load import load_resolved_spec
from tuner.spec.yaml_source import Override
from tuner.study.confirmation import open_confirmation
from tuner.study.files import RESOLVED_SPEC
from tuner.study.folder import driver_lock
from tuner.study.remote.place import remote_place
from tuner.study.spec_changes import spec_changes
from tuner.study.study import Study

DRIVER_GONE = "cut off: the process that ran the study ended unexpectedly"
"""Reason of trials that a driver left running."""

DRIVER_FAILED = "cut off: the study ended by an error, or was ended at once"
"""Reason of trials that were running when the driver failed."""


def close_records(study: Study, reason: str) -> None:
    """Close what a driver that was cut off left running; the caller holds the study's lock."""
    study.record.close_running(reason)
    confirmation = open_confirmation(study)
    if confirmation is not None:
        confirmation.record.close_running(reason)
        confirmation.record.close()


@contextmanager
def only_driver(study: Study, tell: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock of a study, which is as it was opened.

    Args:
        study: The study.
        tell: Takes a sentence when the storage of a study at an address does not answer.
    """
    with driver_lock(study.folder, study.record.halt, tell):
        # the driver before may have written on since the study was opened
        study.record.reload()
        path = study.folder / RESOLVED_SPEC
        if spec_changes(load_resolved_spec(path), study.spec):
            raise StudyError(
                f"another process gave the study {study.name!r} another search space just now: "
                "choose another --name"
            )
        close_records(study, DRIVER_GONE)
        try:
            yield
        except BaseException:
            # the error is what counts
            with suppress(TunerError):
                close_records(study, DRIVER_FAILED)
            raise
        finally:
            study.record.close()


def close_if_not_driven(study: Study) -> bool:
    """Close the records of a study that nobody drives, as far as its folder can be written.

    Returns:
        Whether nobody drives it, and its records are closed now. Those of a study at an address are
        closed by the next one that runs it.
    """
    if remote_place(study.folder) is not None:
        return False
    try:
        with only_driver(study):
            return True
    except (StudyError, OSError):
        return False


def change_budgets(study: Study, overrides: Mapping[str, Override]) -> Study:
    """The study with other budgets, which its folder keeps.

    Args:
        study: The study; nobody may run it now.
        overrides: Values of the section `search`, by dotted key.

    Raises:
        SpecError: if a value is not valid.
        StudyError: if another process runs the study.
    """
    spec = study.spec.with_settings(overrides)
    with only_driver(study):
        write_durably(study.folder / RESOLVED_SPEC, spec.to_yaml())
    return replace(study, spec=spec, before=None)
