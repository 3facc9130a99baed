"""The labels that `dataset.json` names, in the styles of the Decathlon and of nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config.regions import check_regions
from training.data.raw.label_values import MAX_VALUE
from training.errors import DatasetError, FieldsError
from training.ignored_voxels import IGNORE


@dataclass(frozen=True)
class DatasetLabels:
    """Names and values of the classes of a dataset.

    Attributes:
        names: Name of each class, background first.
        values: Value of each class in the label files, ascending from 0.
        ignore: Values of voxels that nobody labelled; they are no class.
        regions: Values of each of nnU-Net's regions; None where classes are exclusive.
        regions_class_order: Value that is written for each region.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_class_order: tuple[int, ...] | None = None


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
    ignore: list[int] = []
    named: dict[Any, Any] = {}
    for key, value in given.items():
        if IGNORE in (_plain(key), _plain(value)):
            ignore += _ignored(value if _plain(key) == IGNORE else key, path)
        else:
            named[key] = value
    left_out = tuple(sorted(set(ignore)))
    if any(isinstance(value, list) and len(value) > 1 for value in named.values()):
        return _read_regions(named, left_out, description, path)
    if "regions_class_order" in description:
        raise DatasetError(
            f"{path}: `regions_class_order` needs regions, but each of `labels` has one value: "
            'give a region its values, e.g. "whole": [1, 2, 3], or take the order out'
        )
    by_value: dict[int, str] = {}
    for key, value in named.items():
        # a name may be a number too, as in {"10": 1}
        is_value = str(key).isdecimal() and not isinstance(value, int | list)
        number, name = (key, value) if is_value else (value, key)
        if isinstance(number, list) and len(number) == 1:
            number = number[0]
        if not str(number).isdecimal():
            raise DatasetError(
                f"{path}: `labels` maps {key!r} to {value!r}; one of the two must be the label "
                "value, a whole number, or for a region a list of them"
            )
        if int(number) in by_value:
            raise DatasetError(
                f"{path}: `labels` gives the value {number} to {by_value[int(number)]!r} and to "
                f"{name!r}"
            )
        by_value[int(number)] = str(name)
    return DatasetLabels(*_in_order(by_value, left_out, path), left_out)


def _in_order(
    by_value: Mapping[int, str], ignore: Sequence[int], path: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and values of labels, ascending from the background."""
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
    return tuple(by_value[value] for value in values), values


def _read_regions(
    given: Mapping[str, Any],
    ignore: tuple[int, ...],
    description: Mapping[str, Any],
    path: Path,
) -> DatasetLabels:
    """Read nnU-Net's regions: names mapped to one value or several, and their order.

    A class has the name of the region that is it alone, else `label N`.
    """
    regions: dict[str, tuple[int, ...]] = {}
    by_value: dict[int, str] = {}
    for name, value in given.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values or not all(type(one) is int and one >= 0 for one in values):
            raise DatasetError(
                f"{path}: `labels` maps {name!r} to {value!r}; where there are regions, each name "
                'must have label values: "whole": [1, 2, 3] or "core": 2'
            )
        if len(values) == 1:
            by_value[values[0]] = str(name)
        if set(values) != {0}:
            regions[str(name)] = values
    for values in regions.values():
        for value in values:
            by_value.setdefault(value, "background" if value == 0 else f"label {value}")
    names, in_order = _in_order(by_value, ignore, path)
    order = description.get("regions_class_order")
    if not isinstance(order, list) or not all(type(one) is int for one in order):
        shown = ", ".join(f"{name} {list(values)}" for name, values in regions.items())
        raise DatasetError(
            f"{path}: `labels` has regions ({shown}), so `regions_class_order` must list the label "
            f"value that is written for each of them in turn, but it is {order!r}"
        )
    try:
        check_regions(regions, order)
    except FieldsError as error:
        raise DatasetError(f"{path}: {error}") from error
    return DatasetLabels(names, in_order, ignore, regions, tuple(order))


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
