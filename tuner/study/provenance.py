"""Where a study comes from: data, versions, commit, command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from training.data import PreprocessedDataset
from training.durable_write import write_durably
from tuner.errors import StudyError
from tuner.study.files import PROVENANCE

if TYPE_CHECKING:
    from tuner.study.data import StudyData
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study

PREPARATION = "preparation"
"""Entry of the provenance: labels, channels, preprocessing and split of the data."""

RESUMED = "resumed"
"""Entry of the provenance: later runs, each with its time, command and versions."""

PACKAGES = ("segtune", "torch", "pytorch-lightning", "monai", "ray", "optuna", "nibabel", "numpy")


def write_provenance(study: Study, data: StudyData) -> None:
    """Write the provenance of a new study, or check that the data are unchanged."""
    path = study.folder / PROVENANCE
    first = study.provenance() if path.is_file() and study.record.entries else None
    if first is not None:
        fingerprint = first["data"]["fingerprint"]
        if fingerprint != data.fingerprint:
            raise StudyError(
                f"the data in {data.source}, or the way in which this version prepares them, have "
                f"changed since the study {study.name!r} began (fingerprint {data.fingerprint}, "
                f"was {fingerprint}): its trials cannot be compared any more; start a new study"
            )
    values = provenance(data, seed=study.spec.search.seed)
    if first is not None:
        values = resumed(first, values)
    write_durably(path, json.dumps(values, indent=2))


def describe_study(study: Study, record: StudyRecord, data: StudyData) -> None:
    """Describe the study in one of its records, for optuna-dashboard.

    Args:
        study: The study, with the spec that its folder has.
        record: The record: its own, or that of its confirmation.
        data: Its data.
    """
    attributes = {
        "segtune": metadata.version("segtune"),
        "study": study.name,
        "data": str(data.source),
        "data_fingerprint": data.fingerprint,
        "spec": study.spec.to_yaml(),
    }
    record.describe(study.spec.metric, attributes)


def provenance(data: StudyData, *, seed: int) -> dict[str, Any]:
    """What is needed to reproduce a study: versions, commit, command and data."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "seed": seed,
        "data": {
            "source": data.given,
            "preprocessed": str(data.preprocessed),
            "fingerprint": data.fingerprint,
            "summary": data.summary,
        },
        PREPARATION: _preparation(data),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "git": _git(),
    }


def resumed(first: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a study that goes on: as it began, and what each later run was.

    Args:
        first: What is known of the study so far.
        now: The `provenance` of this run. Where the data are is taken from it, as they may
            have been moved.
    """
    run = {name: now[name] for name in ("created", "command", "versions", "platform", "git")}
    return {**now, **first, "data": now["data"], RESUMED: [*first.get(RESUMED, []), run]}


def _preparation(data: StudyData) -> dict[str, Any]:
    """Facts of the prepared data that an export needs if data and cache are removed."""
    dataset = PreprocessedDataset.load(data.preprocessed)
    return dataset.model_dump(
        mode="json", include={"labels", "channels", "preprocessing", "splits"}
    )


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in PACKAGES}


def _git() -> dict[str, Any] | None:
    """Commit of the working folder, None outside a repository."""
    try:
        commit = _run_git("rev-parse", "HEAD")
        changed = _run_git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "modified": bool(changed)}


def _run_git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
