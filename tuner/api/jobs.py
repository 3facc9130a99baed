"""Studies on a cluster that this machine is no part of: through Ray's job server, or SLURM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.api.libraries import quiet_libraries
from tuner.spec.load import load_spec

if TYPE_CHECKING:
    from tuner.driver.submit.package import Submission
    from tuner.driver.submit.remote_study import RemoteStudy
    from tuner.driver.submit.server import JobServer
    from tuner.driver.submit.slurm import SlurmJob, SlurmOptions
    from tuner.spec.yaml_source import Override


def submit(
    space: Path,
    name: str | None = None,
    *,
    address: str | None,
    studies_dir: str,
    overrides: Mapping[str, Override] | None = None,
    export: str | None = None,
    resubmit: int = 0,
) -> RemoteStudy:
    """Send a study to a Ray cluster, which runs it as a job.

    The search space and the code that it names are sent, and nothing else.

    Args:
        space: The search space, a YAML file.
        name: Name of the study; that of the file and the time by default.
        address: Address of the head's dashboard, e.g. `http://head:8265`; that of
            RAY_API_SERVER_ADDRESS without one.
        studies_dir: Folder of the studies, as the cluster sees it.
        overrides: Values that replace those of the file, as for `tune run`.
        export: Folder on the cluster to export the best model to.
        resubmit: How often the driver is started again when a signal killed it.

    Raises:
        SpecError: for every problem of the space at once.
        StudyError: if a path cannot be used there, or the study runs there already.
        ResourceError: if the cluster cannot be reached, or refuses the token.
    """
    submission = _packed(space, name, studies_dir, overrides, export, resubmit)
    server = job_server(address)
    from tuner.driver.submit.remote_study import submit_study

    return submit_study(server, submission)


def submit_to_slurm(
    space: Path,
    name: str | None = None,
    *,
    studies_dir: str,
    allocation: SlurmOptions,
    overrides: Mapping[str, Override] | None = None,
    export: str | None = None,
    resubmit: int = 0,
    dry_run: bool = False,
) -> SlurmJob:
    """Send a study to SLURM, as a batch job that starts a Ray cluster for it.

    Args:
        space: The search space, a YAML file.
        name: Name of the study; that of the file and the time by default.
        studies_dir: Folder of the studies, which all nodes mount.
        allocation: What SLURM is asked for.
        overrides: Values that replace those of the file, as for `tune run`.
        export: Folder to export the best model to.
        resubmit: How often the driver is started again when a signal killed it.
        dry_run: Make the script and submit nothing.

    Raises:
        SpecError: for every problem of the space at once.
        StudyError: if a path cannot be used, or SLURM refuses the job.
    """
    from tuner.driver.submit.slurm import submit_script

    submission = _packed(space, name, studies_dir, overrides, export, resubmit)
    return submit_script(submission, allocation, dry_run=dry_run)


def job_server(address: str | None) -> JobServer:
    """The job server of a Ray cluster.

    Raises:
        ResourceError: if it cannot be reached, refuses the token, or is too old.
    """
    with quiet_libraries():
        from tuner.driver.submit.server import JobServer

        return JobServer(address)


def remote_study(name: str, *, address: str | None, studies_dir: str | None = None) -> RemoteStudy:
    """A study that was submitted to a cluster.

    Args:
        name: Name of the study.
        address: Address of the head's dashboard.
        studies_dir: Folder of the studies there, where two have a study of this name, or for one
            that was not submitted.

    Raises:
        StudyError: if it is not known there.
        ResourceError: if the cluster cannot be reached, or refuses the token.
    """
    server = job_server(address)
    from tuner.driver.submit.remote_study import RemoteStudy

    return RemoteStudy.find(server, name, studies_dir)


def remote_studies(address: str | None) -> list[RemoteStudy]:
    """The studies that were submitted to a cluster, each with its newest job, newest first.

    Raises:
        ResourceError: if the cluster cannot be reached, or refuses the token.
    """
    server = job_server(address)
    from tuner.driver.submit.remote_study import all_studies

    return all_studies(server)


def workers(studies: Sequence[RemoteStudy]) -> dict[str, int]:
    """Trials that studies of a cluster which run have there just now, by the id of their job.

    Raises:
        ResourceError: if the cluster cannot be reached.
    """
    from tuner.driver.submit.remote_study import workers_of

    return workers_of(studies)


def _packed(
    space: Path,
    name: str | None,
    studies_dir: str,
    overrides: Mapping[str, Override] | None,
    export: str | None,
    resubmit: int,
) -> Submission:
    """Check a study, and gather what is sent."""
    from tuner.driver.submit.package import pack_study, refuse_data_folder

    refuse_data_folder(space)
    spec = load_spec(space, overrides)
    with quiet_libraries():
        return pack_study(
            spec,
            name,
            studies_dir=studies_dir,
            overrides=overrides or {},
            export=export,
            resubmit=resubmit,
        )
