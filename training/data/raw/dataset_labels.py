"""The labels that `dataset.json` names, in the styles of the Decathlon and of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.raw.label_values import MAX_VALUE
from training.errors import DatasetError
from training.ignored_voxels import IGNORE


@dataclass(frozen=True)
class DatasetLabels:
    """Names and values of the classes of a dataset.

    Attributes:
        names: Name of each class, background first.
        values: Value of each class in the label files, ascending from 0.
        ignore: Values of voxels that nobody labelled; they are no class.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()


def read_labels(description: Mapping[str, Any], path: Path) -> DatasetLabels:
    """Read `labels`; the Decathlon maps value to name, nnU-Net v2 name to value.

    Values may have gaps (0, 1, 2, 4 or 0, 255); 0 is the background. A label of the name `ignore`,
    as in nnU-Net, is none: its voxels are left out; it may have several values, in a list.

    Args:
        description: The content of `dataset.json`.
        path: The file, for messages.

    Raises:
        DatasetError: naming the entry that is none.
    """
    given = description.get("labels")
    if not isinstance(given, dict) or len(given) < 2:
        raise DatasetError(f"{path}: `labels` must name background and at least one structure")
    by_value: dict[int, str] = {}
    ignore: list[int] = []
    for key, value in given.items():
        if IGNORE in (_plain(key), _plain(value)):
            ignore += _ignored(value if _plain(key) == IGNORE else key, path)
            continue
        # a name may be a number too, as in {"10": 1}
        is_value = str(key).isdecimal() and not isinstance(value, int)
        number, name = (key, value) if is_value else (value, key)
        if not str(number).isdecimal():
            raise DatasetError(
                f"{path}: `labels` maps {key!r} to {value!r}; one of the two must be the label "
                "value, a whole number (nnU-Net's regions are not supported)"
            )
        if int(number) in by_value:
            raise DatasetError(
                f"{path}: `labels` gives the value {number} to {by_value[int(number)]!r} and to "
                f"{name!r}"
            )
        by_value[int(number)] = str(name)
    values = tuple(sorted(by_value))
    if len(values) < 2:
        raise DatasetError(
            f"{path}: `labels` must name background and at least one structure beside `{IGNORE}`"
        )
    if taken := sorted(set(ignore) & set(values)):
        raise DatasetError(
            f"{path}: `labels` gives the value {taken[0]} to {by_value[taken[0]]!r} and to "
            f"{IGNORE!r}: a voxel is of a class or left out, so take another value for one of them"
        )
    if values[0] != 0:
        raise DatasetError(
            f"{path}: `labels` must name the background, whose value is 0, but has "
            f"{', '.join(f'{by_value[value]} = {value}' for value in values[:5])}"
        )
    if values[-1] > MAX_VALUE:
        raise DatasetError(
            f"{path}: `labels` gives {by_value[values[-1]]!r} the value {values[-1]}, but values "
            f"must be {MAX_VALUE} or less: number the labels in the files anew"
        )
    names = tuple(by_value[value] for value in values)
    return DatasetLabels(names, values, tuple(sorted(set(ignore))))


def _plain(name: object) -> object:
    return name.strip().lower() if isinstance(name, str) else name


def _ignored(given: Any, path: Path) -> list[int]:
    """The values that are left out: one, or a list of them."""
    found = given if isinstance(given, list) else [given]
    for value in found:
        whole = isinstance(value, int | str) and str(value).isdecimal()
        if not (whole and int(value) <= MAX_VALUE):
            raise DatasetError(
                f"{path}: `labels` gives {IGNORE!r} the value {value!r}, but it must be a whole "
                f"number from 1 to {MAX_VALUE}, or a list of such"
            )
    if not found:
        raise DatasetError(f"{path}: `labels` gives {IGNORE!r} no value: give one, or leave it out")
    return [int(value) for value in found]
