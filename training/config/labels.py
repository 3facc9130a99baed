"""Fields of the classes: their values in the label files, and which of them is trained.

Wherever a label is given by a number (`target_label`, `class_weights.N`, the N of `val_dice_N`),
the number is its value in the label files. Where those are 0, 1, 2, ... it is the class as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from training.config.base import NOT_SEARCHABLE
from training.config.network import NetworkFields
from training.config.regions import PRESETS, Regions, check_regions, derived_order
from training.config.types import Int
from training.errors import FieldsError
from training.registry import LOSSES


def _known_preset(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(
            f"{value!r} is no preset ({', '.join(PRESETS)}): give one, or map the name of each "
            "region to its label values, e.g. {whole: [1, 2, 3], core: [2, 3]}"
        )
    return value


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

    regions: Annotated[dict[str, list[LabelValue]] | str | None, BeforeValidator(_known_preset)] = (
        Field(default=None, json_schema_extra=NOT_SEARCHABLE)
    )
    """Regions to train in place of exclusive classes, each a union of labels by their values in
    the files, e.g. `{whole: [1, 2, 3], core: [2, 3], enhancing: [3]}`; or a preset: `brats`.

    The network has a channel a region, with a sigmoid. Regions of `dataset.json` (nnU-Net's) are
    taken from there.
    """

    regions_class_order: list[LabelValue] | None = Field(
        default=None, json_schema_extra=NOT_SEARCHABLE
    )
    """Label value that is written where a region is predicted, one a region; a later one is
    written over earlier ones. Null takes the first value of each region that no later one has."""

    @property
    def label_regions(self) -> Regions | None:
        """The regions by classes; None where classes are exclusive.

        Raises:
            FieldsError: if `regions` is a preset, which only the data can resolve.
        """
        if self.regions is None:
            return None
        if isinstance(self.regions, str):
            raise FieldsError(
                f"regions={self.regions} is a preset, which the labels of the data resolve: use "
                "training.data.task_of_data(config, data_dir) for a config with its regions",
                ("regions",),
            )
        self._check_values_of_regions(self.regions)
        order = self.regions_class_order or derived_order(self.regions)
        return Regions(
            tuple(self.regions),
            tuple(tuple(self.class_of(value) for value in of) for of in self.regions.values()),
            tuple(self.class_of(value) for value in order),
            self.num_classes,
        )

    @property
    def task_channels(self) -> int:
        """Channels that probabilities have: one a region, or one a class that is trained."""
        regions = self.label_regions
        return self.task_classes if regions is None else len(regions)

    @property
    def output_channels(self) -> int:
        """Channels of the network: one a region, or one a class."""
        return self.num_classes if self.regions is None else self.task_channels

    @property
    def score_names(self) -> tuple[str, ...]:
        """What scores are named by: regions, or values of the classes that are trained."""
        regions = self.label_regions
        if regions is not None:
            return regions.score_names
        return tuple(str(value) for value in self.foreground_labels)

    @property
    def weighted_names(self) -> tuple[str, ...]:
        """What has a class weight: regions, or values of all classes."""
        regions = self.label_regions
        return tuple(str(value) for value in self.values) if regions is None else regions.names

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
    def _check_label_regions(self) -> Self:
        if self.regions is None:
            if self.regions_class_order is not None:
                raise FieldsError(
                    f"regions_class_order={self.regions_class_order} needs regions: set them, or "
                    "leave it out",
                    ("regions_class_order",),
                )
            return self
        if self.target_label is not None:
            raise FieldsError(
                f"target_label={self.target_label} and regions: a target label is a task of one "
                "label; leave one of them out, or train one region of that label",
                ("target_label", "regions"),
            )
        if isinstance(self.regions, str):
            return self
        check_regions(self.regions, self.regions_class_order)
        if self.regions_class_order is None:
            derived_order(self.regions)
        # the data may decide the classes later
        if self.label_values is not None or "num_classes" in self.model_fields_set:
            self._check_values_of_regions(self.regions)
        return self

    def _check_values_of_regions(self, regions: Mapping[str, Sequence[int]]) -> None:
        for name, values in regions.items():
            unknown = [value for value in values if value not in self.values]
            if unknown:
                known = ", ".join(str(value) for value in self.values[1:])
                given = "num_classes" in self.model_fields_set
                default = f" (by the default num_classes={self.num_classes}; give your own)"
                raise FieldsError(
                    f"the region {name!r} has the label {unknown[0]}, but labels are "
                    f"{known}{'' if given else default}",
                    ("regions", "num_classes"),
                )

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
    base: Any, names: Sequence[str], entry: str, weight: Any, example: str
) -> list[Any]:
    """The class weights `base` with the weight of one class or region replaced.

    Args:
        base: A list of weights, or `uniform`.
        names: What has a weight: the value in the label files of each class, or each region.
        entry: One of them.
        weight: Its weight.
        example: The field, for messages.

    Raises:
        FieldsError: if `base` is a preset, or there is no such class or region.
    """
    if base == "uniform":
        weights: list[Any] = [1.0] * len(names)
    elif isinstance(base, list | tuple):
        weights = list(base)
    else:
        raise FieldsError(
            f"{example}={weight} cannot change one entry of the preset class_weights={base!r}: "
            "use a list or 'uniform', or a `when` condition",
            (example, "class_weights"),
        )
    known = list(names) if len(names) == len(weights) else [str(n) for n in range(len(weights))]
    if entry not in known:
        if known == [str(number) for number in range(len(known))]:
            shown = f"classes are 0 to {len(weights) - 1}"
        elif all(name.isdecimal() for name in known):
            shown = f"classes are {', '.join(known)} (the values in the label files)"
        else:
            shown = f"regions are {', '.join(known)}"
        hint = "" if entry.isdecimal() else "; to name a region, give them in `regions`"
        raise FieldsError(f"{example} names no class: {shown}{hint}", (example, "num_classes"))
    weights[known.index(entry)] = weight
    return weights


def loss_without_regions(loss: str) -> str:
    """What is wrong with a loss of regions where there are none."""
    return (
        f"loss={loss} is for regions, and there are none: its sigmoids would train overlapping "
        f"classes; choose {', '.join(LOSSES)}, or set regions"
    )
