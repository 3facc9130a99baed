"""BIDS with derivatives (Gorgolewski et al., 2016): images by subject, label maps in derivatives.

```text
sub-01/[ses-1/]anat/sub-01_[ses-1_]T1w.nii.gz  sub-01_FLAIR.nii.gz
derivatives/manual/sub-01/[ses-1/]anat/sub-01_[ses-1_]dseg.nii.gz
derivatives/manual/sub-01/anat/sub-01_label-lesion_mask.nii.gz
derivatives/manual/dseg.tsv                     index  name
```

A label map (`dseg`) is taken as it is, masks (`mask`) are one class each, named by their entity
`label`, or `desc`.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.raw.formats.file_format import image_stem
from training.data.sources.source import BACKGROUND, Request, Source, SourceCase, mask_labels
from training.errors import DatasetError, reason_of, suggestion

LOOKED_FOR = "folders sub-*/anat of images, and derivatives with *_dseg or *_mask files"

DERIVATIVES = "derivatives"

LABEL_MAP, MASK = "dseg", "mask"

_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9+]+)")

_OF_CASE = ("sub", "ses", "run")
"""Entities that name a case; all others belong to the name of a channel or of a class."""


@dataclass(frozen=True)
class _Named:
    """A file with its name taken apart.

    Attributes:
        path: The file.
        entities: Values by entity, such as `{"sub": "01"}`.
        suffix: What its name ends with, such as `T1w`.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def case_id(self) -> str:
        """The name of its case."""
        return "_".join(f"{key}-{self.entities[key]}" for key in _OF_CASE if key in self.entities)

    @property
    def channel(self) -> str:
        """Its suffix, behind the entities that tell images of one suffix apart."""
        others = [f"{key}-{value}" for key, value in self.entities.items() if key not in _OF_CASE]
        return "_".join((*others, self.suffix))


def fits(path: Path) -> bool:
    """Whether a folder has this layout."""
    return path.is_dir() and any(folder.is_dir() for folder in path.glob("sub-*"))


def read(path: Path, request: Request) -> Source:
    """The labelled cases of a folder.

    Raises:
        DatasetError: if no channel is common to all labelled cases, several label maps are those
            of one case, or a table of names cannot be read.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    problems: list[str] = []
    for file in _files(path, "sub-*"):
        if file.suffix not in (LABEL_MAP, MASK):
            other = images[file.case_id].setdefault(file.channel, file.path)
            if other != file.path:
                problems.append(f"{file.path} and {other.name} are both {file.channel}")
    labels = _labels(path, problems)
    if problems:
        raise DatasetError.of(path, problems)
    notes = [
        f"{path}: {case_id} has {'no image' if case_id in labels else 'no label map'}"
        for case_id in sorted(set(images) ^ set(labels))
    ]
    labelled = sorted(set(images) & set(labels))
    if request.classes is not None:
        _check_classes(path, labels, request.classes)
    channels = _channels(path, {case_id: images[case_id] for case_id in labelled}, request, notes)
    cases, names = [], set()
    for case_id in labelled:
        maps, masks = labels[case_id]
        chosen = {
            name: file
            for name, file in sorted(masks.items())
            if request.classes is None or name in request.classes
        }
        if any(channel not in images[case_id] for channel in channels) or not (maps or chosen):
            continue
        names |= set(chosen)
        files = tuple(images[case_id][channel] for channel in channels)
        cases.append(SourceCase(case_id, files, maps[0] if maps else None, {} if maps else chosen))
    with_maps = [case for case in cases if case.label is not None]
    if with_maps and len(with_maps) < len(cases):
        raise DatasetError(
            f"{path}: some cases have a label map (*_dseg), such as {with_maps[0].case_id}, and "
            "others have masks (*_mask): keep one kind"
        )
    if not with_maps:
        in_order = request.classes or tuple(sorted(names))
        cases = [
            SourceCase(
                case.case_id,
                case.images,
                masks={name: case.masks[name] for name in in_order if name in case.masks},
            )
            for case in cases
        ]
        named: Mapping[str, int] | None = mask_labels(in_order)
    else:
        named = _names(path)
    return Source(path.name, channels, request.labels or named, tuple(cases), notes=tuple(notes))


def _files(root: Path, pattern: str) -> Iterator[_Named]:
    """Images below the folders of subjects, whose names are those of BIDS."""
    for subject in sorted(root.glob(pattern)):
        for path in sorted(subject.rglob("*")):
            stem = image_stem(path)
            if stem is None or not path.is_file():
                continue
            *parts, suffix = stem.split("_")
            entities = {m[1]: m[2] for part in parts if (m := _ENTITY.fullmatch(part))}
            if "sub" in entities:
                yield _Named(path, entities, suffix)


Labels = dict[str, tuple[list[Path], dict[str, Path]]]
"""Label maps, and masks by name, of each case."""


def _labels(path: Path, problems: list[str]) -> Labels:
    found: Labels = {}
    for file in (*_files(path / DERIVATIVES, "**/sub-*"), *_files(path, "sub-*")):
        maps, masks = found.setdefault(file.case_id, ([], {}))
        if file.suffix == LABEL_MAP and file.path not in maps:
            maps.append(file.path)
        elif file.suffix == MASK:
            name = file.entities.get("label") or file.entities.get("desc") or "mask"
            other = masks.setdefault(name, file.path)
            if other != file.path:
                problems.append(f"{file.path} and {other} are both masks of {name}")
    for case_id, (maps, _) in found.items():
        if len(maps) > 1:
            listed = " and ".join(str(each) for each in maps)
            problems.append(
                f"{listed} are both label maps of {case_id}: keep one, or give a CSV of the files"
            )
    return {case_id: labels for case_id, labels in found.items() if any(labels)}


def _check_classes(path: Path, labels: Labels, classes: Sequence[str]) -> None:
    known = sorted({name for _, masks in labels.values() for name in masks})
    for name in classes:
        if name not in known:
            raise DatasetError(f"{path} has no mask of {name!r}{suggestion(name, known)}")


def _channels(
    path: Path, images: Mapping[str, Mapping[str, Path]], request: Request, notes: list[str]
) -> tuple[str, ...]:
    """The channels that are asked for, or those that every labelled case has."""
    known = sorted({channel for channels in images.values() for channel in channels})
    if request.channels is not None:
        for name in request.channels:
            if name not in known:
                raise DatasetError(f"{path} has no image {name!r}{suggestion(name, known)}")
        lacking = [case_id for case_id, has in images.items() if set(request.channels) - set(has)]
        notes += [
            f"{path}: {case_id} lacks a channel of {', '.join(request.channels)}, and is left out"
            for case_id in lacking
        ]
        return request.channels
    common = [name for name in known if all(name in has for has in images.values())]
    if not common and images:
        raise DatasetError(
            f"{path}: no image is there of every labelled case (there are {', '.join(known)}): "
            "choose with `--channels`, and cases without them are left out"
        )
    notes += [
        f"{path}: {name} is not there of every labelled case, and is left out; `--channels` "
        "chooses others"
        for name in known
        if name not in common
    ]
    return tuple(common)


def _names(path: Path) -> dict[str, int] | None:
    """Names of label values, by the tables or sidecars beside the label maps."""
    names: dict[str, int] = {}
    for table in sorted(path.rglob(f"*{LABEL_MAP}.tsv")):
        try:
            lines = table.read_text(encoding="utf-8-sig").splitlines()
            rows = list(csv.DictReader(lines, delimiter="\t"))
            names |= {str(row["name"]): int(row["index"]) for row in rows}
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
            raise DatasetError(
                f"{table}: must have the columns index and name ({reason_of(error)})"
            ) from error
    for sidecar in sorted(path.rglob(f"*{LABEL_MAP}.json")):
        try:
            given = json.loads(sidecar.read_text(encoding="utf-8-sig")).get("LabelMap") or {}
            names |= {str(name): int(value) for name, value in given.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DatasetError(f"{sidecar}: cannot be read: {reason_of(error)}") from error
    if not names:
        return None
    others = {name: value for name, value in names.items() if value != 0}
    zero = next((name for name, value in names.items() if value == 0), BACKGROUND)
    return {zero: 0, **others}
