"""Finds the data of a study at export: image files, the cache, or what the study recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data import (
    PreprocessedDataset,
    Preprocessing,
    RawCase,
    prepare_dataset,
    prepared_fingerprint,
    read_layout,
    resolve_data_dir,
)
from training.data.prepared.cache import FORMAT_VERSION
from training.errors import DatasetError
from training.local_path import is_url
from tuner.errors import ExportError
from tuner.study.provenance import PREPARATION

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig


WAY_OUT = "--data-dir DIR says where they are now"


@dataclass(frozen=True)
class ExportData:
    """Data of a study at export: those that a bundle needs, and cases to verify it on.

    Attributes:
        labels: Name of each label value, background first.
        channels: Name of each image channel.
        preprocessing: How an image becomes the network's input, and back.
        splits: Case names of `train`, `val` and `test`.
        dataset: The preprocessed data; None if they are gone.
        cases: Files of each case, where they are there.
        notes: How the data differ from those of training, as sentences.
    """

    labels: list[str]
    channels: list[str]
    preprocessing: Preprocessing
    splits: Mapping[str, list[str]]
    dataset: PreprocessedDataset | None
    cases: Mapping[str, RawCase]
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Add a note, once."""
        if line not in self.notes:
            self.notes.append(line)

    def files(self, split: str) -> list[RawCase]:
        """Files of the cases of a split; [] unless all of them are there."""
        names = self.splits[split]
        return [self.cases[name] for name in names] if set(names) <= set(self.cases) else []


def find_data(
    study: str, provenance: Mapping[str, Any], config: ModelTrainingConfig, data_dir: Path | None
) -> ExportData:
    """Look for the data of a study.

    Args:
        study: Name of the study.
        provenance: Where it comes from, as it was written when it began.
        config: Config of the exported trial.
        data_dir: Where the files are now; where they were by default.

    Raises:
        ExportError: if `data_dir` holds other data, or nothing is left that says how images are
            preprocessed.
        DatasetError: if `data_dir` has not the layout of data.
    """
    recorded = provenance["data"]
    dataset = _cached(Path(recorded["preprocessed"]))
    notes: list[str] = []
    if data_dir is not None:
        cases = _checked_cases(study, data_dir, config, recorded["fingerprint"])
    elif dataset is not None and dataset.format_version != FORMAT_VERSION:
        # an older version's fingerprint is not known here
        cases = _existing_cases(dataset)
    else:
        cases = {}
        source = Path(recorded["source"])
        if is_url(source) or source.is_dir():
            try:
                cases = _checked_cases(study, source, config, recorded["fingerprint"])
            except (DatasetError, ExportError) as error:
                notes.append(str(error))
    if dataset is None and PREPARATION not in provenance:
        dataset = _prepare_again(study, data_dir or Path(recorded["source"]), config)
        cases = cases or _existing_cases(dataset)
    if dataset is not None:
        kept = dataset.model_dump(include={"labels", "channels", "splits"})
        return ExportData(
            **kept, preprocessing=dataset.preprocessing, dataset=dataset, cases=cases, notes=notes
        )
    kept = dict(provenance[PREPARATION])
    preprocessing = Preprocessing.model_validate(kept.pop("preprocessing"))
    return ExportData(**kept, preprocessing=preprocessing, dataset=None, cases=cases, notes=notes)


def _cached(folder: Path) -> PreprocessedDataset | None:
    try:
        dataset = PreprocessedDataset.load(folder)
    except DatasetError:
        return None
    return dataset if dataset.is_complete() else None


def _checked_cases(
    study: str, folder: Path, config: ModelTrainingConfig, fingerprint: str
) -> dict[str, RawCase]:
    """Files of a data folder, which must be the study's own."""
    folder = resolve_data_dir(folder)
    cases = {
        case.case_id: case for case in read_layout(folder.absolute(), config.missing_channels).cases
    }
    found = prepared_fingerprint(folder, config)
    if found != fingerprint:
        raise ExportError(
            f"the data in {folder} are not those that the study {study!r} was made with "
            f"(fingerprint {found}, not {fingerprint}): files were added, removed or changed, or "
            "this version prepares them in another way"
        )
    return cases


def _existing_cases(dataset: PreprocessedDataset) -> dict[str, RawCase]:
    """Cases whose files are where they were read from."""
    return {
        name: entry.as_raw(name)
        for name, entry in dataset.cases.items()
        if all(path.exists() for path in (*entry.images, entry.label))
    }


def _prepare_again(study: str, folder: Path, config: ModelTrainingConfig) -> PreprocessedDataset:
    """The data prepared again, for a study without preprocessing settings in its folder."""
    folder = resolve_data_dir(folder)
    if not folder.is_dir():
        raise ExportError(
            f"neither the data of the study {study!r} ({folder}) nor their cache are there, and "
            "it was made by a version that did not keep their preprocessing in its folder: say "
            "where the data are now with --data-dir DIR"
        )
    return PreprocessedDataset.load(prepare_dataset(folder, config))
