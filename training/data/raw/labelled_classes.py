"""Cases that are labelled for some classes only: `labelled` in `dataset.json`, or a CSV file.

A case that is not named is labelled for all classes. What a case is not labelled for is unknown in
it: such a class may be there, in voxels that are background in its label map.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.raw.file_names import file_problem
from training.errors import DatasetError, reason_of, suggestion

LABELLED = "labelled"
"""Key of `dataset.json`: names of the labelled classes by case, or the name of a CSV file."""

FORM = (
    f"`{LABELLED}` must map cases to the names of the classes that are labelled in them, e.g. "
    '{"case_007": ["liver"]}, or name a CSV file beside it with the columns `case` and `classes`'
)


def labelled_file(description: Mapping[str, Any], folder: Path) -> Path | None:
    """The CSV file that `labelled` names, None where there is none."""
    given = description.get(LABELLED)
    return folder / given if isinstance(given, str) else None


def read_labelled(
    description: Mapping[str, Any],
    folder: Path,
    labels: Sequence[str],
    cases: Collection[str],
    problems: list[str],
) -> dict[str, tuple[int, ...]]:
    """The foreground classes that each case is labelled for, of cases that lack some.

    Args:
        description: The content of `dataset.json`.
        folder: Where it is.
        labels: Name of each class, background first.
        cases: Names of the cases.
        problems: Gets a line for each entry that does not fit.

    Raises:
        DatasetError: if the file cannot be read, or has not that form.
    """
    given = description.get(LABELLED)
    if given is None or not cases:
        return {}
    source, entries = _entries(given, folder)
    foreground = range(1, len(labels))
    found = _checked(entries, labels, cases, problems)
    for value in foreground:
        if cases and all(value not in found.get(case, foreground) for case in cases):
            problems.append(
                f"{source}: no case is labelled for {labels[value]}, so it cannot be learnt: take "
                "it out of `labels`"
            )
    return {case: classes for case, classes in found.items() if len(classes) < len(foreground)}


def contradiction(
    case: str,
    labelled: Collection[int] | None,
    voxel_counts: Sequence[int],
    labels: Sequence[str],
) -> str | None:
    """What is wrong with a case that holds a class which it is not labelled for; None if nothing.

    Args:
        case: Its name.
        labelled: The foreground classes that it is labelled for; None for all.
        voxel_counts: Voxels of each class in its label map.
        labels: Name of each class.
    """
    for value in range(1, len(labels)) if labelled is not None else ():
        if voxel_counts[value] and value not in (labelled or ()):
            return (
                f"{voxel_counts[value]} voxels of {labels[value]}, but `{LABELLED}` says that "
                f"{case} is not labelled for it: name {labels[value]} there as well, or set these "
                "voxels to background or `ignore`"
            )
    return None


def _entries(given: Any, folder: Path) -> tuple[Path, list[tuple[str, str, Any]]]:
    """The file that says it, and of each entry its place, its case and the names of classes."""
    source = folder / "dataset.json"
    if isinstance(given, str):
        return folder / given, list(_read_csv(folder / given))
    if not isinstance(given, dict):
        raise DatasetError(f"{source}: {FORM}, but is {given!r}")
    return source, [(f"{source}: `{LABELLED}`", case, names) for case, names in given.items()]


def _checked(
    entries: Sequence[tuple[str, str, Any]],
    labels: Sequence[str],
    cases: Collection[str],
    problems: list[str],
) -> dict[str, tuple[int, ...]]:
    """The foreground classes of each case that is named."""
    all_known = not problems
    found: dict[str, tuple[int, ...]] = {}
    for place, case, names in entries:
        if case not in cases:
            near = suggestion(case, cases)
            # a case whose files do not fit may be missing here
            if all_known:
                problems.append(
                    f"{place} names {case!r}, which is no case"
                    f"{near if 'did you mean' in near else ''}"
                )
        elif case in found:
            problems.append(f"{place} names the case {case} twice")
        elif (problem := _problem(names, labels)) is not None:
            problems.append(f"{place}: {case}: {problem}")
        else:
            found[case] = tuple(value for value in range(1, len(labels)) if labels[value] in names)
    return found


def _problem(names: Any, labels: Sequence[str]) -> str | None:
    """What is wrong with the classes of a case; None if nothing is."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"{FORM}, but it has {names!r}"
    for name in names:
        if name not in labels:
            return f"{name!r} is no class{suggestion(name, labels)}"
    if not set(names) & set(labels[1:]):
        return "it is labelled for no structure: leave the case out"
    return None


def _read_csv(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Place, case and names of classes of each line."""
    if (problem := file_problem(path)) is not None:
        raise DatasetError(f"{LABELLED}: {path}: {problem}")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
        header = lines[0] if lines else ""
        # semicolons or tabs are how spreadsheets separate columns
        separator = next((mark for mark in ",;\t" if mark in header), ",")
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {reason_of(error)}") from error
    columns = [name.lower() for name in rows[0][1]] if rows else []
    if not {"case", "classes"} <= set(columns):
        raise DatasetError(
            f"{path}: its first line must name the columns `case` and `classes`, but is {header!r}"
        )
    at_case, at_classes = columns.index("case"), columns.index("classes")
    for number, row in rows[1:]:
        if not any(row):
            continue
        case, classes = (row[at] if at < len(row) else "" for at in (at_case, at_classes))
        names = [name.strip() for name in re.split(r"[;,|]", classes) if name.strip()]
        yield f"{path}, line {number}", case, names
