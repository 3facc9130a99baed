"""Trials of earlier studies that a searcher learns from.

They are copied into the study folder when the study begins, so that it goes on without the
earlier studies. They are not trials of the study: they count for no budget, are compared at no
rung, and cannot win.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import ModelTrainingConfig
from training.durable_write import write_durably
from tuner.errors import StudyError
from tuner.spec.space import restored_values, stored_values
from tuner.study.files import WARM_START
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialEntry, TrialState, sign_of

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec.space import Space
    from tuner.spec.study_spec import StudySpec
    from tuner.study.study import Study


@dataclass(frozen=True)
class Imported:
    """The trials imported from one earlier study.

    Attributes:
        study: Its name.
        used: Trials that are learned from.
        total: Trials that it has.
        unlike: Fields whose values of this study are unlike those of trials that are used.
    """

    study: str
    used: int
    total: int
    unlike: list[str]

    def describe(self) -> str:
        """The import as one line of text."""
        note = f"; they differ in {', '.join(self.unlike)}" if self.unlike else ""
        return f"{self.used} of {self.total} trials of {self.study} fit this space{note}"


def fitting_values(
    values: Mapping[str, Any], other: StudySpec, spec: StudySpec
) -> tuple[dict[str, Any], list[str]] | None:
    """A trial of another study as a point of this space, and the numbers that it differs in.

    A field that varies here has the value that the trial had, sampled or fixed, which must lie
    in the field's domain. What does not vary here must be the same unless it is a number: a
    number that differs blurs what is learned, another loss or network makes it worthless.

    Args:
        values: Sampled values of the trial.
        other: Spec of its study.
        spec: Spec of this study.

    Returns:
        None if the trial does not fit.
    """
    had = _flat(other, values)
    point: dict[str, Any] = {}
    for name, domain in spec.space.items():
        if spec.space.active(name, point):
            if name not in had or not domain.contains(had[name]):
                return None
            point[name] = had[name]
    here = _flat(spec, point)
    unlike = []
    for name in {*had, *here} - set(spec.space.domains):
        if not _is_hyperparameter(name) or had.get(name) == here.get(name):
            continue
        if not (_is_number(had.get(name)) and _is_number(here.get(name))):
            return None
        unlike.append(name)
    return point, sorted(unlike)


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
    study: Study,
    spec: StudySpec,
    fingerprint: str,
    earlier: Sequence[Study],
    console: Console | None,
) -> None:
    """Copy the trials of earlier studies that fit the space into the study folder.

    Args:
        study: The study.
        spec: Its spec, with what the data decide.
        fingerprint: Of its data.
        earlier: The earlier studies.
        console: Where to say how many fit.

    Raises:
        StudyError: if one of them was made on other data.
    """
    kept: list[dict[str, Any]] = []
    for other in earlier:
        theirs = other.provenance()["data"]["fingerprint"]
        if theirs != fingerprint:
            raise StudyError(
                f"warm_start: the study {other.name!r} was made on other data than those of "
                f"{spec.base_config().data_dir} (fingerprint {theirs}, here {fingerprint}): scores "
                "cannot be compared"
            )
        trials, imported = import_trials(other, spec)
        kept += trials
        if console is not None:
            console.print(f"warm start     {imported.describe()}", markup=False)
    write_imported(study.folder, kept)


def _state_here(state: TrialState) -> TrialState | None:
    """The state of another study's trial in this one; None if it says nothing about its config.

    What ran out of memory, broke a constraint or failed may do well elsewhere.
    """
    if state in {TrialState.COMPLETED, TrialState.DIVERGED}:
        return state
    # paused and cut off: as far as they came
    return TrialState.STOPPED if state.usable else None


def import_trials(earlier: Study, spec: StudySpec) -> tuple[list[dict[str, Any]], Imported]:
    """The trials of an earlier study that fit the space.

    Args:
        earlier: The earlier study.
        spec: Spec of this study.
    """
    kept: list[dict[str, Any]] = []
    unlike: set[str] = set()
    for entry in earlier.record.entries.values():
        state = _state_here(entry.state)
        if state is None or (state is not TrialState.DIVERGED and not entry.scores):
            continue
        fitting = fitting_values(entry.values, earlier.spec, spec)
        if fitting is None:
            continue
        unlike |= set(fitting[1])
        # what came after it took over another trial says nothing of the values it began with
        own = entry.lineage[0].epoch if entry.lineage else entry.epochs
        # further folds have scores of their own
        last = min(own, entry.fold_epochs or own)
        kept.append(
            {
                "study": earlier.name,
                "trial": entry.number,
                "state": (TrialState.STOPPED if own < entry.epochs else state).value,
                "values": stored_values(spec.space, fitting[0]),
                "scores": {
                    str(epoch): score for epoch, score in entry.scores.items() if epoch <= last
                },
                "metrics": entry.metrics,
            }
        )
    return kept, Imported(earlier.name, len(kept), len(earlier.record.entries), sorted(unlike))


def write_imported(folder: Path, trials: Sequence[Mapping[str, Any]]) -> None:
    """Keep imported trials in the study folder, whole or not at all."""
    write_durably(folder / WARM_START, json.dumps(list(trials)))


def read_imported(folder: Path, space: Space) -> dict[int, TrialEntry]:
    """The imported trials of a study, by numbers below 0, {} for none."""
    path = folder / WARM_START
    if not path.is_file():
        return {}
    entries = {}
    for index, kept in enumerate(json.loads(path.read_text())):
        number = -1 - index
        entries[number] = TrialEntry(
            number,
            restored_values(space, kept["values"]),
            TrialState(kept["state"]),
            scores={int(epoch): score for epoch, score in kept["scores"].items()},
            metrics=kept["metrics"],
            proposed_by=f"{kept['study']}, trial {kept['trial']}",
        )
    return entries


def best_point(imported: Mapping[int, TrialEntry], mode: str) -> dict[str, Any] | None:
    """Values of the imported trial with the best score, None if none has a score."""
    sign = sign_of(mode)
    scored = [
        (sign * best[1], entry.number)
        for entry in imported.values()
        if entry.state.usable and (best := entry.best(mode)) is not None
    ]
    return imported[max(scored)[1]].values if scored else None


class LearningRecord:
    """The trials that a searcher learns from: the imported ones, then those of the study.

    Args:
        record: The study's record.
        imported: Trials of earlier studies, by numbers below 0.
    """

    def __init__(self, record: StudyRecord, imported: dict[int, TrialEntry]) -> None:
        self.mode = record.mode
        self.space = record.space
        # the last mapping comes first in the order of a ChainMap
        self.entries: Mapping[int, TrialEntry] = ChainMap(record.entries, imported)
        self._record, self._imported = record, imported

    def with_state(self, *states: TrialState) -> list[TrialEntry]:
        """Trials in one of `states`."""
        ours = self._record.with_state(*states)
        return [*(entry for entry in self._imported.values() if entry.state in states), *ours]


def _flat(spec: StudySpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a trial's config, network arguments by dotted keys."""
    flat = spec.trial_config(values).flat()
    parameters = flat.pop("model_params")
    flat |= {f"model_params.{name}": value for name, value in parameters.items()}
    # as they were given: the config has them as lists
    return {**flat, **values}


def _is_hyperparameter(name: str) -> bool:
    field = name.partition(".")[0]
    extra = ModelTrainingConfig.model_fields[field].json_schema_extra
    searchable = not (isinstance(extra, dict) and extra.get("searchable") is False)
    return searchable and field not in {"seed", "val_batch_size", "gradient_checkpointing"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
