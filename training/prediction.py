"""Many NIfTI images in, many label maps out, with an exported model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from training.bundle import Bundle, BundleError

SUFFIXES = (".nii.gz", ".nii")
CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")


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
        images: NIfTI files, or folders of them. `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ...
            are the channels of one case; naming its first file is enough.
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

    Raises:
        BundleError: if a path does not exist, is no NIfTI file, or two cases share a name.
    """
    cases: dict[str, list[Path]] = {}
    for path in _expand(images):
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        ending = path.name.removeprefix(stem)
        channel = CHANNEL_SUFFIX.search(stem)
        name = stem[: channel.start()] if channel else stem
        files = (
            [path.with_name(f"{name}_{index:04}{ending}") for index in range(channels)]
            if channel
            else [path]
        )
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise BundleError(f"the case {name} lacks {', '.join(missing)}")
        if cases.setdefault(name, files) != files:
            raise BundleError(
                f"{files[0]} and {cases[name][0]} would both be written as {name}.nii.gz: "
                "segment them one after the other, into different folders"
            )
    return cases


def _expand(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in images:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
            if not found:
                raise BundleError(f"the folder {path} has no NIfTI file (*.nii.gz, *.nii)")
            files.extend(found)
        elif not path.exists():
            raise BundleError(f"there is no image {path}")
        elif not path.name.endswith(SUFFIXES):
            raise BundleError(f"{path} is no NIfTI file: its name must end in .nii.gz or .nii")
        else:
            files.append(path)
    return files


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
