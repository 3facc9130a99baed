"""The labels that `dataset.json` names, in the styles of the Decathlon and of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.raw.label_values import MAX_VALUE
from training.errors import DatasetError


@dataclass(frozen=True)
class DatasetLabels:
    """Names and values of the classes of a dataset.

    Attributes:
        names: Name of each class, background first.
        values: Value of each class in the label files, ascending from 0.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]


def read_labels(description: Mapping[str, Any], path: Path) -> DatasetLabels:
    """Read `labels`; the Decathlon maps value to name, nnU-Net v2 name to value.

    Values may have gaps (0, 1, 2, 4 or 0, 255); 0 is the background.

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
    for key, value in given.items():
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
        if str(name).strip().lower() == "ignore":
            raise DatasetError(
                f"{path}: nnU-Net's `ignore` label ({number}) is not supported yet: it would be "
                "learnt and predicted as a class. Take it out of `labels`, and set its voxels to "
                "another label, or leave out the cases that have it"
            )
        by_value[int(number)] = str(name)
    values = tuple(sorted(by_value))
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
    return DatasetLabels(tuple(by_value[value] for value in values), values)
