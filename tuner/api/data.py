"""Checks data, as `tune data` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuner.api.libraries import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.statistics.check import DataCheck


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
