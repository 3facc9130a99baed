"""Converts data of another layout to nnU-Net's, which a study reads.

A folder that is being written has no dataset.json, which comes last, and a record
(`conversion.json`) of what it is made from; so a conversion that was cut off goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from training.data.raw.case_threads import case_threads
from training.data.raw.formats.file_format import WRITTEN, parts_of, split_name
from training.data.raw.header import open_volume
from training.data.raw.layouts import DATASET_JSON, IMAGES, LABELS
from training.data.sources.recognise import recognise, source_module
from training.data.sources.source import BACKGROUND, Request, Source, SourceCase
from training.data.sources.write import NIFTI, Overlap, Target, values_of, write_case
from training.durable_write import write_durably
from training.errors import DatasetError, reason_of
from training.local_path import folder_problem

RECORD = "conversion.json"
"""File of what a folder is converted from."""

SPLITS = "splits_final.json"
"""File of the folds of the source, as nnU-Net names it; `splits_file` takes it."""

BYTES_PER_VOXEL = 16
"""Memory that writing a case takes at most: voxels as they are read, and a label map."""

Result = TypeVar("Result")

OnCase = Callable[[str, int, int], None]
"""A callback that takes the current step, the cases done and all cases."""


@dataclass(frozen=True)
class ConvertedData:
    """Data that were converted.

    Attributes:
        folder: The folder that a study reads.
        kind: The layout of the source.
        cases: Names of the cases.
        channels: Name of each channel.
        labels: Value of each class by name.
        folds: Number of folds of the source, which are in `splits_final.json`.
        notes: What was left out or decided, a line each.
    """

    folder: Path
    kind: str
    cases: tuple[str, ...]
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    folds: int
    notes: tuple[str, ...]


def convert_dataset(
    source: Path,
    output: Path,
    *,
    kind: str | None = None,
    request: Request | None = None,
    overlap: Overlap = "error",
    link: bool = False,
    on_case: OnCase | None = None,
) -> ConvertedData:
    """Write the cases of a source in nnU-Net's layout; nothing of the source is changed.

    Args:
        source: Folder or file.
        output: Folder to write, which is not there, empty, or of a conversion that was cut off.
        kind: Layout of the source, a key of `SOURCES`; recognised by default.
        request: What a user says about channels and classes.
        overlap: What a voxel of two masks becomes.
        link: Whether files that stay as they are become links to the source.
        on_case: Called with the step and its progress, after each case.

    Raises:
        DatasetError: for all that is wrong with the source, by file; or if the output is something
            else. What is written stays, and is not written again by the next call.
        OSError: if the output cannot be written.
    """
    tell = on_case or (lambda step, done, total: None)
    found_kind, place = recognise(Path(source), kind)
    _check_output(Path(output), Path(source))
    with tempfile.TemporaryDirectory(prefix="segtune-") as scratch:
        wanted = replace(request or Request(), scratch=Path(scratch))
        found = source_module(found_kind).read(place, wanted)
        found.check(place)
        return _convert(found, found_kind, place, Path(output), overlap, link, tell)


def _convert(
    found: Source,
    kind: str,
    place: Path,
    output: Path,
    overlap: Overlap,
    link: bool,
    tell: OnCase,
) -> ConvertedData:
    """Write what was found."""
    channels = _channels(found, place)
    labels, notes = _labels(found, place, tell)
    target = Target(output, _ending(found), len(channels), labels, link, overlap)
    record = {
        "kind": kind,
        "source": str(place.absolute()),
        "link": link,
        "overlap": overlap,
        "file_ending": target.ending,
        "channels": list(channels),
        "labels": dict(labels),
        "cases": {
            case.case_id: [str(path.absolute()) for path in case.origin or case.files]
            for case in found.cases
        },
    }
    _begin(target.folder, record)
    written = _for_each(
        "converting", found.cases, lambda case: write_case(case, target), place, tell
    )
    notes = [*found.notes, *notes, *(line for case in written.values() for line in case.notes)]
    if found.folds:
        folds = [{part: list(ids) for part, ids in fold.items()} for fold in found.folds]
        write_durably(target.folder / SPLITS, json.dumps(folds, indent=1))
    write_durably(target.folder / RECORD, json.dumps({**record, "notes": notes}, indent=1))
    description = {
        "name": found.name,
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": len(found.cases),
        "file_ending": target.ending,
    }
    labelled = {name: case.labelled for name, case in written.items() if case.labelled is not None}
    if labelled:
        description["labelled"] = labelled
    write_durably(target.folder / DATASET_JSON, json.dumps(description, indent=1))
    return ConvertedData(
        target.folder,
        kind,
        tuple(case.case_id for case in found.cases),
        channels,
        labels,
        len(found.folds),
        tuple(notes),
    )


def _check_output(output: Path, source: Path) -> None:
    """Refuse a folder that is there, unless a conversion to it was cut off, or it is empty."""
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if inside:
        raise DatasetError(
            f"{output} is in {source}, of which nothing is changed: choose a folder elsewhere"
        )
    if not os.path.lexists(output):
        return
    if (problem := folder_problem(output)) is not None:
        raise DatasetError(f"{output} {problem}: choose another name")
    cut_off = (output / RECORD).is_file() and not (output / DATASET_JSON).exists()
    if any(output.iterdir()) and not cut_off:
        raise DatasetError(
            f"{output} is there already, and is not overwritten: choose another name"
        )


def _begin(folder: Path, record: Mapping[str, Any]) -> None:
    """Make the folder, or find that it was begun with the same files and choices."""
    if (folder / RECORD).is_file():
        try:
            begun = json.loads((folder / RECORD).read_text())
        except (OSError, ValueError) as error:
            raise DatasetError(f"{folder / RECORD} is damaged: remove {folder}") from error
        begun.pop("notes", None)
        differing = [name for name in record if begun.get(name) != record[name]]
        if differing:
            raise DatasetError(
                f"{folder} was begun with other {' and '.join(differing)} ({RECORD}): remove it, "
                "or choose another name"
            )
    for name in (IMAGES, LABELS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_durably(folder / RECORD, json.dumps(record, indent=1))


def _channels(found: Source, place: Path) -> tuple[str, ...]:
    if found.channels is not None:
        return found.channels
    number = sum(open_volume(path)[1].channels for path in found.cases[0].images)
    example = "CT" if number == 1 else ",".join(("T1", "T2", "FLAIR", "T1c")[:number])
    raise DatasetError(
        f"{place} does not name its channels ({number}), which decides how intensities are "
        f"normalised: name them, e.g. `--channels {example}`"
    )


def _labels(found: Source, place: Path, tell: OnCase) -> tuple[dict[str, int], list[str]]:
    """Value of each class by name, the background first, and notes."""
    if found.labels is not None:
        labels = dict(sorted(found.labels.items(), key=lambda each: each[1]))
        if 0 not in labels.values():
            labels = {BACKGROUND: 0, **labels}
        for case in found.cases:
            for name in case.masks:
                if name not in labels:
                    raise DatasetError(
                        f"{place} has masks of {name!r}, which `--labels` gives no value"
                    )
        return labels, []

    def values(case: SourceCase) -> set[int]:
        assert case.label is not None
        try:
            opened, _ = open_volume(case.label, as_label=True)
        except DatasetError as error:
            raise DatasetError(f"{error}; name its classes with `--labels`") from error
        return values_of(opened)

    by_case = _for_each("reading labels", found.cases, values, place, tell)
    every = sorted({0}.union(*by_case.values()))
    if every[0] < 0:
        raise DatasetError(f"{place}: label maps have the negative value {every[0]}")
    labels = {BACKGROUND if value == 0 else f"label_{value}": value for value in every}
    names = [name for name, value in labels.items() if value]
    named = ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
    return labels, [f"nothing names the classes: they are called {named}; `--labels` names them"]


def _ending(found: Source) -> str:
    """The ending of all files, where they have one and label maps can be written so; or NIfTI."""
    endings = {
        split[1].lower() if (split := split_name(path.name)) and len(parts_of(path)) == 1 else ""
        for case in found.cases
        for path in case.files
    }
    one = next(iter(endings))
    flat = open_volume(found.cases[0].images[0])[0].flat
    keeps = len(endings) == 1 and one in WRITTEN and (one == NIFTI or flat)
    return one if keeps else NIFTI


def _for_each(
    step: str,
    cases: tuple[SourceCase, ...],
    work: Callable[[SourceCase], Result],
    place: Path,
    tell: OnCase,
) -> dict[str, Result]:
    """Work on every case, within memory; raise all their problems together."""
    tell(step, 0, len(cases))
    results: dict[str, Result] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=case_threads(cases, BYTES_PER_VOXEL)) as pool:
        futures = {pool.submit(work, case): case for case in cases}
        try:
            for future in as_completed(futures):
                case = futures[future]
                try:
                    results[case.case_id] = future.result()
                except DatasetError as error:
                    problems[case.case_id] = str(error)
                except MemoryError as error:
                    problems[case.case_id] = f"{case.images[0]}: {reason_of(error)}"
                tell(step, len(results) + len(problems), len(cases))
        except BaseException:
            # an interrupt or a full disk: finish what has begun, begin no more
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        raise DatasetError.of(
            place, [problems[case.case_id] for case in cases if case.case_id in problems]
        )
    return {case.case_id: results[case.case_id] for case in cases}
