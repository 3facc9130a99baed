"""A CSV file that lists images and label maps.

Columns: `image` (more channels as `image_2`, `image_3`, ...), `label`, and if wanted `case`, `fold`
(a number: the fold that validates on it) and `split` (train, val or test). Paths are relative to
the file's folder. Commas, semicolons and tabs separate columns.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from training.data.raw.formats.file_format import image_stem
from training.data.sources.source import Request, Source, SourceCase
from training.errors import DatasetError, reason_of

LOOKED_FOR = "a CSV file with the columns image and label"

PARTS = ("train", "val", "test")


def fits(path: Path) -> bool:
    """Whether a file is a table."""
    return path.suffix.lower() in (".csv", ".tsv") and path.is_file()


def read(path: Path, request: Request) -> Source:
    """The cases that a table lists.

    Raises:
        DatasetError: if it is no such table, or a line of it names no image or label map.
    """
    rows = _rows(path)
    columns = [name for name in (rows[0][1] if rows else {}) if re.fullmatch(r"image(_\w+)?", name)]
    problems: list[str] = []
    cases, folds, parts = [], {}, {}
    for number, row in rows:
        images = [row[name] for name in columns]
        if not all(images) or not row.get("label"):
            lacking = [name for name in (*columns, "label") if not row.get(name)]
            problems.append(f"{path}, line {number}: no {', '.join(lacking)}")
            continue
        label = path.parent / row["label"]
        case_id = row.get("case") or image_stem(label) or label.name
        cases.append(SourceCase(case_id, tuple(path.parent / image for image in images), label))
        if row.get("fold"):
            folds[case_id] = row["fold"]
        if row.get("split"):
            parts[case_id] = row["split"].lower()
    problems += [
        f"{path}: split {part!r} of {case_id} is none of {', '.join(PARTS)}"
        for case_id, part in parts.items()
        if part not in PARTS
    ]
    problems += [
        f"{path}: fold {fold!r} of {case_id} is not a whole number"
        for case_id, fold in folds.items()
        if not fold.isdecimal()
    ]
    if problems:
        raise DatasetError.of(path, problems)
    names = [case.case_id for case in cases]
    numbers = {case_id: int(fold) for case_id, fold in folds.items()}
    return Source(
        path.stem,
        request.channels,
        request.labels,
        tuple(cases),
        folds_of(path, names, numbers) or _split_of(path, names, parts),
    )


def folds_of(
    path: Path, cases: Sequence[str], folds: Mapping[str, int]
) -> tuple[dict[str, list[str]], ...]:
    """Folds that each validate on the cases of their number, and train on all others.

    Raises:
        DatasetError: naming cases without a fold, where others have one.
    """
    if not folds:
        return ()
    _check_all_have_one(path, cases, folds, "fold")
    numbers = sorted(set(folds.values()))
    if len(numbers) < 2:
        raise DatasetError(f"{path}: all cases are of fold {numbers[0]}: two folds are needed")
    return tuple(
        {
            "train": sorted(case_id for case_id in cases if folds[case_id] != number),
            "val": sorted(case_id for case_id in cases if folds[case_id] == number),
        }
        for number in numbers
    )


def _check_all_have_one(path: Path, cases: Sequence[str], given: Container[str], what: str) -> None:
    without = [case_id for case_id in cases if case_id not in given]
    if without:
        raise DatasetError(
            f"{path}: {', '.join(without[:5])} have no {what}, and others have one: every case "
            "needs one"
        )


def _split_of(
    path: Path, cases: Sequence[str], parts: Mapping[str, str]
) -> tuple[dict[str, list[str]], ...]:
    if not parts:
        return ()
    _check_all_have_one(path, cases, parts, "split")
    fold = {name: sorted(case_id for case_id in cases if parts[case_id] == name) for name in PARTS}
    if not fold["train"] or not fold["val"]:
        raise DatasetError(f"{path}: its split has no train, or no val")
    return ({name: members for name, members in fold.items() if members},)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Lines with their number, and their cells by column."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        header = lines[0] if lines else ""
        separator = next((mark for mark in "\t;," if mark in header), ",")
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {reason_of(error)}") from error
    columns = [name.lower() for name in rows[0][1]] if rows else []
    if not {"image", "label"} <= set(columns):
        raise DatasetError(
            f"{path}: its first line must name the columns `image` and `label` (more channels: "
            f"`image_2`, ...; if wanted `case`, `fold`, `split`), but is {header!r}"
        )
    return [
        (number, dict(zip(columns, [*row, *[""] * len(columns)], strict=False)))
        for number, row in rows[1:]
        if any(row)
    ]
