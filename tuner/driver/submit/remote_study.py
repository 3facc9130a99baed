"""A study on a cluster, seen from a machine that is no node of it: its job, its log, its model."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

from ray.job_submission import JobDetails, JobStatus

from tuner.driver.submit.bundle_job import PROGRAM, Ready
from tuner.driver.submit.package import Submission
from tuner.driver.submit.server import ENDED, JobExistsError, JobServer
from tuner.errors import ExportError, StudyError
from tuner.study.study import actor_name, confirmation_label

NAME, STUDIES_DIR, COMMAND, VERSION = "study", "studies_dir", "command", "segtune"
"""Keys of the metadata of a study's job; Ray's own `job_name` has the study's name as well."""


@dataclass(frozen=True)
class RemoteStudy:
    """A study that was submitted to a cluster.

    Attributes:
        server: The cluster's job server.
        name: Name of the study.
        studies_dir: Folder of the studies on the cluster.
        job: Its newest job, as it was when it was asked for; None if it was not submitted.
    """

    server: JobServer
    name: str
    studies_dir: str
    job: JobDetails | None

    @classmethod
    def find(cls, server: JobServer, name: str, studies_dir: str | None = None) -> Self:
        """The study of a name.

        Args:
            server: The cluster's job server.
            name: Name of the study.
            studies_dir: Folder of the studies there, where two have a study of this name, or for
                one that was not submitted.

        Raises:
            StudyError: if it is not known, or two folders have one of this name.
        """
        known = all_studies(server)
        named = [study for study in known if study.name == name]
        found = [study for study in named if studies_dir in {None, study.studies_dir}]
        if len(found) == 1:
            return cls(server, name, found[0].studies_dir, found[0].job)
        if found:
            folders = ", ".join(study.studies_dir for study in found)
            raise StudyError(
                f"two studies {name!r} were submitted to {server.address}, in {folders}: give "
                "--studies-dir"
            )
        if studies_dir is not None:
            return cls(server, name, studies_dir, None)
        names = sorted({study.name for study in known})
        there = f"there are: {', '.join(names)}" if names else "there are none"
        raise StudyError(
            f"no study {name!r} was submitted to {server.address} ({there}); for one that was "
            "started there in another way, give --studies-dir"
        )

    @property
    def runs(self) -> bool:
        """Whether its job waits or runs."""
        return self.job is not None and self.job.status not in ENDED

    @property
    def job_id(self) -> str:
        """Id of its job.

        Raises:
            StudyError: if it has none.
        """
        if self.job is None:
            raise StudyError(
                f"the study {self.name!r} in {self.studies_dir} was not submitted to "
                f"{self.server.address}: it has no job there"
            )
        return str(self.job.submission_id)

    def logs(self) -> str:
        """What its newest job has printed."""
        return self.server.logs(self.job_id)

    def follow(self) -> Iterator[str]:
        """What its newest job prints, line by line, until it has ended."""
        return self.server.follow(self.job_id)

    def stop(self) -> JobDetails:
        """End the study in order, and wait until it has ended.

        Raises:
            StudyError: if it does not run.
        """
        job_id = self.job_id
        if not self.runs:
            assert self.job is not None
            raise StudyError(
                f"the study {self.name!r} does not run: its job {job_id} ended as "
                f"{self.job.status.value}"
            )
        self.server.stop(job_id)
        return self.server.wait(job_id)

    def status(self, arguments: Sequence[str]) -> str:
        """What `tune status` prints on the cluster.

        Args:
            arguments: Options of it.

        Raises:
            StudyError: if it fails there.
        """
        command = ["status", self.name, "--studies-dir", self.studies_dir, *arguments]
        job_id = self.server.submit(["-m", "tuner", *command], metadata={"job_name": "status"})
        job = self.server.wait(job_id)
        printed = self.server.logs(job_id)
        self.server.forget(job_id)
        if job.status != JobStatus.SUCCEEDED:
            raise StudyError(f"on the cluster: {_reason(printed)}")
        return printed

    def export(self, target: Path, arguments: Sequence[str], tell: Callable[[str], None]) -> None:
        """Export its best model on the cluster, and bring the bundle here.

        Args:
            target: Folder to write; its files are moved in when all are here.
            arguments: Options of `tune export`.
            tell: Called with each line that the export prints.

        Raises:
            ExportError: if the export fails, or the bundle does not arrive as it was sent.
        """
        from training.bundle.folder import replaced_bundle

        program = ["-m", PROGRAM, self.name, "--studies-dir", self.studies_dir, *arguments]
        with replaced_bundle(target) as folder:
            job_id = self.server.submit(program, metadata={"job_name": f"export {self.name}"})
            try:
                ready = self._exported(job_id, tell)
                _fetch(self.server, job_id, ready, folder)
            finally:
                # it waits to be told that its files are no longer needed
                self.server.stop(job_id)
                self.server.wait(job_id)
                self.server.forget(job_id)

    def _exported(self, job_id: str, tell: Callable[[str], None]) -> Ready:
        last = ""
        for line in self.server.follow(job_id):
            ready = Ready.read(line)
            if ready is not None:
                return ready
            if line.startswith("error: "):
                last = line.removeprefix("error: ")
            elif not line.startswith("next "):
                tell(line)
        raise ExportError(f"on the cluster: {last or 'the export ended without a model'}")


def _fetch(server: JobServer, job_id: str, ready: Ready, folder: Path) -> None:
    """Bring the files of a bundle here."""
    node = server.job(job_id).driver_node_id
    assert node is not None
    with tempfile.TemporaryDirectory(prefix="tune-export-") as scratch:
        archive = Path(scratch, "bundle.tar")
        server.download(node, ready.name, archive)
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != ready.checksum:
                raise ExportError(
                    f"the bundle that came from {server.address} is not as it was sent: the "
                    "connection was cut; try again"
                )
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")


def all_studies(server: JobServer) -> list[RemoteStudy]:
    """The studies that were submitted to a cluster, each with its newest job, newest first."""
    found: dict[tuple[str, str], RemoteStudy] = {}
    for job in server.jobs():
        known = job.metadata or {}
        if NAME in known and STUDIES_DIR in known:
            key = known[NAME], known[STUDIES_DIR]
            found.setdefault(key, RemoteStudy(server, *key, job))
    return list(found.values())


def workers_of(studies: Sequence[RemoteStudy]) -> dict[str, int]:
    """Trials that studies of a cluster which run have there just now, by the id of their job.

    Those are the actors that have the study's name, or that of its confirmation; of two studies of
    one name, each is told the sum.
    """
    running = [study for study in studies if study.runs]
    if not running:
        return {}
    actors = running[0].server.living_actors()
    return {
        study.job_id: sum(
            actors[actor_name(label)] for label in (study.name, confirmation_label(study.name))
        )
        for study in running
    }


def submit_study(server: JobServer, submission: Submission) -> RemoteStudy:
    """Send a study to a cluster.

    Its job has the study's name as id, with a number where an earlier job had the name: of two
    that send one study at once, the cluster takes one.

    Raises:
        StudyError: if the study runs there already.
    """
    while True:
        studies = all_studies(server)
        for study in studies:
            same = (study.name, study.studies_dir) == (submission.name, submission.studies_dir)
            if same and study.runs:
                raise StudyError(
                    f"the study {study.name!r} runs already on {server.address}, as job "
                    f"{study.job_id}: watch it with `tune logs {study.name} -f`, end it with "
                    f"`tune stop {study.name}`, or choose another --name"
                )
        try:
            job_id = server.submit(
                submission.program,
                job_id=_free_id(submission.name, server),
                metadata={
                    "job_name": submission.name,
                    NAME: submission.name,
                    STUDIES_DIR: submission.studies_dir,
                    COMMAND: submission.shown,
                    VERSION: version("segtune"),
                },
                write=submission.write,
            )
        except JobExistsError:
            # somebody was faster
            continue
        return RemoteStudy(server, submission.name, submission.studies_dir, server.job(job_id))


def _free_id(name: str, server: JobServer) -> str:
    taken = {job.submission_id for job in server.jobs()}
    number = 1
    while (job_id := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return job_id


def _reason(printed: str) -> str:
    """Why a command failed, from what it printed."""
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else (lines[-1] if lines else "the command printed nothing")
