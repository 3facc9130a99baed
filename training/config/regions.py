"""Regions: overlapping unions of labels that are trained in place of exclusive classes.

As in nnU-Net v2 (its `label_handling`): a network has one output channel a region and none for the
background, and `regions_class_order` says how predicted regions become a label map again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.errors import DatasetError, FieldsError

RESERVED_NAMES = ("background", "ignore", "missing")
"""Names that no region can have, since they mean something else in labels and scores."""


@dataclass(frozen=True)
class Regions:
    """The regions of a task, by classes (not by values in label files).

    Attributes:
        names: Name of each region, in the order of the network's channels.
        classes: Classes of each region.
        order: Class that is written for each region; a later region is written over earlier ones.
        num_classes: Classes of the label maps, background included.
    """

    names: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    num_classes: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the scores of each region are named by, as in `val_dice_whole_tumour`."""
        return tuple(score_name(name) for name in self.names)

    def decoded(self, present: Sequence[bool]) -> int:
        """The class that is written where some regions are present."""
        written = 0
        for found, value in zip(present, self.order, strict=True):
            written = value if found else written
        return written

    def without(self, region: int) -> tuple[int, ...]:
        """What each class becomes where a region is taken away, with all regions inside it."""
        inside = [set(other) <= set(self.classes[region]) for other in self.classes]
        return tuple(
            value
            if value not in self.classes[region]
            else self.decoded(
                [
                    value in other and not gone
                    for other, gone in zip(self.classes, inside, strict=True)
                ]
            )
            for value in range(self.num_classes)
        )

    def not_restored(self) -> dict[int, int]:
        """Classes that are in other regions once they were regions, and the class they become."""
        changed = {}
        for value in range(1, self.num_classes):
            present = [value in classes for classes in self.classes]
            written = self.decoded(present)
            if present != [written in classes for classes in self.classes]:
                changed[value] = written
        return changed


def score_name(name: str) -> str:
    """The name of a region as a part of a metric's name: letters, digits and `_`."""
    return re.sub(r"\W+", "_", name).strip("_")


def check_regions(regions: Mapping[str, Sequence[int]], order: Sequence[int] | None) -> None:
    """Check regions by themselves, in values of the label files.

    Raises:
        FieldsError: for a name that cannot be, a region that is empty or has the background, or an
            order that does not fit.
    """
    problem = _problem_of_names(list(regions))
    for name, values in regions.items():
        if problem is None and (not values or 0 in values or len(set(values)) < len(values)):
            problem = (
                f"the region {name!r} must have label values above 0, each once, but has "
                f"{list(values)}"
            )
    if problem is not None:
        raise FieldsError(f"regions: {problem}", ("regions",))
    if order is None:
        return
    if len(order) != len(regions):
        raise FieldsError(
            f"regions_class_order={list(order)} has {len(order)} entries, but there are "
            f"{len(regions)} regions ({', '.join(regions)}): give the label value that is written "
            "for each",
            ("regions_class_order", "regions"),
        )
    for (name, values), written in zip(regions.items(), order, strict=True):
        if written not in values:
            raise FieldsError(
                f"regions_class_order={list(order)} writes {written} for the region {name!r}, "
                f"whose label values are {list(values)}: choose one of them",
                ("regions_class_order", "regions"),
            )


def _problem_of_names(names: Sequence[str]) -> str | None:
    if not names:
        return "there is none: name at least one, or leave the field out"
    for name in names:
        if not score_name(name):
            return f"the name {name!r} has no letter or digit"
        if score_name(name).lower() in RESERVED_NAMES:
            return f"the name {name!r} means something else: choose another"
    short = [score_name(name).lower() for name in names]
    twice = [name for name, one in zip(names, short, strict=True) if short.count(one) > 1]
    return f"{' and '.join(map(repr, twice))} are one name in scores" if twice else None


def derived_order(regions: Mapping[str, Sequence[int]]) -> list[int]:
    """The label value that is written for each region: its first that no later region has.

    Raises:
        FieldsError: if a region has none.
    """
    order = []
    names = list(regions)
    for index, name in enumerate(names):
        later = {value for other in names[index + 1 :] for value in regions[other]}
        own = [value for value in regions[name] if value not in later]
        if not own:
            raise FieldsError(
                f"the region {name!r} ({list(regions[name])}) lies within those after it: order "
                "regions from the outer to the inner, or give regions_class_order, the label value "
                "that is written for each",
                ("regions",),
            )
        order.append(own[0])
    return order


PRESETS = {"brats": ("whole_tumour", "tumour_core", "enhancing_tumour")}
"""Names that `regions` may have in place of a mapping, and the regions of each."""

_ROLES = (
    # the first that fits; a name may say two of the core's parts
    ("oedema", re.compile(r"o?edema|\bed\b|snfh|peritumou?ral|invasion", re.IGNORECASE)),
    ("core", re.compile(r"non.?enhanc|necro|\bncr\b|\bnet\b|\bnec\b|\bcore\b", re.IGNORECASE)),
    ("enhancing", re.compile(r"enhanc|\bet\b|\bactive\b", re.IGNORECASE)),
)

_BY_VALUES = {
    (1, 2, 3, 4): {"oedema": [2], "core": [1, 3], "enhancing": [4]},
    (1, 2, 4): {"oedema": [2], "core": [1], "enhancing": [4]},
}
"""Roles of BraTS's labels where their names do not tell: of 2015, and of 2017 to 2021."""


def brats_regions(names: Sequence[str], values: Sequence[int], where: str) -> dict[str, list[int]]:
    """BraTS's nested regions: whole tumour, tumour core, enhancing tumour.

    Which label is what is told by its name, else by its value in BraTS 2015 (necrosis 1, oedema 2,
    non-enhancing 3, enhancing 4) or in BraTS 2017 to 2021 (1, 2, 4).

    Args:
        names: Name of each label, background first.
        values: Value of each.
        where: The data, for messages.

    Raises:
        DatasetError: if neither names nor values tell.
    """
    roles: dict[str, list[int]] = {"oedema": [], "core": [], "enhancing": []}
    told = True
    for name, value in zip(names[1:], values[1:], strict=True):
        plain = name.replace("_", " ")
        role = next((role for role, words in _ROLES if words.search(plain)), None)
        if role is None:
            told = False
        else:
            roles[role].append(value)
    if not told or len(roles["oedema"]) != 1 or len(roles["enhancing"]) != 1 or not roles["core"]:
        # names that say something else than the values must not be overruled
        by_value = None if any(roles.values()) else _BY_VALUES.get(tuple(values[1:]))
        if by_value is None:
            shown = ", ".join(f"{n} = {v}" for n, v in zip(names, values, strict=True))
            raise DatasetError(
                f"regions=brats does not fit the labels of the data in {where} ({shown}): it needs "
                "oedema, enhancing tumour and necrosis or non-enhancing tumour by their names, or "
                "the values 1, 2, 3, 4 of BraTS 2015 or 1, 2, 4 of BraTS 2017 to 2021. Name the "
                "labels so in dataset.json, or give regions of your own: "
                "regions: {whole: [1, 2, 3], core: [1, 3], enhancing: [3]}"
            )
        roles = by_value
    core = [*roles["core"], *roles["enhancing"]]
    found = ([*roles["oedema"], *core], core, roles["enhancing"])
    return dict(zip(PRESETS["brats"], found, strict=True))
