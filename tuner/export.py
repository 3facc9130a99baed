"""Which trial and which checkpoint of a study become the exported model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from rich.table import Table

from training.bundle import (
    BundleError,
    Manifest,
    clean_metrics,
    load_checkpoint,
    verify_bundle,
    write_bundle,
)
from training.bundle_folder import check_bundle_folder
from training.callbacks import BEST_CHECKPOINT
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloaders
from training.trainer import SegmentationTrainer
from tuner.config_files import config_file
from tuner.confirm import CONFIRM_FOLDER, SEED, confirm_record, confirmed_configs
from tuner.errors import ExportError
from tuner.lineage import schedule
from tuner.no_winner import no_winner, way_out
from tuner.record import TrialEntry
from tuner.trial import trial_folder

if TYPE_CHECKING:
    from tuner.study import Study


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: The bundle.
        trial: The exported trial, in words.
        epoch: Epoch of its best checkpoint.
        verified_case: Case on which the bundle was compared with the trial's model.
        metrics: Validation metrics of the checkpoint, and test metrics if there are test cases.
        labels: Name of each label value, background first.
        tolerance: Tolerance of the normalised surface Dice, in mm.
    """

    folder: Path
    trial: str
    epoch: int
    verified_case: str
    metrics: dict[str, float]
    labels: list[str]
    tolerance: float

    def test_table(self) -> Table | None:
        """Test metrics of each class and their means, for people; None without test cases."""
        if "test_dice" not in self.metrics:
            return None
        headings = ["test cases", "Dice", f"NSD {self.tolerance:g} mm", "HD95 mm", "ASSD mm"]
        table = Table(*headings, "missing", caption="missing: cases without a distance")
        for column in table.columns[1:]:
            column.justify = "right"
        for label, name in enumerate(self.labels):
            if f"test_dice_{label}" in self.metrics:
                table.add_row(name, *self._test_cells(f"_{label}"))
        table.add_row("mean", *self._test_cells(""))
        return table

    def _test_cells(self, suffix: str) -> list[str]:
        values = [
            self.metrics.get(f"test_{name}{suffix}", math.nan)
            for name in ("dice", "nsd", "hd95", "assd")
        ]
        decimals = (4, 4, 2, 2)
        missing = self.metrics.get(f"test_hd95{suffix}_missing", math.nan)
        return [
            *(_number(value, places) for value, places in zip(values, decimals, strict=True)),
            _number(missing, 0),
        ]


def export_trial(study: Study, folder: Path, number: int | None = None) -> Exported:
    """Export a trial's best checkpoint as a bundle, and check that the bundle predicts alike.

    Args:
        study: The study.
        folder: Where the bundle goes; an older bundle there is replaced.
        number: A trial of the search. By default the seed with the best validation score of the
            config that the confirmation chose, or without one the best trial.

    Raises:
        ExportError: if there is no such trial, it has no checkpoint, or the bundle differs.
    """
    check_bundle_folder(folder)
    chosen = _chosen(study, number)
    entry = chosen.entry
    best = entry.best(study.record.mode)
    source = trial_folder(chosen.folder, entry.number)
    checkpoint = source / f"{BEST_CHECKPOINT}.ckpt"
    if best is None or not checkpoint.is_file():
        raise ExportError(
            f"{chosen.name} of the study {study.name!r} has no checkpoint "
            f"({entry.state}: {entry.reason}): choose another with --trial"
        )
    provenance = study.provenance()
    config = _config(config_file(source, best[0]), source, provenance)
    dataset = _dataset(study, config)
    try:
        module = load_checkpoint(checkpoint, config)
        metrics = {**entry.metrics, **_test_metrics(config, checkpoint, source)}
        manifest = Manifest(
            labels=list(dataset.labels),
            channels=list(dataset.channels),
            metrics=clean_metrics(metrics),
            provenance={
                **provenance,
                "study": study.name,
                "trial": chosen.name if chosen.trial is None else chosen.trial,
                "seed": config.seed,
                "confirmed": chosen.confirmed,
                "epoch": best[0],
                **_schedule(study, entry.number, best[0]),
            },
        )
        case = dataset.splits["val"][0]
        cached = torch.from_numpy(np.array(dataset.image(case)))
        write_bundle(
            folder,
            module=module,
            config=config,
            preprocessing=dataset.preprocessing,
            manifest=manifest,
            verify=lambda new: verify_bundle(
                new, module, dataset.image_paths(case), cached, dataset.cases[case].label
            ),
        )
    except BundleError as error:
        raise ExportError(str(error)) from error
    return Exported(
        folder,
        chosen.name,
        best[0],
        case,
        metrics,
        labels=list(dataset.labels),
        tolerance=config.surface_tolerance,
    )


def _schedule(study: Study, number: int, epoch: int) -> dict[str, Any]:
    """The values of an epoch, and of the epochs before it if several trials trained them."""
    stretches = schedule(study.record.entries, number, epoch)
    values: dict[str, Any] = {"values": dict(stretches[-1].values)}
    if len(stretches) > 1:
        values["schedule"] = [asdict(stretch) for stretch in stretches]
    return values


def _number(value: float, decimals: int) -> str:
    return "not defined" if math.isnan(value) else f"{value:.{decimals}f}"


@dataclass(frozen=True)
class _Chosen:
    """A trial to export, and the folder with its trial folder."""

    entry: TrialEntry
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
    confirmation = confirm_record(study.folder, study.spec)
    confirmed = confirmed_configs(study.record, confirmation, study.spec)
    if confirmed:
        candidate, entry = confirmed[0].candidate, confirmed[0].trials[0]
        name = f"{candidate.name} with seed {entry.notes[SEED]}, confirmed,"
        return _Chosen(entry, study.folder / CONFIRM_FOLDER, name, candidate.trial, confirmed=True)
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
    if study.finished and study.record.entries:
        return (
            f"the study {study.name!r} has ended, and {no_winner(study.record)}: "
            f"{way_out(study.record, study.name)}"
        )
    return (
        f"the study {study.name!r} has no trial with a score yet: "
        f"go on with `tune resume {study.name}`"
    )


def _searched(study: Study, entry: TrialEntry) -> _Chosen:
    name = f"trial {entry.number}"
    return _Chosen(entry, study.folder, name, entry.number, confirmed=False)


def _config(path: Path, source: Path, provenance: dict[str, Any]) -> ModelTrainingConfig:
    """The config of a trial; paths inside it are where the study folder is now."""
    config = ModelTrainingConfig(**yaml.safe_load(path.read_text()))
    config.log_dir = source
    config.checkpoint_dir = source
    config.data_dir = Path(provenance["data"]["preprocessed"])
    config.gpus = 1
    return config


def _dataset(study: Study, config: ModelTrainingConfig) -> PreprocessedDataset:
    if not config.data_dir.is_dir():
        from tuner.dataset import prepare_data

        config.data_dir = prepare_data(study.spec).preprocessed
    return PreprocessedDataset.load(config.data_dir)


def _test_metrics(config: ModelTrainingConfig, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Metrics on the cases that no trial has seen, {} if there are none."""
    train_loader, val_loader, test_loader = get_dataloaders(config)
    if test_loader is None:
        return {}
    module = load_checkpoint(checkpoint, config)
    trainer = SegmentationTrainer(
        config, module, train_loader, val_loader, test_loader, progress_bar=False
    )
    metrics = trainer.test(checkpoint=checkpoint)
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith("test_") and not math.isinf(value)
    }
