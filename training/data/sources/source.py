"""What is read of a source of data, whatever its layout: cases, channels, classes, folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.data.raw.file_names import file_problem
from training.data.raw.formats.file_format import parts_of
from training.errors import DatasetError

BACKGROUND = "background"


@dataclass(frozen=True)
class Request:
    """What a user says about a source.

    Attributes:
        channels: Names of the channels, which decide how they are normalised, or which are taken;
            by default those of the source.
        labels: Value of each class by name; by default those of the source.
        classes: Names of the classes that are taken of one mask a class; all by default.
        scratch: A folder that lasts as long as the conversion.
    """

    channels: tuple[str, ...] | None = None
    labels: Mapping[str, int] | None = None
    classes: tuple[str, ...] | None = None
    scratch: Path | None = None


@dataclass(frozen=True)
class SourceCase:
    """The files of a case.

    Attributes:
        case_id: Its name.
        images: One file a channel, or one with all of them.
        label: Its label map; None where it has masks.
        masks: A file for each class, by name, in the order of their values.
        segmentation: A DICOM-SEG or an RTSTRUCT that has the masks.
        origin: Files that stand for the case in the record; all its files by default.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    segmentation: Path | None = None
    origin: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        label = self.label or self.segmentation
        return (*self.images, *(() if label is None else (label,)), *self.masks.values())


@dataclass(frozen=True)
class Source:
    """Data in another layout.

    Attributes:
        name: Name of the dataset.
        channels: Name of each channel; None where nothing says it.
        labels: Value of each class by name, the background with 0; None where nothing says it,
            and the values of the label maps are taken.
        cases: All labelled cases.
        folds: Cases of `train`, `val` and perhaps `test` of each fold; empty where nothing says it.
        notes: What is there and not taken, and why.
    """

    name: str
    channels: tuple[str, ...] | None
    labels: Mapping[str, int] | None
    cases: tuple[SourceCase, ...]
    folds: tuple[Mapping[str, Sequence[str]], ...] = ()
    notes: tuple[str, ...] = ()

    def check(self, place: Path) -> None:
        """Check that all files are there, and no two cases have one name.

        Raises:
            DatasetError: for all that is missing, by file.
        """
        if not self.cases:
            raise DatasetError(f"{place} has no labelled case" + "".join(self._noted()))
        problems = [
            f"{place}: {count} cases have the name {case_id}"
            for case_id, count in Counter(case.case_id for case in self.cases).items()
            if count > 1
        ]
        for case in self.cases:
            if Path(case.case_id).name != case.case_id or case.case_id.startswith("."):
                problems.append(f"{place}: {case.case_id!r} is no name of a case")
            problems += [
                f"{part}: {problem}"
                for path in case.files
                for part in parts_of(path)
                if (problem := file_problem(part)) is not None
            ]
        if problems:
            raise DatasetError.of(place, list(dict.fromkeys(problems)))

    def _noted(self) -> list[str]:
        return [f"\n  {note}" for note in self.notes]


def mask_labels(names: Sequence[str]) -> dict[str, int]:
    """Values of classes that have a mask each: 1, 2, ... in their order, after the background."""
    return {BACKGROUND: 0, **{name: value for value, name in enumerate(names, start=1)}}
