"""The folders of TotalSegmentator (Wasserthal et al., 2023): an image and a mask for each class.

```text
meta.csv                      image_id;...;split
s0001/ct.nii.gz               or mri.nii.gz
s0001/segmentations/liver.nii.gz  spleen.nii.gz  ...
```
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from training.data.raw.formats.file_format import image_stem
from training.data.sources.source import Request, Source, SourceCase, mask_labels
from training.errors import DatasetError, reason_of, suggestion

LOOKED_FOR = "folders of cases, each with ct.nii.gz or mri.nii.gz and a folder segmentations"

IMAGES = {"ct": "CT", "mri": "MR"}
"""Name of the image by the channel that it is."""

MASKS = "segmentations"

SPLIT_TABLE = "meta.csv"


def fits(path: Path) -> bool:
    """Whether a folder has this layout."""
    return path.is_dir() and any(folder.parent.is_dir() for folder in path.glob(f"*/{MASKS}/"))


def read(path: Path, request: Request) -> Source:
    """The cases of a folder.

    Raises:
        DatasetError: if cases have images of different kinds, a class that is asked for has no
            mask, or the table of the official split cannot be read.
    """
    cases: list[SourceCase] = []
    notes: list[str] = []
    kinds: dict[str, list[str]] = {}
    found = {
        folder.name: _by_stem(folder / MASKS)
        for folder in sorted(path.iterdir())
        if (folder / MASKS).is_dir()
    }
    names = _classes(path, found, request)
    for case_id, masks in found.items():
        images = _by_stem(path / case_id)
        image = next((images[name] for name in IMAGES if name in images), None)
        chosen = {name: masks[name] for name in names if name in masks}
        if image is None:
            notes.append(f"{path / case_id}: has no ct.nii.gz and no mri.nii.gz, and is left out")
        elif not chosen:
            notes.append(f"{path / case_id}: has none of the masks, and is left out")
        else:
            kinds.setdefault(image_stem(image) or "", []).append(case_id)
            cases.append(SourceCase(case_id, (image,), masks=chosen))
    if len(kinds) > 1:
        listed = "; ".join(f"{kind}: {', '.join(ids[:3])}" for kind, ids in kinds.items())
        raise DatasetError(
            f"{path} has CT and MR images ({listed}): one network learns from one kind, so "
            "convert two folders"
        )
    channel = IMAGES[next(iter(kinds))] if kinds else "CT"
    return Source(
        path.name,
        request.channels or (channel,),
        request.labels or mask_labels(names),
        tuple(cases),
        _official_split(path / SPLIT_TABLE, {case.case_id for case in cases}, notes),
        tuple(notes),
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    return {
        stem: file for file in sorted(folder.iterdir()) if (stem := image_stem(file)) is not None
    }


def _classes(
    path: Path, found: Mapping[str, Mapping[str, Path]], request: Request
) -> tuple[str, ...]:
    known = sorted({name for masks in found.values() for name in masks})
    if request.classes is None:
        return tuple(known)
    for name in request.classes:
        if name not in known:
            raise DatasetError(f"{path} has no mask of {name!r}{suggestion(name, known)}")
    return request.classes


def _official_split(
    table: Path, cases: set[str], notes: list[str]
) -> tuple[dict[str, list[str]], ...]:
    """The split of `meta.csv` as one fold; none where it does not divide all cases."""
    if not table.is_file():
        return ()
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        separator = ";" if lines and ";" in lines[0] else ","
        rows = list(csv.DictReader(lines, delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read as CSV: {reason_of(error)}") from error
    fold: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for row in rows:
        if row.get("image_id") in cases and row.get("split") in fold:
            fold[str(row["split"])].append(str(row["image_id"]))
    placed = sum(map(len, fold.values()))
    if placed < len(cases) or not fold["train"] or not fold["val"]:
        if placed:
            notes.append(f"{table}: its split has no part for every case, and is not taken")
        return ()
    return ({name: sorted(ids) for name, ids in fold.items() if ids},)
