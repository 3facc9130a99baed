"""Many images in, many label maps out, with an exported model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning.utilities.memory import is_out_of_cpu_memory

from training.bundle.bundle import Bundle
from training.bundle.channel_check import declared_channels_lines
from training.bundle.output_files import check_output_files, output_files
from training.data.raw.file_names import (
    ALL_ENDINGS,
    CaseFiles,
    by_stem,
    group_by_case,
    image_files,
    image_problem,
)
from training.data.raw.formats.dicom_files import is_series
from training.data.raw.formats.file_format import ENDINGS, image_stem, known_format
from training.data.raw.volume import voxels_in_header
from training.errors import BundleError, DatasetError
from training.local_path import MISSING


def predict_images(
    bundle_folder: Path,
    images: Sequence[Path],
    output: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    trust_code: bool = False,
    mirroring: bool = True,
    probabilities: bool = False,
    skip_existing: bool = False,
    file_format: str | None = None,
    check_channels: bool = True,
    on_case: Callable[[str], None],
) -> list[str]:
    """Segment images and write one label map a case.

    A failed case is reported with its file, and the others go on. A label map is
    written in full or not at all.

    Args:
        bundle_folder: The exported model.
        images: Image files, or folders of them; `training.data.raw.file_names` says which names are
            channels of one case. Naming one of its files is enough.
        output: Folder to write a label map a case to, or, for one case, a file.
        device: Torch device; a GPU if there is one, by default.
        overwrite: Whether files that are there already may be replaced; images never are.
        trust_code: Whether a network that is not of this package may be imported, see
            `Bundle.load`.
        mirroring: Whether networks predict mirrored images as well, where the bundle says so.
        probabilities: Whether class probabilities are written as well, as
            `CASE_probabilities.nii.gz` beside the label map.
        skip_existing: Whether cases whose files are there already, and can be read, are left as
            they are: so that a long run that was cut off can go on.
        file_format: Format of the label maps, see `training.bundle.output_files`; that of each
            image by default.
        check_channels: Whether images that cannot be of the channels which the model was trained
            on are refused, see `training.bundle.channel_check`.
        on_case: Called with a line about each case, and with the numbers of those that were skipped
            and of those that failed.

    Returns:
        Cases that could not be segmented; the others were.

    Raises:
        BundleError: before anything is segmented, if the model cannot be read, an image does not
            exist, a label map would replace a file, or the folder cannot be written.
    """
    if overwrite and skip_existing:
        raise BundleError("files that exist are replaced or skipped: say one of the two")
    if device is not None:
        _check_device(device)
    bundle = Bundle.load(
        bundle_folder,
        device,
        trust_code=trust_code,
        mirroring=mirroring,
        check_channels=check_channels,
    )
    bundle = replace(bundle, tell=on_case)
    _check_declared_channels(bundle, images)
    cases = collect_cases(
        images,
        bundle.config.input_channels,
        missing_channels=bundle.preprocessing.missing_channels,
    )
    targets = output_files(cases, output, probabilities=probabilities, file_format=file_format)
    if skip_existing:
        whole = {name for name in cases if targets[name].is_whole()}
        cases = {name: files for name, files in cases.items() if name not in whole}
        if whole:
            on_case(f"{len(whole)} of {len(targets)} cases are there already and are left alone")
    check_output_files(cases, targets, overwrite=overwrite)
    progress = _Progress({name: sum(map(voxels_in_header, cases[name])) for name in cases})
    failed = []
    for name, files in cases.items():
        wanted = targets[name]
        try:
            bundle.predict(
                files,
                wanted.label_map,
                probabilities=wanted.probabilities,
                file_format=file_format,
            )
        except Exception as error:
            failed.append(name)
            progress.after(name)
            on_case(f"{name}: not segmented: {_reason(error, files)}")
        else:
            on_case(f"{name}: {wanted.label_map}{progress.after(name)}")
    if failed and len(cases) > 1:
        on_case(f"{len(failed)} of {len(cases)} cases could not be segmented")
    return failed


def _check_declared_channels(bundle: Bundle, images: Sequence[Path]) -> None:
    """Check what is said of the channels of images, unless that is not wanted."""
    if bundle.check_channels:
        for line in declared_channels_lines(bundle.manifest.channels, images):
            bundle.tell(line)


class _Progress:
    """How many cases are done, and how long the others will take, by their voxels.

    Args:
        voxels: Voxels of each case.
    """

    def __init__(self, voxels: Mapping[str, int]) -> None:
        self._left = dict(voxels)
        self._count = len(voxels)
        self._done = 0
        self._started = time.monotonic()

    def after(self, name: str) -> str:
        """What to say when a case is done: its number, and the time that is left."""
        # a file whose header cannot be read has 0 voxels
        self._done += max(self._left.pop(name), 1)
        if self._count == 1:
            return ""
        number = f"{self._count - len(self._left)} of {self._count}"
        if not self._left:
            return f" ({number})"
        seconds = (time.monotonic() - self._started) * sum(self._left.values()) / self._done
        return f" ({number}, {time_left(seconds)} left)"


def time_left(seconds: float) -> str:
    """A time to wait in words, no finer than it can be known."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _reason(error: Exception, files: Sequence[Path]) -> str:
    """Why a case was not segmented, with its file."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or is_out_of_cpu_memory(error):
        text = f"out of memory ({(text or type(error).__name__).splitlines()[0]})"
    elif not isinstance(error, DatasetError | BundleError):
        text = ": ".join(filter(None, [type(error).__name__, *text.splitlines()[:1]]))
    return text if any(str(file) in text for file in files) else f"{files[0]}: {text}"


def collect_cases(
    images: Sequence[Path], channels: int, *, missing_channels: bool = False
) -> dict[str, list[Path]]:
    """Image files by case name, each with its channels in order.

    Names mean what they mean in training, see `training.data.raw.file_names`; which of them are
    channels depends on all files of a folder, also where single files are given.

    Args:
        images: Image files, or folders of them.
        channels: Channels of a case.
        missing_channels: Whether a case may lack some of them.

    Raises:
        BundleError: if a path does not exist, is not an image file, or two cases share a name.
    """
    try:
        return _collect(images, channels, missing_channels=missing_channels)
    except DatasetError as error:
        raise BundleError(str(error)) from error


def _collect(
    images: Sequence[Path], channels: int, *, missing_channels: bool
) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for name, case in _cases_of(images, channels):
        files = list(case.paths)
        lacks = case.lacks(channels)
        if lacks and (not missing_channels or case.in_another_format(channels)):
            untrained = ", and the model was not trained to do without a channel (missing_channels)"
            raise BundleError(
                f"the case {name} lacks {lacks}{'' if missing_channels else untrained}"
            )
        if cases.setdefault(name, files) != files:
            raise BundleError(
                f"{files[0]} and {cases[name][0]} would both be written as {name}: "
                "segment them one after the other, into different folders"
            )
    return cases


def _cases_of(images: Sequence[Path], channels: int) -> Iterator[tuple[str, CaseFiles]]:
    """The cases of files and folders in the order given, duplicates included."""
    given: dict[Path, list[Path]] = {}
    for path in images:
        if not path.is_dir() or is_series(path):
            _check_image(path)
            given.setdefault(path.parent, []).append(path)
    of_files = {
        folder: group_by_case(_with_neighbours(folder, paths), channels)
        for folder, paths in given.items()
    }
    for path in images:
        if path.is_dir() and not is_series(path):
            files = image_files(path).files
            if not files:
                raise BundleError(f"the folder {path} has no image ({ALL_ENDINGS})")
            yield from group_by_case(by_stem(files), channels).items()
        else:
            yield from (
                (name, case) for name, case in of_files[path.parent].items() if path in case.paths
            )


def _with_neighbours(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Files by stem: those given, and what else is in their folder."""
    given = by_stem(paths)
    there = image_files(folder)
    ranks = {known_format(path).rank for path in paths}
    neighbours = {
        image_stem(path) or path.name: path
        for path in (*there.files, *there.others)
        if known_format(path).rank in ranks
    }
    return {**neighbours, **given}


def _check_image(path: Path) -> None:
    problem = image_problem(path)
    if problem == MISSING:
        raise BundleError(f"there is no image {path}")
    if problem is not None:
        raise BundleError(f"the image {path} {problem}")
    if image_stem(path) is None:
        why = (
            "it is a hidden file"
            if path.name.startswith(".")
            else f"its name must end in one of {', '.join(ENDINGS)}"
        )
        raise BundleError(f"{path} is not an image: {why}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BundleError(
            f"--device {device} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
