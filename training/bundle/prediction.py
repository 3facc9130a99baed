"""Many NIfTI images in, many label maps out, with an exported model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning.utilities.memory import is_out_of_cpu_memory

from training.bundle.bundle import Bundle
from training.data.raw.file_names import (
    CaseFiles,
    by_stem,
    file_problem,
    group_by_case,
    nifti_files,
    nifti_stem,
)
from training.durable_write import check_writable
from training.errors import BundleError, DatasetError
from training.local_path import MISSING

SUFFIXES = (".nii.gz", ".nii")


def predict_images(
    bundle_folder: Path,
    images: Sequence[Path],
    output: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    trust_code: bool = False,
    on_case: Callable[[str], None],
) -> list[str]:
    """Segment images and write one label map a case.

    A failed case is reported with its file, and the others go on. A label map is
    written in full or not at all.

    Args:
        bundle_folder: The exported model.
        images: NIfTI files, or folders of them; `training.data.raw.file_names` says which names are
            channels of one case. Naming one of its files is enough.
        output: Folder to write `CASE.nii.gz` to, or, for one case, a NIfTI file.
        device: Torch device; a GPU if there is one, by default.
        overwrite: Whether files that are there already may be replaced; images never are.
        trust_code: Whether a network that is not of this package may be imported, see
            `Bundle.load`.
        on_case: Called with a line about each case, and with the number of failed cases of several.

    Returns:
        Cases that could not be segmented; the others were.

    Raises:
        BundleError: before anything is segmented, if the model cannot be read, an image does not
            exist, a label map would replace a file, or the folder cannot be written.
    """
    if device is not None:
        _check_device(device)
    bundle = replace(Bundle.load(bundle_folder, device, trust_code=trust_code), tell=on_case)
    cases = collect_cases(images, bundle.config.input_channels)
    targets = _targets(cases, output)
    _check_targets(cases, targets, overwrite=overwrite)
    failed = []
    for name, files in cases.items():
        try:
            bundle.predict(files, targets[name])
        except Exception as error:
            failed.append(name)
            line = f"{name}: not segmented: {_reason(error, files)}"
        else:
            line = f"{name}: {targets[name]}"
        on_case(line)
    if failed and len(cases) > 1:
        on_case(f"{len(failed)} of {len(cases)} cases could not be segmented")
    return failed


def _targets(cases: Mapping[str, Sequence[Path]], output: Path) -> dict[str, Path]:
    """The label map that each case is written to."""
    if not output.name.lower().endswith(SUFFIXES):
        return {name: output / f"{name}.nii.gz" for name in cases}
    if len(cases) > 1:
        raise BundleError(f"{output} is one file, but there are {len(cases)} cases: give a folder")
    return dict.fromkeys(cases, output)


def _check_targets(
    cases: Mapping[str, Sequence[Path]], targets: Mapping[str, Path], *, overwrite: bool
) -> None:
    """Check that label maps can be written, and replace nothing that they must not.

    Raises:
        BundleError: naming what is in the way.
    """
    inputs = {_identity(file): file for files in cases.values() for file in files}
    existing = []
    for name, target in targets.items():
        if not target.exists() and not target.is_symlink():
            continue
        image = inputs.get(_identity(target))
        if image is not None:
            whose = "its image" if image in cases[name] else f"the image {image}"
            raise BundleError(f"the label map {target} would replace {whose}: choose another -o")
        if not target.is_file():
            raise BundleError(f"{target} exists and is not a file: choose another -o")
        existing.append(target)
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise BundleError(
            f"the label map {existing[0]}{others} already: choose another -o, or say --overwrite "
            "to have what is there replaced"
        )
    for folder in {target.parent for target in targets.values()}:
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


def _reason(error: Exception, files: Sequence[Path]) -> str:
    """Why a case was not segmented, with its file."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or is_out_of_cpu_memory(error):
        text = f"out of memory ({(text or type(error).__name__).splitlines()[0]})"
    elif not isinstance(error, DatasetError | BundleError):
        text = ": ".join(filter(None, [type(error).__name__, *text.splitlines()[:1]]))
    return text if any(str(file) in text for file in files) else f"{files[0]}: {text}"


def collect_cases(images: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    """Image files by case name, each with its channels in order.

    Names mean what they mean in training, see `training.data.raw.file_names`; which of them are
    channels depends on all files of a folder, also where single files are given.

    Args:
        images: NIfTI files, or folders of them.
        channels: Channels of a case.

    Raises:
        BundleError: if a path does not exist, is not a NIfTI file, or two cases share a name.
    """
    try:
        return _collect(images, channels)
    except DatasetError as error:
        raise BundleError(str(error)) from error


def _collect(images: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for name, case in _cases_of(images, channels):
        files = list(case.paths)
        if missing := case.missing(channels):
            raise BundleError(f"the case {name} lacks {', '.join(str(path) for path in missing)}")
        if cases.setdefault(name, files) != files:
            raise BundleError(
                f"{files[0]} and {cases[name][0]} would both be written as {name}.nii.gz: "
                "segment them one after the other, into different folders"
            )
    return cases


def _cases_of(images: Sequence[Path], channels: int) -> Iterator[tuple[str, CaseFiles]]:
    """The cases of files and folders in the order given, duplicates included."""
    given: dict[Path, list[Path]] = {}
    for path in images:
        if not path.is_dir():
            _check_image(path)
            given.setdefault(path.parent, []).append(path)
    of_files = {
        folder: group_by_case(_with_neighbours(folder, paths), channels)
        for folder, paths in given.items()
    }
    for path in images:
        if path.is_dir():
            files = nifti_files(path)
            if not files:
                raise BundleError(f"the folder {path} has no NIfTI file (*.nii.gz, *.nii)")
            yield from group_by_case(by_stem(files), channels).items()
        else:
            yield from (
                (name, case) for name, case in of_files[path.parent].items() if path in case.paths
            )


def _with_neighbours(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Files by stem: those given, and what else is in their folder."""
    given = by_stem(paths)
    neighbours = {nifti_stem(path) or path.name: path for path in nifti_files(folder)}
    return {**neighbours, **given}


def _check_image(path: Path) -> None:
    problem = file_problem(path)
    if problem == MISSING:
        raise BundleError(f"there is no image {path}")
    if problem is not None:
        raise BundleError(f"the image {path} {problem}")
    if nifti_stem(path) is None:
        why = (
            "it is a hidden file"
            if path.name.startswith(".")
            else "its name must end in .nii.gz or .nii"
        )
        raise BundleError(f"{path} is not a NIfTI file: {why}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
