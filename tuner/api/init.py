"""Writes a search space for data, as `tune init` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ByteSize, TypeAdapter, ValidationError

from training.local_path import is_url
from tuner.api.libraries import quiet_libraries
from tuner.errors import SpecError, StudyError
from tuner.spec.settings import EMBEDDED_DATA
from tuner.spec.study_spec import StudySpec

if TYPE_CHECKING:
    from rich.console import Console

LEAST_MEMORY = ByteSize(4_000_000_000)
"""GPU memory that a space can be written for: libraries alone take 2.5 GB of it."""


def init_space(
    data_dir: str | Path,
    output: str | Path | None = None,
    *,
    hours: float = 8.0,
    gpu_memory: str | int | None = None,
    overwrite: bool = False,
    progress: bool | Console = True,
) -> StudySpec:
    """A search space for data: patch, batch, networks, epochs and trials, with their reasons.

    The data are prepared as a study of the space will use them, and training steps are measured
    where the device is in this machine.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout, its address, or `phantom`.
        output: YAML file to write; none by default. `StudySpec.source_text` has the same text.
        hours: What a study of the space may take.
        gpu_memory: Memory of the GPU that trials will train on, such as `"24GB"`; that of this
            machine by default.
        overwrite: Whether a file that is there is replaced.
        progress: Whether to show the progress.

    Returns:
        The space, which `tuner.run` takes.

    Raises:
        SpecError: for a value that cannot be used, or if the file is there.
        DatasetError: if the data cannot be used.
        StudyError: if no network fits into the memory, or the file cannot be written.

    Example:
        >>> import tuner
        >>> spec = tuner.init_space("Task04_Hippocampus", "hippocampus.yaml")  # doctest: +SKIP
        >>> tuner.run(spec, name="hippocampus")  # doctest: +SKIP
    """
    path = None if output is None else Path(output)
    if path is not None:
        _check_target(path, overwrite)
    if not hours > 0:
        raise SpecError(f"hours={hours:g} is no time for a search: give e.g. 8, or 0.5")
    memory = _bytes(gpu_memory)
    with quiet_libraries():
        from tuner.init.space import space_for
        from tuner.report.console import progress_console
        from tuner.report.preparation import preparation_view

        source = path or Path(f"{_usual_stem(data_dir)}.yaml")
        with preparation_view(progress_console(progress)) as (on_progress, on_case):
            spec = space_for(
                data_dir,
                hours=hours,
                gpu_memory=memory,
                source=source,
                on_progress=on_progress,
                on_case=on_case,
            )
    if path is not None:
        from training.durable_write import write_durably

        try:
            write_durably(path, spec.source_text)
        except OSError as error:
            raise StudyError(f"{path} cannot be written: {error.strerror}") from error
    return spec


def is_data(space: str | Path) -> bool:
    """Whether what stands in the place of a search space is a folder of data, or an address."""
    return str(space) == EMBEDDED_DATA or is_url(space) or Path(space).is_dir()


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file before the data are read."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder: name the file to write, e.g. {path / 'space.yaml'}")
    if path.exists() and not overwrite:
        raise SpecError(f"{path} is there already: choose another name, or give --overwrite")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"{path} cannot be written: there is no folder {path.parent}")


def _bytes(gpu_memory: str | int | None) -> int | None:
    """Bytes of a size such as `24GB`."""
    if gpu_memory is None:
        return None
    try:
        size = TypeAdapter(ByteSize).validate_python(gpu_memory)
    except ValidationError as error:
        raise SpecError(f"gpu_memory={gpu_memory!r} is not a size: write e.g. 24GB") from error
    if size < LEAST_MEMORY:
        raise SpecError(
            f"gpu_memory={gpu_memory} is too little to train: at least "
            f"{LEAST_MEMORY.human_readable(decimal=True)} are needed"
        )
    return size


def _usual_stem(data_dir: str | Path) -> str:
    return EMBEDDED_DATA if str(data_dir) == EMBEDDED_DATA else Path(data_dir).absolute().name
