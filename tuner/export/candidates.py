"""The trained networks that an ensemble may have: the winner, and the best of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from training.bundle.member import SHARED_FIELDS
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset
from training.errors import DatasetError
from tuner.spec.recipes import DEFAULTS_OF_FORMAT_2
from tuner.study.chosen_checkpoint import ChosenCheckpoint, choose_checkpoint
from tuner.study.config_files import config_file
from tuner.study.files import CONFIG_FILE, fold_folder, trial_folder
from tuner.study.trial_entry import TrialEntry, ranked

if TYPE_CHECKING:
    from tuner.study.study import Study

POOL = 2
"""How many candidates there are for each network that an ensemble may have."""


@dataclass(frozen=True)
class Candidate:
    """A trial whose checkpoints may be exported.

    Attributes:
        name: The trial, in words.
        config: The config that its first fold was trained with; its paths are those of now.
        chosen: The checkpoint of its first fold.
        further: Configs and checkpoints of its further folds, which belong to it in an ensemble.
    """

    name: str
    config: ModelTrainingConfig
    chosen: ChosenCheckpoint
    further: tuple[tuple[ModelTrainingConfig, Path], ...] = ()

    @property
    def checkpoint(self) -> Path:
        """The file of `chosen`."""
        return self.chosen.path

    @property
    def networks(self) -> tuple[tuple[ModelTrainingConfig, Path], ...]:
        """Config and checkpoint of each fold."""
        return ((self.config, self.checkpoint), *self.further)


def other_candidates(
    study: Study, winner: Candidate, ensemble: int, provenance: dict[str, Any]
) -> list[Candidate]:
    """The best other trials of the search that have ended and have a checkpoint, best first.

    Args:
        study: The study.
        winner: What is exported alone if no ensemble is better.
        ensemble: How many networks an ensemble may have.
        provenance: Where the study comes from.
    """
    found: list[Candidate] = []
    for entry in _ended(study):
        if len(found) >= POOL * ensemble - 1:
            break
        candidate = candidate_of(f"trial {entry.number}", entry, study, study.folder, provenance)
        if candidate is None or candidate.checkpoint == winner.checkpoint:
            continue
        one, other = candidate.config, winner.config
        alike = all(getattr(one, name) == getattr(other, name) for name in SHARED_FIELDS)
        if winner.further:
            candidate = with_folds(candidate, entry, study)
        # all of them predict the same validation cases
        if alike and len(candidate.networks) == len(winner.networks):
            found.append(candidate)
    return found


def candidate_of(
    name: str, entry: TrialEntry, study: Study, folder: Path, provenance: dict[str, Any]
) -> Candidate | None:
    """The candidate of a trial; None if it has no checkpoint, or no score.

    Args:
        name: The trial, in words.
        entry: The trial.
        study: The study.
        folder: The folder with its trial folder, that of the study or of its confirmation.
        provenance: Where the study comes from.
    """
    source = trial_folder(folder, entry.number)
    # with several folds, the checkpoint beside the trial's config is that of the first
    chosen = choose_checkpoint(source, entry.scores_of_fold(0), study.record.mode)
    if chosen is None:
        return None
    config = _read_config(config_file(source, chosen.epoch))
    config.log_dir = source
    config.checkpoint_dir = source
    config.data_dir = Path(provenance["data"]["preprocessed"])
    config.gpus = 1
    return Candidate(name, config, chosen)


def with_folds(candidate: Candidate, entry: TrialEntry, study: Study) -> Candidate:
    """A trial of a search with the networks of all its folds, where all of them are there."""
    folder = candidate.checkpoint.parent
    further = []
    for fold in range(1, study.spec.folds):
        place = fold_folder(folder, fold)
        chosen = choose_checkpoint(place, entry.scores_of_fold(fold), study.record.mode)
        if chosen is None:
            return candidate
        config = _read_config(place / CONFIG_FILE)
        config.log_dir = config.checkpoint_dir = place
        config.gpus = 1
        try:
            PreprocessedDataset.load(config.data_dir)
        except DatasetError:
            # without its split nobody knows which cases it was not trained on
            return candidate
        further.append((config, chosen.path))
    return replace(candidate, further=tuple(further))


def _read_config(path: Path) -> ModelTrainingConfig:
    """The config that a trial trained with, as its file has it."""
    values = yaml.safe_load(path.read_text())
    # a file of an earlier version lacks fields, whose data were prepared as then
    return ModelTrainingConfig(**{**DEFAULTS_OF_FORMAT_2, **values})


def _ended(study: Study) -> list[TrialEntry]:
    """Trials of the search that have ended, the best first."""
    ended = (entry for entry in study.record.entries.values() if entry.state.finished)
    return ranked(ended, study.record.mode)
