"""Checks data, shows them and brings them from other layouts, as `tune data` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import DatasetError
from tuner.api.libraries import quiet_libraries
from tuner.errors import SpecError, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.sources.convert import ConvertedData
    from training.data.sources.write import Overlap
    from training.data.statistics.check import DataCheck
    from training.data.statistics.typical import CaseRank

TYPICAL, OUTLYING = 4, 8
"""Cases that a report has pictures of."""

LARGEST_REPORT = 5_000_000
"""Bytes of a report at most, which a mail can bear: pictures are left out above it."""

CHANNELS = 4
"""Channels of which a typical case has pictures; an outlying one has those of the first."""


def check_data(
    data_dir: str | Path, *, headers_only: bool = False, progress: bool | Console = True
) -> DataCheck:
    """List all that is wrong or doubtful about data, file by file, before a study reads them.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout, its address, or `phantom`.
        headers_only: Whether voxels are left unread.
        progress: Whether to show the progress.

    Returns:
        What was found: `errors`, `warnings`, `ok`, and measures of each case (`cases`).

    Raises:
        DatasetError: if there is no such folder.

    Example:
        >>> import tuner
        >>> found = tuner.check_data("Task04_Hippocampus")  # doctest: +SKIP
        >>> [finding.message for finding in found.errors]  # doctest: +SKIP
        []
    """
    with quiet_libraries():
        from training.data.raw.phantom import resolve_data_dir
        from training.data.statistics.check import check_dataset
        from tuner.report.console import progress_console
        from tuner.report.preparation import preparation_view

        with preparation_view(progress_console(progress)) as (_, on_case):
            return check_dataset(
                resolve_data_dir(data_dir), headers_only=headers_only, on_case=on_case
            )


def report_data(
    data_dir: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool | Console = True,
) -> DataCheck:
    """Write one web page about data: sizes, intensities, classes, outliers, pictures, the plan.

    It is one file that loads nothing from elsewhere.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout, its address, or `phantom`.
        output: The file to write.
        overwrite: Whether a file that is there is replaced.
        progress: Whether to show the progress.

    Returns:
        What the check of the data found, which is on the page too.

    Raises:
        DatasetError: if there is no such folder.
        SpecError: if the file is there, or there is no folder for it.
        StudyError: if it cannot be written.

    Example:
        >>> import tuner
        >>> found = tuner.report_data("Task04_Hippocampus", "report.html")  # doctest: +SKIP
    """
    path = Path(output)
    _check_target(path, overwrite)
    check = check_data(data_dir, progress=progress)
    with quiet_libraries():
        from training.data.statistics.typical import rank_cases
        from training.durable_write import write_durably
        from tuner.init.data_plan import plan_data
        from tuner.report.data_html import data_page

        plan: list[tuple[str, str]] = []
        ranks: list[CaseRank] = []
        if check.dataset is not None and check.cases:
            plan = plan_data(check.dataset, check.cases).rows(check.dataset.channels)
            ranks = rank_cases(check.dataset, check.cases)
        typical, chosen = _chosen(check, ranks)
        pictures = _pictures(check, chosen, typical)
        page = data_page(check, plan, ranks, pictures, typical=typical)
        while len(page) > LARGEST_REPORT and pictures:
            pictures.popitem()
            page = data_page(check, plan, ranks, pictures, typical=typical)
        try:
            write_durably(path, page)
        except OSError as error:
            raise StudyError(f"{path} cannot be written: {error.strerror}") from error
    return check


def convert_data(
    source: str | Path,
    output: str | Path,
    *,
    kind: str | None = None,
    channels: Sequence[str] | None = None,
    labels: Mapping[str, int] | None = None,
    classes: Sequence[str] | None = None,
    overlap: Overlap = "error",
    link: bool = False,
    progress: bool | Console = True,
) -> ConvertedData:
    """Bring data from another layout into nnU-Net's, which a study reads.

    Nothing of the source is changed. A conversion that was cut off goes on with the next call.

    Args:
        source: Folder of TotalSegmentator, BIDS or DICOM, a CSV of image and label paths, or a
            MONAI datalist (JSON).
        output: Folder to write.
        kind: Layout of the source: `totalsegmentator`, `bids`, `dicom`, `csv` or `datalist`;
            recognised by default.
        channels: Names of the channels; by default as the source says.
        labels: Value of each class by name; by default as the source says.
        classes: Names of the masks that are taken, in the order of their values; all by default.
        overlap: What a voxel of two masks becomes: `error`, of the `first` or of the `last` class.
        link: Whether files that stay as they are become links to the source.
        progress: Whether to show the progress.

    Returns:
        What was written, and notes about what was left out.

    Raises:
        DatasetError: for all that is wrong with the source, by file; or if the output is there.
        StudyError: if the output cannot be written.

    Example:
        >>> import tuner
        >>> converted = tuner.convert_data(
        ...     "cases.csv", "Liver", channels=["CT"], labels={"liver": 1}
        ... )  # doctest: +SKIP
    """
    with quiet_libraries():
        from training.data.sources.convert import convert_dataset
        from training.data.sources.source import Request
        from tuner.report.console import progress_console
        from tuner.report.preparation import preparation_view

        request = Request(
            None if channels is None else tuple(channels),
            labels,
            None if classes is None else tuple(classes),
        )
        with preparation_view(progress_console(progress)) as (_, on_case):
            try:
                return convert_dataset(
                    Path(source),
                    Path(output),
                    kind=kind,
                    request=request,
                    overlap=overlap,
                    link=link,
                    on_case=on_case,
                )
            except OSError as error:
                raise StudyError(f"{output} cannot be written: {error.strerror}") from error


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file before the data are read."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder: name the file to write, e.g. {path / 'report.html'}")
    if path.exists() and not overwrite:
        raise SpecError(f"{path} is there already: choose another name, or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"{path} cannot be written: there is no folder {path.parent}")


def _chosen(check: DataCheck, ranks: Sequence[CaseRank]) -> tuple[list[str], list[str]]:
    """Names of the typical cases, and of all that are shown: those, then the outlying ones."""
    names = [rank.case.case_id for rank in ranks if rank.case.channels and rank.case.classes]
    named = list(dict.fromkeys(each.case for each in check.findings if each.case in names))
    typical = [name for name in names if name not in named][:TYPICAL]
    # what a finding names is looked at before what is merely unusual
    unusual = [rank.case.case_id for rank in reversed(ranks) if rank.reasons]
    outlying = [name for name in (*named, *unusual) if name in names and name not in typical]
    return typical, [*typical, *list(dict.fromkeys(outlying))[:OUTLYING]]


def _pictures(
    check: DataCheck, chosen: Sequence[str], typical: Sequence[str]
) -> dict[str, list[str]]:
    """Thumbnails of the chosen cases whose files can be read."""
    from training.data.statistics.planes import case_planes
    from tuner.report.data_pictures import own_window, shared_window, thumbnail

    dataset = check.dataset
    if dataset is None:
        return {}
    cases = {case.case_id: case for case in dataset.cases}
    measures = {case.case_id: case for case in check.cases}
    shared = [
        shared_window(check.cases, index) if modality == "CT" else None
        for index, modality in enumerate(dataset.modalities)
    ]
    pictures: dict[str, list[str]] = {}
    for name in chosen:
        # what is wrong with it is among the findings
        with suppress(DatasetError):
            planes = case_planes(cases[name], dataset)
            channels = len(dataset.channels) if name in typical else 1
            pictures[name] = [
                thumbnail(plane, channel, shared[channel] or own_window(measures[name], channel))
                for channel in range(min(channels, CHANNELS))
                for plane in planes
            ]
    return pictures
