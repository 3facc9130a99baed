"""The functions of the commands that use a cluster from outside."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.local_path import is_url
from training.storage import address_of
from tuner.cli.exit_codes import DONE, INTERRUPTED, NO_RESULT
from tuner.cli.options import export_settings, overrides_of
from tuner.errors import StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.driver.submit.remote_study import RemoteStudy

SLURM_ALONE = ("partition", "gpus_per_node", "cpus_per_node", "mem", "time", "sbatch", "dry_run")
"""Options of `tune submit` that mean something with `--slurm` alone."""


def submit(options: argparse.Namespace, out: Console) -> int:
    """`tune submit`."""
    from tuner.api import jobs

    if options.slurm:
        return _submit_to_slurm(options, out)
    given = [name for name in SLURM_ALONE if getattr(options, name)]
    if given or options.nodes != 1:
        option = (given or ["nodes"])[0].replace("_", "-")
        raise StudyError(f"--{option} is for SLURM: give --slurm as well, or leave it out")
    study = jobs.submit(
        options.space,
        options.name,
        address=options.address,
        studies_dir=options.studies_dir,
        overrides=overrides_of(options),
        export=options.export,
        resubmit=options.resubmit,
    )
    out.print(
        f"the study {study.name} is job {study.job_id} of {study.server.address}", markup=False
    )
    for verb, rest in (("logs", " -f"), ("status", ""), ("stop", ""), ("export", " -o bundle")):
        out.print(f"  tune {verb} {study.name}{_address(study)}{rest}", markup=False)
    return _follow(study, out) if options.follow else DONE


def _submit_to_slurm(options: argparse.Namespace, out: Console) -> int:
    from tuner.api import jobs
    from tuner.driver.submit.slurm import SlurmOptions

    for name in ("address", "follow"):
        if getattr(options, name):
            raise StudyError(f"--{name} is for a Ray cluster: leave it out with --slurm")
    job = jobs.submit_to_slurm(
        options.space,
        options.name,
        studies_dir=options.studies_dir,
        allocation=SlurmOptions(
            nodes=options.nodes,
            partition=options.partition,
            gpus_per_node=options.gpus_per_node,
            cpus_per_node=options.cpus_per_node,
            memory_per_node=options.mem,
            time=options.time,
            further=tuple(options.sbatch),
        ),
        overrides=overrides_of(options),
        export=options.export,
        resubmit=options.resubmit,
        dry_run=options.dry_run,
    )
    if job.number is None:
        print(job.script, end="", file=out.file)
        return DONE
    folder = shlex.quote(job.studies_dir)
    out.print(f"the study {job.name} is job {job.number} of SLURM", markup=False)
    for line in (
        f"tail -F {shlex.quote(job.log)}",
        f"tune status {job.name} --studies-dir {folder}",
        f"scancel --batch --signal=TERM {job.number}",
        f"tune export {job.name} --studies-dir {folder} -o bundle",
    ):
        out.print(f"  {line}", markup=False)
    return DONE


def logs(options: argparse.Namespace, out: Console) -> int:
    """`tune logs`."""
    study = _study(options)
    if options.follow:
        return _follow(study, out)
    print(study.logs(), end="", file=out.file)
    return DONE


def stop(options: argparse.Namespace, out: Console) -> int:
    """`tune stop`."""
    study = _study(options)
    job = study.stop()
    command = f"tune submit SPACE --name {study.name} --studies-dir {study.studies_dir}"
    out.print(
        f"the study {study.name} has ended ({job.status.value}); `{command}` goes on with it",
        markup=False,
    )
    return DONE


def status(options: argparse.Namespace, out: Console) -> int:
    """`tune status --address`."""
    study = _study(options)
    arguments = [
        *(["--json"] if options.json else []),
        *([] if options.sort is None else ["--sort", options.sort]),
        *([] if options.top is None else ["--top", str(options.top)]),
    ]
    if study.job is not None and not options.json:
        out.print(f"job {_job_line(study)}", markup=False)
    print(study.status(arguments), end="", file=out.file)
    return DONE


def list_studies(options: argparse.Namespace, out: Console) -> int:
    """`tune list --address`."""
    from tuner.api import jobs

    if options.sort is not None:
        raise StudyError("--sort is for studies of this machine: leave it out with --address")
    found = sorted(jobs.remote_studies(options.address), key=lambda study: not study.runs)
    found = found[: options.top]
    workers = jobs.workers(found)
    if options.json:
        studies = [{**_document(each), "workers": workers.get(each.job_id, 0)} for each in found]
        print(json.dumps({"studies": studies}, indent=2), file=out.file)
    elif not found:
        out.print("no study was submitted to this cluster", markup=False)
    else:
        from tuner.report.tables import terminal_table

        rows = []
        for study in found:
            name, state, *others = _row(study)
            rows.append([name, state, str(workers.get(study.job_id, "")), *others])
        titles = ["study", "state", "trials now", "since", "job", "folder"]
        out.print(terminal_table(titles, rows))
    return DONE


def export(options: argparse.Namespace, out: Console) -> int:
    """`tune export --address`."""
    study = _study(options)
    target = options.output or Path(f"{study.name}-bundle")
    arguments = [setting.origin for setting in export_settings(options).values()]
    arguments = [word for origin in arguments for word in origin.split(" ")]
    if options.trial is not None:
        arguments += ["--trial", str(options.trial)]
    if options.data_dir is not None:
        arguments += ["--data-dir", str(options.data_dir)]
    study.export(target, arguments, lambda line: out.print(line, markup=False))
    bundle = shlex.quote(str(target))
    out.print(f"the model is in {bundle}", markup=False)
    out.print(f"next    tune predict {bundle} IMAGE.nii.gz -o predictions", markup=False)
    return DONE


def _study(options: argparse.Namespace) -> RemoteStudy:
    from tuner.api import jobs

    # the usual folder of this machine is none of the cluster
    usual = options.studies_dir == Path("studies")
    given = str(options.studies_dir)
    folder = None if usual else address_of(given) if is_url(given) else given
    return jobs.remote_study(options.name, address=options.address, studies_dir=folder)


def _follow(study: RemoteStudy, out: Console) -> int:
    """Show what a study prints until it has ended; its exit code."""
    try:
        for line in study.follow():
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        out.print(
            f"the study goes on; `tune stop {study.name}{_address(study)}` ends it", markup=False
        )
        return INTERRUPTED
    job = study.server.wait(study.job_id)
    if job.status.value == "STOPPED":
        return INTERRUPTED
    code: int | None = job.driver_exit_code
    return (DONE if job.status.value == "SUCCEEDED" else NO_RESULT) if code is None else code


def _address(study: RemoteStudy) -> str:
    return f" --address {study.server.address}"


def _job_line(study: RemoteStudy) -> str:
    _, state, since, job, _ = _row(study)
    return f"{job} of {study.server.address}: {state} since {since}"


def _row(study: RemoteStudy) -> list[str]:
    document = _document(study)
    since = document["ended"] or document["started"]
    return [study.name, document["state"], since or "", document["job"], study.studies_dir]


def _document(study: RemoteStudy) -> dict[str, Any]:
    job = study.job
    assert job is not None
    started, ended = _times(job.start_time, job.end_time)
    return {
        "name": study.name,
        "state": job.status.value.lower(),
        "job": study.job_id,
        "studies_dir": study.studies_dir,
        "command": (job.metadata or {}).get("command"),
        "segtune": (job.metadata or {}).get("segtune"),
        "started": started,
        "ended": ended,
    }


def _times(*milliseconds: int | None) -> Iterator[str | None]:
    for moment in milliseconds:
        local = time.localtime((moment or 0) / 1000)
        yield time.strftime("%Y-%m-%d %H:%M", local) if moment else None
