"""Fields of the classes: their values in the label files, and which of them is trained.

Wherever a label is given by a number (`target_label`, `class_weights.N`, the N of `val_dice_N`),
the number is its value in the label files. Where those are 0, 1, 2, ... it is the class as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from training.config.base import NOT_SEARCHABLE
from training.config.network import NetworkFields
from training.config.types import Int
from training.errors import FieldsError

LabelValue = Annotated[Int, Field(ge=0, lt=2**16)]


class LabelFields(NetworkFields):
    """The classes and their values in the label files."""

    label_values: list[LabelValue] | None = Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    """Value in the label files of each class, background (0) first; null is 0, 1, 2, ...

    A study takes them from the data.
    """

    target_label: Annotated[Int, Field(ge=1)] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """Train background against this one label, by its value in the files; null trains all."""

    @property
    def values(self) -> Sequence[int]:
        """Value in the label files of each class, background first."""
        return range(self.num_classes) if self.label_values is None else self.label_values

    @property
    def target_class(self) -> int | None:
        """The class that is trained against background, None for all."""
        return None if self.target_label is None else self.class_of(self.target_label)

    @property
    def task_classes(self) -> int:
        """Classes that are trained, background included: 2 with a target label."""
        return self.num_classes if self.target_label is None else 2

    @property
    def foreground_labels(self) -> tuple[int, ...]:
        """Value of each foreground class that is trained, in order: what names its scores."""
        return tuple(self.values[1:]) if self.target_label is None else (self.target_label,)

    def class_of(self, value: int) -> int:
        """The class that has a value in the label files; the value must be one of them."""
        return list(self.values).index(value)

    @model_validator(mode="after")
    def _check_label_values(self) -> Self:
        values = self.label_values
        if values is not None and (values[:1] != [0] or values != sorted(set(values))):
            raise FieldsError(
                f"label_values={values} must ascend from 0, the background: give the value in the "
                "label files of each class once",
                ("label_values",),
            )
        default = "" if "num_classes" in self.model_fields_set else " (the default; give your own)"
        if values is not None and len(values) != self.num_classes:
            raise FieldsError(
                f"label_values has {len(values)} entries ({values}) but "
                f"num_classes={self.num_classes}{default}: give one value a class, 0 first",
                ("label_values", "num_classes"),
            )
        if self.target_label is None or self.target_label in self.values:
            return self
        if values is not None:
            raise FieldsError(
                f"target_label={self.target_label} must be one of the values in the label files: "
                f"{', '.join(map(str, values[1:]))}",
                ("target_label", "label_values"),
            )
        raise FieldsError(
            f"target_label={self.target_label} must be below num_classes={self.num_classes}"
            f"{default}: labels are 0 (background) to {self.num_classes - 1}; where those in the "
            "files have gaps, leave out num_classes, or give label_values",
            ("target_label", "num_classes"),
        )


def with_weight(
    base: Any, values: Sequence[int], entry: str, weight: Any, example: str
) -> list[Any]:
    """The class weights `base` with the weight of one class replaced.

    Args:
        base: A list of weights, or `uniform`.
        values: Value in the label files of each class.
        entry: The value of the class.
        weight: Its weight.
        example: The field, for messages.

    Raises:
        FieldsError: if `base` is a preset, or no class has that value.
    """
    if base == "uniform":
        weights: list[Any] = [1.0] * len(values)
    elif isinstance(base, list | tuple):
        weights = list(base)
    else:
        raise FieldsError(
            f"{example}={weight} cannot change one entry of the preset class_weights={base!r}: "
            "use a list or 'uniform', or a `when` condition",
            (example, "class_weights"),
        )
    known = values if len(values) == len(weights) else range(len(weights))
    if not entry.isdecimal() or int(entry) not in known:
        gaps = list(known) != list(range(len(known)))
        shown = ", ".join(map(str, known)) if gaps else f"0 to {len(weights) - 1}"
        raise FieldsError(
            f"{example} names no class: classes are {shown}"
            f"{' (the values in the label files)' if gaps else ''}",
            (example, "num_classes"),
        )
    weights[list(known).index(int(entry))] = weight
    return weights
