"""Many NIfTI images in, many label maps out, with an exported model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from training.bundle import Bundle, BundleError
from training.data.errors import DatasetError
from training.data.file_names import (
    MISSING,
    CaseFiles,
    by_stem,
    file_problem,
    group_by_case,
    nifti_files,
    nifti_stem,
)

SUFFIXES = (".nii.gz", ".nii")


def predict_images(
    bundle_folder: Path,
    images: Sequence[Path],
    output: Path,
    *,
    device: str | None = None,
    on_case: Callable[[str], None],
) -> list[str]:
    """Segment images and write one label map a case.

    Args:
        bundle_folder: The exported model.
        images: NIfTI files, or folders of them; `training.data.file_names` says which names are
            channels of one case. Naming one of its files is enough.
        output: Folder to write `CASE.nii.gz` to, or, for one case, a NIfTI file.
        device: Torch device; a GPU if there is one, by default.
        on_case: Told a line about each case.

    Returns:
        Cases that could not be segmented; the others were.

    Raises:
        BundleError: if the model cannot be read, or an image does not exist.
    """
    if device is not None:
        _check_device(device)
    bundle = Bundle.load(bundle_folder, device)
    cases = collect_cases(images, bundle.config.input_channels)
    to_file = output.name.endswith(SUFFIXES)
    if to_file and len(cases) > 1:
        raise BundleError(f"{output} is one file, but there are {len(cases)} cases: give a folder")
    failed = []
    for name, files in cases.items():
        target = output if to_file else output / f"{name}.nii.gz"
        if target.resolve() in {file.resolve() for file in files}:
            raise BundleError(f"the label map {target} would replace its image: choose another -o")
        try:
            bundle.predict(files, target)
        except (ValueError, OSError) as error:
            failed.append(name)
            on_case(f"{name}: not segmented: {error}")
        else:
            on_case(f"{name}: {target}")
    return failed


def collect_cases(images: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    """Image files by case name, each with its channels in order.

    Names mean what they mean in training, see `training.data.file_names`; which of them are
    channels depends on all files of a folder, also where single files are given.

    Args:
        images: NIfTI files, or folders of them.
        channels: Channels of a case.

    Raises:
        BundleError: if a path does not exist, is no NIfTI file, or two cases share a name.
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
    """The cases of files and folders in the order given, also such as come again."""
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
        raise BundleError(f"{path} is no NIfTI file: {why}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
