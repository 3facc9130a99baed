"""A user's rules for the split: groups of cases, and nnU-Net's split files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import ModelTrainingConfig
from training.data.raw.file_names import file_problem
from training.errors import DatasetError, reason_of

SPLIT_PARTS = ("train", "val", "test")


def groups_of(cases: Iterable[str], config: ModelTrainingConfig) -> dict[str, str]:
    """The group of each case by `config.groups`; each case is its own where there is no rule.

    Raises:
        DatasetError: naming the cases that the rule gives no group.
    """
    if config.groups is None:
        return {case: case for case in cases}
    if config.groups_file is not None:
        table = _read_groups(config.groups_file)
        groups = {case: table.get(case) for case in cases}
        rule = f"the groups in {config.groups_file}"
    else:
        pattern = re.compile(config.groups)
        matches = {case: pattern.search(case) for case in cases}
        groups = {case: match[1] if match else None for case, match in matches.items()}
        rule = f"groups={config.groups!r}"
    without = [case for case, group in groups.items() if not group]
    if without:
        raise DatasetError(f"{rule} give no group to {_some(without)}: every case needs one")
    return {case: group for case, group in groups.items() if group}


def split_of_file(
    cases: Collection[str], config: ModelTrainingConfig
) -> dict[str, list[str]] | None:
    """The fold of `config.splits_file`; None where there is no file.

    nnU-Net's `splits_final.json` is a list of folds, each `{"train": [...], "val": [...]}` with
    names of cases. A fold may have `test` as well.

    Raises:
        DatasetError: if it is not a split file, or contradicts the cases, the groups or itself.
    """
    if config.splits_file is None or config.fold is None:
        return None
    path = config.splits_file
    folds = _read_json("splits_file", path)
    if not isinstance(folds, list) or not folds or not all(_is_fold(fold) for fold in folds):
        raise DatasetError(
            f"{path}: a split file lists folds, each with the names of its cases: "
            '[{"train": [...], "val": [...]}, ...]'
        )
    if config.fold >= len(folds):
        raise DatasetError(
            f"{path}: fold={config.fold} is not there: its folds are 0 to {len(folds) - 1}"
        )
    parts = {name: sorted(folds[config.fold].get(name, [])) for name in SPLIT_PARTS}
    problems = [*_contradictions(parts, set(cases)), *_shared_groups(parts, cases, config)]
    if problems:
        listed = "\n  ".join(problems)
        raise DatasetError(f"{path}: fold {config.fold} does not fit the data:\n  {listed}")
    return parts


def rules_digest(config: ModelTrainingConfig) -> str:
    """Digest of the rules, part of a split's name; empty where there are none.

    Raises:
        DatasetError: if a file of the rules cannot be read.
    """
    parts = []
    if config.groups is not None:
        content = (
            config.groups.encode()
            if config.groups_file is None
            else _read_bytes("groups", config.groups_file)
        )
        parts.append(f"groups-{hashlib.sha256(content).hexdigest()[:8]}")
    if config.splits_file is not None:
        rules = _read_bytes("splits_file", config.splits_file)
        parts.append(f"file-{hashlib.sha256(rules).hexdigest()[:8]}")
    return "-".join(parts)


def _read_groups(path: Path) -> dict[str, str]:
    """Groups by case of a CSV file with the columns `case` and `group`.

    Columns are separated by commas, or by the semicolons or tabs of spreadsheets.
    """
    try:
        lines = _read_bytes("groups", path).decode("utf-8-sig").splitlines()
        header = lines[0] if lines else ""
        separator = next((mark for mark in ",;\t" if mark in header), ",")
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {reason_of(error)}") from error
    columns = [name.lower() for name in rows[0][1]] if rows else []
    if not {"case", "group"} <= set(columns):
        raise DatasetError(
            f"{path}: its first line must name the columns `case` and `group`, but is {header!r}"
        )
    at_case, at_group = columns.index("case"), columns.index("group")
    groups: dict[str, str] = {}
    for number, row in rows[1:]:
        if not any(row):
            continue
        case, group = (row[at] if at < len(row) else "" for at in (at_case, at_group))
        if not case or not group:
            raise DatasetError(
                f"{path}, line {number}: a case and its group are needed, but this is "
                f"{separator.join(row)!r}"
            )
        if groups.setdefault(case, group) != group:
            raise DatasetError(
                f"{path}, line {number}: the case {case} is in the group {groups[case]} and in "
                f"{group}"
            )
    return groups


def _read_bytes(setting: str, path: Path) -> bytes:
    """The content of a file that a setting names."""
    if (problem := file_problem(path)) is not None:
        raise DatasetError(f"{setting}={path}: {problem}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{setting}={path}: cannot be read: {reason_of(error)}") from error


def _read_json(setting: str, path: Path) -> Any:
    try:
        return json.loads(_read_bytes(setting, path).decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(
            f"{setting}={path}: cannot be read as JSON: {reason_of(error)}"
        ) from error


def _is_fold(fold: Any) -> bool:
    if not isinstance(fold, dict) or not {"train", "val"} <= fold.keys():
        return False
    lists = [fold.get(name, []) for name in SPLIT_PARTS]
    return all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists
    )


def _contradictions(parts: Mapping[str, Sequence[str]], cases: set[str]) -> list[str]:
    problems = []
    where: dict[str, list[str]] = {}
    for name, members in parts.items():
        for case in members:
            where.setdefault(case, []).append(name)
    for case, names in where.items():
        if len(names) > 1:
            problems.append(f"the case {case} comes twice, in {' and '.join(names)}")
    if unknown := sorted(where.keys() - cases):
        problems.append(f"the data have no case {_some(unknown)}")
    if missing := sorted(cases - where.keys()):
        problems.append(f"{_some(missing)} of the data are in no part")
    problems += [f"no case is in {name}" for name in ("train", "val") if not parts[name]]
    return problems


def _shared_groups(
    parts: Mapping[str, Sequence[str]], cases: Collection[str], config: ModelTrainingConfig
) -> list[str]:
    groups = groups_of(cases, config)
    sides: dict[str, set[str]] = {}
    for name, members in parts.items():
        for case in members:
            if case in groups:
                sides.setdefault(groups[case], set()).add(name)
    return [
        f"the group {group} is in {' and '.join(sorted(names))}"
        for group, names in sorted(sides.items())
        if len(names) > 1 and config.groups is not None
    ]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
