"""Runs, resumes, opens and lists studies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.api.libraries import quiet_libraries
from tuner.api.study import Study, StudyInterrupted
from tuner.spec.load import load_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.commands import shown_name
from tuner.study.remote.place import local_studies_dir

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec.yaml_source import Override


def run(
    spec: StudySpec | Mapping[str, Any] | str | Path,
    name: str | None = None,
    *,
    studies_dir: str | Path = "studies",
    address: str | None = None,
    progress: bool | Console = True,
) -> Study:
    """Search a space, or go on with the study of that name if it has the same spec.

    It works in a script, in a notebook, and any number of times in one process: Ray is started
    for a study and ended with it, unless `address` names a cluster to join.

    Args:
        spec: The search space: a `StudySpec`, the path of a YAML file, or what stands in one as a
            mapping.
        name: Name of the study; the file's name and the time by default.
        studies_dir: Folder of the studies, or an address such as `s3://bucket/studies`.
        address: Ray cluster to join; RAY_ADDRESS without one, and without both a cluster of this
            machine is started.
        progress: Whether to show the progress, in a terminal, a log or a notebook.

    Returns:
        The study, which has ended.

    Raises:
        SpecError: if the search space is not valid.
        StudyError: if the name is not usable, or belongs to another study.
        ResourceError: if no node can hold a trial, or the cluster cannot be reached.
        DatasetError: if the data cannot be used.
        StudyInterrupted: after Ctrl-C or SIGTERM, when the trials have ended in order.

    Example:
        >>> import tuner
        >>> study = tuner.run("liver.yaml", name="liver")  # doctest: +SKIP
        >>> study.best  # doctest: +SKIP
        <Trial 1: completed, val_dice 0.8000 at epoch 2>
    """
    from tuner.study.name import check_new_name

    if name is not None:
        check_new_name(name)
    if isinstance(spec, Mapping):
        spec = StudySpec.from_dict(spec)
    elif not isinstance(spec, StudySpec):
        spec = load_spec(Path(spec))
    _check_cluster(address)
    with quiet_libraries():
        from tuner.study.create import create_study

        study = Study(create_study(spec, local_studies_dir(studies_dir), name))
    return study.resume(address=address, progress=progress)


def resume(
    name: str,
    *,
    studies_dir: str | Path = "studies",
    num_trials: int | Override | None = None,
    epoch_budget: int | Override | None = None,
    gpu_hours: float | Override | None = None,
    time_budget: float | str | Override | None = None,
    address: str | None = None,
    progress: bool | Console = True,
) -> Study:
    """Go on with a study that was cut off, or give it a larger budget; see `Study.resume`.

    Args:
        name: Name of the study.
        studies_dir: Folder of the studies, or an address such as `s3://bucket/studies`.
        num_trials: Trials of the study from now on.
        epoch_budget: End after so many epochs of all trials.
        gpu_hours: End after so many GPU-hours of all trials.
        time_budget: End this call after a time: seconds, or e.g. `"30m"`.
        address: Ray cluster to join.
        progress: Whether to show the progress.

    Raises:
        StudyError: if there is no study of that name, or another process runs it.

    Example:
        >>> import tuner
        >>> study = tuner.resume("liver", num_trials=80)  # doctest: +SKIP
    """
    # before the libraries of the trials are loaded
    _check_cluster(address)
    with quiet_libraries():
        from tuner.study.open import open_study as open_folder

        study = Study(open_folder(local_studies_dir(studies_dir), name))
    return study.resume(
        num_trials=num_trials,
        epoch_budget=epoch_budget,
        gpu_hours=gpu_hours,
        time_budget=time_budget,
        address=address,
        progress=progress,
    )


def open_study(name: str, *, studies_dir: str | Path = "studies") -> Study:
    """Open a study to look at it; it may run in another process meanwhile.

    If the process that ran it is gone, its running trials are marked as interrupted, and
    `Study.cut_off` says so.

    Args:
        name: Name of the study.
        studies_dir: Folder of the studies, or an address such as `s3://bucket/studies`.

    Raises:
        StudyError: if there is no study of that name, or its record cannot be read.

    Example:
        >>> import tuner
        >>> tuner.open_study("liver").finished
        True
        >>> tuner.open_study("lung")
        Traceback (most recent call last):
        tuner.errors.StudyError: no study 'lung' in studies (there are: liver)
    """
    with quiet_libraries():
        from tuner.study.open import open_to_show

        return Study(*open_to_show(local_studies_dir(studies_dir), name))


def list_studies(
    studies_dir: str | Path = "studies",
    *,
    sort: str | None = None,
    top: int | None = None,
    on_unreadable: Callable[[str], None] = warnings.warn,
) -> list[Study]:
    """The studies of a folder, the oldest first.

    Args:
        studies_dir: Folder of the studies, or an address such as `s3://bucket/studies`.
        sort: What they are sorted by: `name`, `trials`, `epochs` or `score`, the best first.
        top: How many of the first to return; all by default.
        on_unreadable: Called with a sentence about each study that cannot be read, which is left
            out of the list; a warning by default.

    Raises:
        StudyError: if the folder itself cannot be read, or for an unknown key.

    Example:
        >>> import tuner
        >>> [study.name for study in tuner.list_studies()]
        ['liver']
    """
    from tuner.report.ordering import sorted_studies

    with quiet_libraries():
        from tuner.study.open import open_to_show, study_folders

    found, notes = [], {}
    for folder in study_folders(local_studies_dir(studies_dir)):
        try:
            study, cut_off = open_to_show(folder.parent, folder.name)
        except Exception as error:
            # whatever is wrong with one study, the others are listed
            reason = " ".join(str(error).split()) or type(error).__name__
            on_unreadable(f"{shown_name(folder.name)} cannot be read: {reason}")
        else:
            found.append(study)
            notes[study.folder] = cut_off
    return [Study(study, notes[study.folder]) for study in sorted_studies(found, sort, top)]


def print_studies(studies: Iterable[Study], console: Console | None = None) -> None:
    """Print what `tune list` prints: a line a study."""
    from tuner.report.console import output_console
    from tuner.report.tables import studies_table

    table = studies_table([study._study for study in studies])
    (console or output_console()).print(table)


def _check_cluster(address: str | None) -> None:
    """Check the cluster before the libraries of the trials are loaded and a folder is made."""
    with quiet_libraries():
        from tuner.driver.cluster_check import check_cluster

        check_cluster(address)


__all__ = ["StudyInterrupted", "list_studies", "open_study", "resume", "run"]
