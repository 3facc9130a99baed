"""Exports a checkpoint of a study as a bundle: chooses the trial, writes and verifies it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from training.bundle.bundle import write_bundle
from training.bundle.case_prediction import Tell
from training.bundle.case_scores import Grid, scoring_device
from training.bundle.folder import check_bundle_folder
from training.bundle.manifest import Manifest, clean_metrics
from training.bundle.member import Member, load_checkpoint
from training.bundle.verify import verify_bundle, verify_network
from training.data.prepared.cache import FORMAT_VERSION
from training.errors import BundleError, DatasetError
from tuner.errors import ExportError
from tuner.export.candidates import Candidate, candidate_of, other_candidates, with_folds
from tuner.export.choice import Choice
from tuner.export.choose import choose
from tuner.export.data import WAY_OUT, ExportData, find_data
from tuner.export.held_out import gain_over_default, score_test_cases, test_prefix
from tuner.spec.plugins import import_plugins
from tuner.study.code import study_code
from tuner.study.commands import study_command
from tuner.study.confirmation import SEED, confirmed_configs, is_finished, open_confirmation
from tuner.study.lineage import schedule
from tuner.study.no_winner import no_winner, way_out
from tuner.study.provenance import PREPARATION, RESUMED
from tuner.study.remote.study import fetch_checkpoints
from tuner.study.trial_entry import TrialEntry, TrialState

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from tuner.spec.settings import ExportSettings
    from tuner.study.study import Study


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder: The bundle.
        trial: The exported trial, in words.
        epoch: Epoch of its checkpoint, its best or its last one.
        verified: On what the bundle was compared with the trial's model, in words.
        metrics: Validation metrics of the checkpoint, and test metrics if there are test cases:
            `test_*` against the label files, `preprocessed_test_*` on the preprocessed grid.
        grid: Which of the two the test metrics are, None for none.
        labels: Name of each class, background first.
        scored: Names of what is scored, the classes or regions, with the part of it in the names of
            scores.
        tolerance: Tolerance of the normalised surface Dice, in mm.
        notes: What could not be done as usual, in words.
        members: The exported networks, in words.
        choice: Members, mirroring and postprocessing with the reasons, in words.
        winner_metrics: Test metrics of the trial by itself, without mirroring and postprocessing;
            those of `metrics` where that is what was exported.
    """

    folder: Path
    trial: str
    epoch: int
    verified: str
    metrics: dict[str, float]
    grid: Grid | None
    labels: list[str]
    scored: dict[str, str]
    tolerance: float
    notes: list[str]
    members: list[str]
    choice: list[str]
    winner_metrics: dict[str, float]

    def test_scores(self, metrics: Mapping[str, float] | None = None) -> dict[str, list[float]]:
        """Test scores of each class and their means (`mean`); {} without test cases.

        A list has Dice, NSD, HD95 and ASSD (in mm), and the number of cases without a distance.

        Args:
            metrics: `winner_metrics` for those of the trial by itself; those of what was exported
                by default.
        """
        if self.grid is None:
            return {}
        found = self.metrics if metrics is None else metrics
        prefix = test_prefix(self.grid)
        known = {
            name: f"_{part}"
            for name, part in self.scored.items()
            if f"{prefix}dice_{part}" in found
        }
        return {
            name: [
                found.get(f"{prefix}{score.format(suffix)}", math.nan)
                for score in ("dice{}", "nsd{}", "hd95{}", "assd{}", "hd95{}_missing")
            ]
            for name, suffix in {**known, "mean": ""}.items()
        }


def export_study(
    study: Study,
    folder: Path,
    number: int | None = None,
    data_dir: Path | None = None,
    settings: ExportSettings | None = None,
    tell: Tell = lambda line: None,
) -> Exported:
    """Export the best model of a study as a bundle, and check that it predicts as its trials do.

    That is the winner or an ensemble, with mirroring and postprocessing, as the validation cases
    choose, see `tuner.export.choose`. Where the data's files are gone, bundle and test metrics are
    looked at on the preprocessed cases; where these are gone as well, the bundle is written
    without.

    Args:
        study: The study.
        folder: Where the bundle goes; an older bundle there is replaced.
        number: A trial of the search, which is exported alone. By default the winner is the seed
            with the best validation score of the config that the confirmation chose, or without
            one the best trial.
        data_dir: Where the data's files are now; where they were by default.
        settings: What is wanted; those of the study by default.
        tell: Called with a line before each network predicts the validation cases.

    Raises:
        ExportError: if there is no such trial, it has no checkpoint, the bundle differs, or
            `data_dir` holds other data.
        DatasetError: if `data_dir` has not the layout of data.
    """
    check_bundle_folder(folder)
    wanted = settings or study.spec.export
    if number is not None:
        wanted = wanted.model_copy(update={"ensemble": 1})
    fetch_checkpoints(study.folder)
    with study_code(study.folder):
        return _export(study, folder, _chosen(study, number), data_dir, wanted, tell)


def _export(
    study: Study,
    folder: Path,
    chosen: _Chosen,
    data_dir: Path | None,
    settings: ExportSettings,
    tell: Tell,
) -> Exported:
    entry = chosen.entry
    provenance = study.provenance()
    # of several folds that of the first: none is better than another by cases that differ
    name = chosen.name.removesuffix(",")
    winner = candidate_of(name, entry, study, chosen.folder, provenance)
    if winner is None:
        raise ExportError(
            f"{chosen.name} of the study {study.name!r} has no checkpoint "
            f"({entry.state}: {entry.reason}): choose another with --trial"
        )
    import_plugins(study.spec)
    config = winner.config
    data = find_data(study.name, provenance, config, data_dir)
    try:
        alone = Member(
            config, load_checkpoint(winner.checkpoint, config), device=scoring_device(config)
        )
        if settings.ensemble >= study.spec.folds > 1 and chosen.folder == study.folder:
            winner = with_folds(winner, entry, study)
        candidates = [winner]
        if settings.ensemble > 1:
            candidates += other_candidates(study, winner, settings.ensemble, provenance)
        choice = choose(candidates, data, study.spec.metric, settings, study.folder, tell)
        members = _members(choice)
        tested = score_test_cases(data, members, study.spec.metric, choice.postprocessing)
        of_winner = tested
        if not choice.is_plain:
            of_winner = score_test_cases(data, [alone], study.spec.metric)
        gain = gain_over_default(study, data, tested, winner, provenance)
        if gain is not None:
            choice.lines.append(gain.describe())
            choice.document["against_default"] = gain.to_json()
        validated = choice.metrics or _metrics_of(entry, winner, study.spec.metric)
        metrics = {**validated, **tested.metrics}
        manifest = Manifest(
            labels=data.labels,
            channels=data.channels,
            metrics=clean_metrics(metrics),
            provenance={
                **_public_provenance(provenance),
                "study": study.name,
                "trial": chosen.name if chosen.trial is None else chosen.trial,
                "seed": config.seed,
                "confirmed": chosen.confirmed,
                "epoch": winner.chosen.epoch,
                "test_grid": tested.grid,
                **_schedule(chosen.entries, entry.number, winner.chosen.epoch),
            },
            postprocessing=choice.postprocessing,
            choice={
                **choice.document,
                "reasons": choice.lines,
                "winner_test_metrics": clean_metrics(of_winner.metrics),
            },
        )
        verified = write_bundle(
            folder,
            members=members,
            preprocessing=data.preprocessing,
            manifest=manifest,
            verify=lambda new: _verify(new, members, data),
        )
    except BundleError as error:
        raise ExportError(str(error)) from error
    return Exported(
        folder,
        chosen.name,
        winner.chosen.epoch,
        verified,
        metrics,
        tested.grid,
        labels=data.labels,
        scored=_scored(config, data.labels),
        tolerance=config.surface_tolerance,
        notes=data.notes,
        members=[member.name for member in choice.members],
        choice=choice.lines,
        winner_metrics=of_winner.metrics,
    )


def _metrics_of(entry: TrialEntry, winner: Candidate, metric: str) -> dict[str, float]:
    """Validation metrics of the winner's epoch, as the record has them."""
    if not winner.chosen.is_last:
        return entry.metrics_of_fold(0)
    return {metric: entry.scores_of_fold(0)[winner.chosen.epoch]}


def _members(choice: Choice) -> list[Member]:
    """The networks of what was chosen; they rest on the CPU."""
    return [
        Member(
            chosen.config,
            load_checkpoint(chosen.checkpoint, chosen.config),
            chosen.weight,
            chosen.mirror_axes,
            scoring_device(chosen.config),
        )
        for chosen in choice.members
    ]


def _scored(config: ModelTrainingConfig, labels: Sequence[str]) -> dict[str, str]:
    """Names of what a config's scores are of, with the part in the names of scores."""
    if config.label_regions is not None:
        return dict(zip(config.label_regions.names, config.score_names, strict=True))
    values = [str(value) for value in config.values]
    return dict(zip(labels, values, strict=True))


def _public_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance that a bundle keeps: without the folders of the machine."""
    left_out = {PREPARATION, RESUMED}
    public = {name: value for name, value in provenance.items() if name not in left_out}
    data = dict(public["data"])
    # of the cache there is nothing to say elsewhere
    data.pop("preprocessed", None)
    data["source"] = Path(data["source"]).name
    public["data"] = data
    # relative paths may name folders of a user as well
    public["command"] = [argument.rpartition("/")[2] for argument in public.get("command", [])]
    return public


def _schedule(entries: Mapping[int, TrialEntry], number: int, epoch: int) -> dict[str, Any]:
    """The values of an epoch, and of the epochs before it if several trials trained them."""
    stretches = schedule(entries, number, epoch)
    values: dict[str, Any] = {"values": dict(stretches[-1].values)}
    if len(stretches) > 1:
        values["schedule"] = [asdict(stretch) for stretch in stretches]
    return values


@dataclass(frozen=True)
class _Chosen:
    """A trial to export, with the trials of its record and the folder with its trial folder."""

    entry: TrialEntry
    entries: Mapping[int, TrialEntry]
    folder: Path
    name: str
    trial: int | None
    confirmed: bool


def _chosen(study: Study, number: int | None) -> _Chosen:
    if number is not None:
        if number not in study.record.entries:
            last = len(study.record.entries) - 1
            raise ExportError(
                f"the study {study.name!r} has no trial {number}: they are 0 to {last}"
            )
        return _searched(study, study.record.entries[number])
    confirmation = open_confirmation(study)
    confirmed = confirmed_configs(study, confirmation)
    if confirmation is not None and confirmed:
        candidate, entry = confirmed[0].candidate, confirmed[0].trials[0]
        name = f"{candidate.name} with seed {entry.notes[SEED]}, confirmed,"
        return _Chosen(
            entry,
            # trials of the search have the same numbers
            confirmation.record.entries,
            confirmation.folder,
            name,
            candidate.trial,
            confirmed=True,
        )
    best, ended = study.record.best(), study.record.best(running=False)
    if ended is None:
        raise ExportError(_nothing_to_export(study, best))
    chosen = _searched(study, ended)
    if best is not None and best is not ended:
        better = f"{chosen.name} (trial {best.number}, which is better so far, still runs)"
        return replace(chosen, name=better)
    return chosen


def _nothing_to_export(study: Study, best: TrialEntry | None) -> str:
    """Why a study has no model to export, and what to do."""
    if best is not None:
        return (
            f"every trial of the study {study.name!r} that has a score still runs: "
            "export it when one has ended"
        )
    if any(entry.scores for entry in study.record.with_state(TrialState.COMPLETED)):
        return (
            f"the study {study.name!r} has no best trial: {study.spec.metric} was not defined in "
            "any epoch, for no validation case has what it measures; start a study with other "
            "validation cases (fold, split_seed, val_fraction) or another metric, e.g. val_loss"
        )
    if is_finished(study) and study.record.entries:
        return (
            f"the study {study.name!r} has ended, and {no_winner(study.record)}: {way_out(study)}"
        )
    return (
        f"the study {study.name!r} has no trial with a score yet: "
        f"go on with `{study_command('resume', study.folder)}`"
    )


def _searched(study: Study, entry: TrialEntry) -> _Chosen:
    name = f"trial {entry.number}"
    entries = study.record.entries
    return _Chosen(entry, entries, study.folder, name, entry.number, confirmed=False)


def _verify(folder: Path, members: Sequence[Member], data: ExportData) -> str:
    """Compare the written bundle with the trial's model, on the data that are still available.

    Returns:
        On what it was compared, in words.

    Raises:
        BundleError: if they differ.
    """
    # the written bundle predicts on the CPU
    members = [replace(member, device=None) for member in members]
    case = data.splits["val"][0]
    cached = None
    if data.dataset is not None:
        cached = torch.from_numpy(np.array(data.dataset.image(case)))
    if case in data.cases:
        files = data.cases[case]
        # an older version may have preprocessed the same file in another way
        same = data.dataset is not None and data.dataset.format_version == FORMAT_VERSION
        try:
            verify_bundle(
                folder,
                members,
                files.images,
                cached if same else None,
                files.label,
                files.channels,
            )
        except DatasetError as error:
            data.note(str(error))
        else:
            return f"it predicts the case {case} as the trial's model does"
    if cached is not None:
        verify_network(folder, members, cached, f"the preprocessed case {case}")
        data.note(
            f"the image files of the case {case} are not there, or not those of the study: the "
            f"exported model was compared with the trial's on the preprocessed case; {WAY_OUT}"
        )
        return f"it predicts the preprocessed case {case} as the trial's model does"
    voxels = torch.randn(len(data.channels), *members[0].config.known_patch_size)
    verify_network(folder, members, voxels, "random voxels")
    data.note(
        "neither the study's image files nor their cache are there: the exported model was "
        "compared with "
        f"the trial's on random voxels alone, on no case; {WAY_OUT}"
    )
    return "it was not verified on a case"
