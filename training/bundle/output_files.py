"""Where predictions are written, and whether that replaces anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.bundle.label_file import check_label_file
from training.data.raw.formats.file_format import (
    FORMATS,
    known_format,
    label_ending,
    parts_of,
    split_name,
    written_format,
)
from training.durable_write import check_writable
from training.errors import BundleError

PROBABILITIES = "_probabilities"
"""What the name of a case's probabilities adds to that of its label map."""


@dataclass(frozen=True)
class Target:
    """The files that a case is written to.

    Attributes:
        label_map: Its label map.
        probabilities: Its class probabilities, if they are wanted.
    """

    label_map: Path
    probabilities: Path | None

    def files(self) -> list[Path]:
        """Those that are wanted."""
        return [file for file in (self.label_map, self.probabilities) if file is not None]

    def is_whole(self) -> bool:
        """Whether all of them are there and can be read to their end."""
        return all(
            file.exists() and known_format(file).module.is_whole(file) for file in self.files()
        )


def output_files(
    cases: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    probabilities: bool,
    file_format: str | None = None,
) -> dict[str, Target]:
    """The files that each case is written to.

    Args:
        cases: Image files by case.
        output: Folder to write a label map a case to, or, for one case, a file.
        probabilities: Whether class probabilities are written as well, `.nii.gz`.
        file_format: Format of the label maps, of `OUTPUT_FORMATS`; that of each image by default.

    Raises:
        BundleError: if several cases would be written to one file, or the name of the file is of
            another format than is wanted.
    """
    folder = output
    names = {name: f"{name}{label_ending(files[0], file_format)}" for name, files in cases.items()}
    # a folder may have any name
    if split_name(output.name) is not None and not output.is_dir():
        check_label_file(output)
        if len(cases) > 1:
            raise BundleError(
                f"{output} is one file, but there are {len(cases)} cases: give a folder"
            )
        written = written_format(output, file_format)
        if file_format is not None and written is not None and written != file_format:
            raise BundleError(
                f"{output} is {FORMATS[written].title}, but --format is {file_format}: leave out "
                "one of them"
            )
        folder, names = output.parent, dict.fromkeys(cases, output.name)
    targets = {}
    for name, file in names.items():
        stem, _ = split_name(file) or (file, "")
        beside = folder / f"{stem}{PROBABILITIES}.nii.gz" if probabilities else None
        targets[name] = Target(folder / file, beside)
    label_maps = {target.label_map: name for name, target in targets.items()}
    for name, target in targets.items():
        if target.probabilities in label_maps:
            raise BundleError(
                f"{target.probabilities} would hold the probabilities of {name} and the label map "
                f"of {label_maps[target.probabilities]}: segment them one after the other, into "
                "different folders"
            )
    return targets


def check_output_files(
    cases: Mapping[str, Sequence[Path]], targets: Mapping[str, Target], *, overwrite: bool
) -> None:
    """Check that files can be written, and replace nothing that they must not.

    Args:
        cases: Image files by case.
        targets: The files of these cases, and perhaps of others.
        overwrite: Whether files that are there already may be replaced; images never are.

    Raises:
        BundleError: naming what is in the way.
    """
    inputs = {
        _identity(part): file
        for files in cases.values()
        for file in files
        for part in parts_of(file)
    }
    existing = []
    wanted = [(name, file) for name in cases for file in targets[name].files()]
    for name, target in wanted:
        kind = "probabilities" if target == targets[name].probabilities else "label map"
        if not target.exists() and not target.is_symlink():
            continue
        image = inputs.get(_identity(target))
        if image is not None:
            whose = "its image" if image in cases[name] else f"the image {image}"
            raise BundleError(f"the {kind} {target} would replace {whose}: choose another -o")
        if not target.is_file():
            raise BundleError(f"{target} exists and is not a file: choose another -o")
        existing.append(target)
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise BundleError(
            f"{existing[0]}{others} already: choose another -o, or say --overwrite to have what is "
            "there replaced"
        )
    for folder in {target.parent for _, target in wanted}:
        _make_writable(folder)


def _identity(path: Path) -> object:
    """A key that is equal for two names of one file (links, case-insensitive file systems)."""
    try:
        status = path.stat()
    except OSError:
        return path.resolve()
    return status.st_dev, status.st_ino


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise BundleError(
            f"no label map can be written to {folder} ({error.strerror}): choose another -o"
        ) from error
