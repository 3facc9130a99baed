"""Which earlier studies a new one may learn from, and what is taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyError
from tuner.study.files import WARM_START
from tuner.study.warm_start import import_trials, write_imported

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec.study_spec import StudySpec
    from tuner.study.data import StudyData
    from tuner.study.study import Study


def not_imported(study: Study) -> list[str]:
    """Names of the studies whose trials a study is still to copy into its folder."""
    return [] if (study.folder / WARM_START).is_file() else study.spec.search.warm_start


def check_comparable(earlier: Sequence[Study], spec: StudySpec) -> None:
    """Check that earlier studies compare trials by the same metric.

    Raises:
        StudyError: naming one that does not.
    """
    for other in earlier:
        if (other.spec.metric, other.spec.mode) != (spec.metric, spec.mode):
            raise StudyError(
                f"warm_start: the study {other.name!r} compares trials by {other.spec.metric}, "
                f"this one by {spec.metric}: choose another study"
            )


def import_earlier(
    study: Study, data: StudyData, earlier: Sequence[Study], console: Console | None
) -> None:
    """Copy the trials of earlier studies that fit the space into the study folder.

    Args:
        study: The study.
        data: Data and completed spec of the study.
        earlier: The earlier studies.
        console: Where to say how many fit.

    Raises:
        StudyError: if one of them was made on other data.
    """
    kept: list[dict[str, Any]] = []
    for other in earlier:
        fingerprint = other.provenance()["data"]["fingerprint"]
        if fingerprint != data.fingerprint:
            raise StudyError(
                f"warm_start: the study {other.name!r} was made on other data than {data.source} "
                f"(fingerprint {fingerprint}, here {data.fingerprint}): scores cannot be compared"
            )
        trials, imported = import_trials(other, data.spec)
        kept += trials
        if console is not None:
            console.print(f"warm start     {imported.describe()}", markup=False)
    write_imported(study.folder, kept)
