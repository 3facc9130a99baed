"""Runs a study on SLURM: a batch script that starts a Ray cluster over its allocation.

The script holds all that the study needs, so that what is edited while it waits changes nothing.
Ray listens for this job alone: with a token, on ports that the job's number gives; its dashboard on
the loopback interface.

SLURM sends SIGUSR1 before the time limit. (SIGTERM is what `scancel` and preemption send: with a
signal of its own, only a job whose time is over is queued again.)
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from training.local_path import is_url, url_refusal
from tuner.driver.submit.package import Submission
from tuner.errors import ResourceError, StudyError

WARNING_SECONDS = 120
"""How long before its time limit a job is told: the study ends in order, and is queued again."""

SHORTEST_MINUTES = 10
"""A job with a lower limit would start, end and start again without training."""

LARGEST_SCRIPT = 4 * 2**20
"""SLURM's limit of a batch script, as it is by default (`max_script_size`)."""


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for; None leaves it to the cluster's default.

    Attributes:
        nodes: Nodes of the job.
        partition: Partition to run in.
        gpus_per_node: GPUs of each node, e.g. `4` or `a100:4`.
        cpus_per_node: Cores of each node.
        memory_per_node: Memory of each node, e.g. `64G`.
        time: Time limit of one run of the job, as SLURM writes it.
        further: Further options of `sbatch`.
    """

    nodes: int = 1
    partition: str | None = None
    gpus_per_node: str | None = None
    cpus_per_node: int | None = None
    memory_per_node: str | None = None
    time: str | None = None
    further: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The options as `#SBATCH` has them.

        Raises:
            StudyError: if the time limit is too short or not one, or an option has two lines.
        """
        if self.time is not None and minutes(self.time) < SHORTEST_MINUTES:
            raise StudyError(
                f"--time {self.time} is below {SHORTEST_MINUTES} minutes: the study would be "
                "queued again before it has trained; give it more, and end it with --time-budget "
                "of the study"
            )
        given = {
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "partition": self.partition,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_node,
            "mem": self.memory_per_node,
            "time": self.time,
        }
        lines = [f"--{name}={value}" for name, value in given.items() if value is not None]
        lines += self.further
        for line in lines:
            if not line.startswith("-") or not line.isprintable():
                raise StudyError(
                    f"--sbatch {line!r} is not an option: write --sbatch=--account=lab"
                )
        return lines


@dataclass(frozen=True)
class SlurmJob:
    """A study that was given to SLURM.

    Attributes:
        name: Name of the study.
        studies_dir: Folder of the studies.
        script: The batch script.
        number: Number of the job; None if it was not submitted.
    """

    name: str
    studies_dir: str
    script: str
    number: str | None

    @property
    def log(self) -> str:
        """File of the job's output."""
        return log_file(self.studies_dir, self.name, self.number or "%j")


def log_file(studies_dir: str, name: str, number: str) -> str:
    """Where a job writes its output."""
    return f"{studies_dir}/slurm/{name}-{number}.log"


def minutes(limit: str) -> float:
    """Minutes of a time limit of SLURM: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`.

    Raises:
        StudyError: if it is none.

    Example:
        >>> minutes("90"), minutes("2:00:00"), minutes("1-12")
        (90.0, 120.0, 2160.0)
    """
    if limit.upper() in {"UNLIMITED", "INFINITE"}:
        return float("inf")
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        raise StudyError(f"--time {limit} is not a time limit: write e.g. 8:00:00 or 2-00:00:00")
    numbers = [float(part) for part in parts]
    if dash:
        hours, mins, seconds = (*numbers, 0.0, 0.0)[:3]
        return int(days) * 1440 + hours * 60 + mins + seconds / 60
    if len(numbers) == 3:
        return numbers[0] * 60 + numbers[1] + numbers[2] / 60
    return numbers[0] + (numbers[1] / 60 if len(numbers) == 2 else 0)


def batch_script(submission: Submission, options: SlurmOptions) -> str:
    """The batch script of a study.

    Raises:
        StudyError: if an option cannot be used, or the code of the study is too large.
    """
    lines = [
        f"--job-name={submission.name}",
        f"--output={log_file(submission.studies_dir, submission.name, '%j')}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{WARNING_SECONDS}",
        *options.lines(),
    ]
    text = files("tuner.driver.submit").joinpath("slurm.sh").read_text(encoding="utf-8")
    values = {
        "SBATCH": "\n".join(f"#SBATCH {_quoted(line)}" for line in lines),
        "PYTHON": shlex.quote(sys.executable),
        "PROGRAM": shlex.join(submission.program),
        "FILES": _archive(submission),
    }
    script = re.sub(r"@@([A-Z]+)@@", lambda found: values[found[1]], text)
    if len(script) > LARGEST_SCRIPT:
        raise StudyError(
            f"the code that {submission.space} names makes a batch script of "
            f"{len(script) / 2**20:.1f} MB, and SLURM takes {LARGEST_SCRIPT // 2**20}: install it "
            "as a package on the nodes"
        )
    return script


def submit_script(submission: Submission, options: SlurmOptions, *, dry_run: bool) -> SlurmJob:
    """Give a study to SLURM.

    Raises:
        StudyError: if SLURM refuses the job.
        ResourceError: if there is no SLURM here.
    """
    if is_url(submission.studies_dir):
        why = "SLURM writes the log of the job there"
        raise StudyError(f"--studies-dir {url_refusal(submission.studies_dir, why)}")
    script = batch_script(submission, options)
    if dry_run:
        return SlurmJob(submission.name, submission.studies_dir, script, None)
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ResourceError(
            "there is no `sbatch` here: run this on a login node of the SLURM cluster, or print "
            "the script with --dry-run"
        )
    _refuse_running(submission)
    # SLURM ends a job that cannot write its output without a word
    log = Path(log_file(submission.studies_dir, submission.name, "0"))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"--studies-dir {submission.studies_dir} cannot be written here "
            f"({error.strerror}): give a folder that this machine and all nodes mount"
        ) from error
    answer = subprocess.run(
        [sbatch, "--parsable"], input=script, capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise StudyError(f"SLURM refuses the job: {_reason(answer.stderr)}")
    number = answer.stdout.strip().partition(";")[0]
    return SlurmJob(submission.name, submission.studies_dir, script, number)


def _refuse_running(submission: Submission) -> None:
    """Refuse a study whose job waits or runs."""
    if (squeue := shutil.which("squeue")) is None:
        return
    listed = subprocess.run(
        [squeue, "--me", "--noheader", f"--name={submission.name}", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=False,
    )
    for number, state in map(str.split, listed.stdout.splitlines()):
        log = Path(log_file(submission.studies_dir, submission.name, number))
        if log.exists() or state == "PENDING":
            raise StudyError(
                f"the study {submission.name!r} is in SLURM's queue already, as job {number} "
                f"({state}): end it with `scancel --batch --signal=TERM {number}`, or choose "
                "another --name"
            )


def _archive(submission: Submission) -> str:
    """The files of a study, packed, as text; the same for the same files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, content in submission.files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return base64.encodebytes(packed.getvalue()).decode().strip()


def _quoted(line: str) -> str:
    """An option of `#SBATCH`, which takes quotes as a shell does."""
    return line if re.fullmatch(r"[\w%@:=./,+-]+", line) else shlex.quote(line)


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: error: ") if lines else "it gives no reason"
