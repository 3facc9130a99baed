"""The layouts that are converted, and which one a source has."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from training.data.raw.layouts import DATASET_JSON, IMAGES
from training.data.sources.kinds import SOURCES
from training.data.sources.source import Request, Source
from training.errors import DatasetError, suggestion
from training.local_path import absence


class SourceModule(Protocol):
    """Protocol of the module of a layout.

    Attributes:
        LOOKED_FOR: What it looks for, in words.
    """

    LOOKED_FOR: str

    def fits(self, path: Path) -> bool:
        """Whether a folder or file has this layout."""
        ...

    def read(self, path: Path, request: Request) -> Source:
        """The cases of a source."""
        ...


def source_module(kind: str) -> SourceModule:
    """The module of a layout.

    Raises:
        DatasetError: naming the layouts, for another name.
    """
    if kind not in SOURCES:
        raise DatasetError(f"there is no layout {kind!r}{suggestion(kind, SOURCES)}")
    return cast(SourceModule, import_module(SOURCES[kind]))


def recognise(path: Path, kind: str | None = None) -> tuple[str, Path]:
    """The layout of a source, and the folder or file that is read of it.

    A folder with one table or one datalist stands for that file.

    Args:
        path: The source.
        kind: The layout that it is said to have.

    Raises:
        DatasetError: if nothing is there, or it has no layout that is known, with what was looked
            for; or if it needs no conversion.
    """
    if (problem := absence(path)) is not None:
        raise DatasetError(f"{path}: {problem}")
    if kind is not None:
        module = source_module(kind)
        for candidate in (path, *_files_of(path)):
            if module.fits(candidate):
                return kind, candidate
        raise DatasetError(
            f"{path} is not of the layout {kind}: {module.LOOKED_FOR} were not found"
        )
    if (path / DATASET_JSON).is_file() and (path / IMAGES).is_dir():
        raise DatasetError(
            f"{path} has the layout that a study reads ({DATASET_JSON}, {IMAGES}), and needs no "
            f"conversion: check it with `tune data check {path}`"
        )
    found = [(name, place) for name in SOURCES if (place := _place(path, name)) is not None]
    if not found:
        listed = "".join(f"\n  {name}: {source_module(name).LOOKED_FOR}" for name in SOURCES)
        raise DatasetError(f"{path} has no layout that is known; these were looked for:{listed}")
    # a folder that is more than a file in it
    found.sort(key=lambda each: each[1] != path)
    (name, place), *others = found
    if others and (others[0][1] == path) == (place == path):
        names = ", ".join(each for each, _ in found)
        raise DatasetError(f"{path} may be of several layouts ({names}): say which with `--from`")
    return name, place


def _place(path: Path, kind: str) -> Path | None:
    module = source_module(kind)
    places = [place for place in (path, *_files_of(path)) if module.fits(place)]
    return places[0] if len(places) == 1 or (places and places[0] == path) else None


def _files_of(path: Path) -> list[Path]:
    """Tables and datalists in a folder."""
    if not path.is_dir():
        return []
    return sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in (".csv", ".tsv", ".json")
        and file.is_file()
        and file.name not in ("meta.csv", "participants.tsv", "dataset_description.json")
    )
