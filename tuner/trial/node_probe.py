"""What a node needs to train trials of a study, and the probe that looks for it there."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from training.durable_write import check_writable
from training.errors import DatasetError
from training.storage import StoreError
from tuner.errors import TunerError
from tuner.study.files import NODES_FILE
from tuner.study.nodes import read_token
from tuner.study.remote.node import RemoteFolder
from tuner.trial.code import check_code, look_into_code
from tuner.trial.node_faults import CodeMissingError

if TYPE_CHECKING:
    from training.data import DataSource
    from tuner.spec.study_spec import StudySpec

PACKAGES = ("segtune", "ray", "torch")
"""Packages of which every node must have the driver's version."""

LEAST_ROOM = 256 * 2**20
"""Bytes that must be free where a trial writes."""

TOKEN_SECONDS = 10.0
"""How long a file of the driver may take to be seen on shared storage, which caches names."""

GPU_SECONDS = 90.0
"""How long torch may take to load and to use each GPU once."""

CLOCK_SECONDS = 60.0
"""How far the clock of a node may be from the driver's."""

GPU_PROGRAM = """
import torch
found = torch.cuda.device_count() if torch.cuda.is_available() else 0
for number in range(found):
    torch.zeros(1, device=f"cuda:{number}").add_(1).item()
print(found)
"""
"""A process of its own: it ends, and frees what CUDA took of the GPUs."""


@dataclass(frozen=True)
class NodeNeeds:
    """What every node of a study needs.

    Attributes:
        folder: The study's folder.
        token: What `nodes.json` there holds, as the driver wrote it.
        data: Where the data are, for each fold.
        spec: The study's spec; it names code of the user's own.
        code: Where the study keeps that code; None if it has none.
        versions: The driver's version of Python and of each of `PACKAGES`.
        remote: Where the storage has the study; None for one in a folder that all nodes mount.
    """

    folder: Path
    token: str
    data: tuple[DataSource, ...]
    spec: StudySpec
    code: Path | None
    versions: Mapping[str, str]
    remote: RemoteFolder | None = None

    def on_this_node(self) -> NodeNeeds:
        """The same where this node works on a study at an address, with its code fetched.

        Raises:
            StoreError: if the storage does not answer.
        """
        if self.remote is None:
            return self
        folder, code = self.remote.here_with_code(self.code)
        return replace(self, folder=folder, code=code)


@dataclass(frozen=True)
class Probed:
    """What a probe found on a node.

    Attributes:
        problems: What is wrong there.
        clock: Its time, in seconds since 1970.
    """

    problems: tuple[str, ...]
    clock: float


def probe_node(needs: NodeNeeds, gpus: int) -> Probed:
    """Look, in a process of a node, for what trials of a study need there.

    Args:
        needs: What they need.
        gpus: GPUs that torch must be able to use; 0 where trials use none.
    """
    clock = time.time()
    problems = [*_other_versions(needs.versions)]
    try:
        needs = needs.on_this_node()
        problems += _folder_problems(needs)
    except (StoreError, TunerError, DatasetError) as error:
        problems.append(f"it cannot use the study's storage: {error}")
    if not problems:
        # these take longer
        problems = [*_data_problems(needs.data), *_code_problems(needs), *gpu_problems(gpus)]
    return Probed(tuple(problems), clock)


def versions_here() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`; without the build that torch is for."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def clock_problem(clock: float, sent: float, received: float) -> str | None:
    """What is wrong with the clock of a node, which answered between two times of the driver's."""
    ahead = clock - received if clock > received else min(clock - sent, 0.0)
    if abs(ahead) <= CLOCK_SECONDS:
        return None
    how = "ahead of" if ahead > 0 else "behind"
    return f"its clock is {abs(ahead):.0f} s {how} the driver's: let NTP set it"


def _other_versions(wanted: Mapping[str, str]) -> Iterator[str]:
    here = versions_here()
    for name, version in wanted.items():
        if here.get(name) != version:
            yield f"it has {name} {here.get(name)}, and the driver {version}: install the same"


def _folder_problems(needs: NodeNeeds) -> Iterator[str]:
    folder = needs.folder
    deadline = time.monotonic() + TOKEN_SECONDS
    while _token_at(needs) != needs.token and time.monotonic() < deadline:
        time.sleep(0.5)
    if needs.remote is not None:
        needs.remote.check_writable()
    if not folder.is_dir():
        yield (
            f"it does not see the study folder {folder}: put --studies-dir on storage that every "
            "node mounts"
        )
        return
    if _token_at(needs) != needs.token:
        yield f"its {folder} is another folder than the driver's: mount the same storage there"
        return
    try:
        check_writable(folder)
    except OSError as error:
        yield f"it cannot write to the study folder {folder} ({error.strerror or error})"
        return
    for name, place in (("study folder", folder), ("temporary folder", tempfile.gettempdir())):
        free = shutil.disk_usage(place).free
        if free < LEAST_ROOM:
            yield f"the disk of its {name} {place} has {free / 2**20:.0f} MiB left: make room"


def _token_at(needs: NodeNeeds) -> str | None:
    if needs.remote is not None:
        needs.remote.fetch(NODES_FILE)
    try:
        return read_token(needs.folder)
    except (OSError, ValueError):
        # it is seen, and not yet what the driver wrote
        return None


def _data_problems(sources: tuple[DataSource, ...]) -> Iterator[str]:
    for problem in dict.fromkeys(source.unseen() for source in sources):
        if problem is not None:
            yield f"it {problem}"


def _code_problems(needs: NodeNeeds) -> Iterator[str]:
    look_into_code(needs.code)
    try:
        check_code(needs.spec)
    except CodeMissingError as error:
        yield str(error)


def gpu_problems(gpus: int, program: str = GPU_PROGRAM) -> Iterator[str]:
    """What keeps torch from using the GPUs that Ray counts on this node.

    Args:
        gpus: How many there must be.
        program: Uses each of them, and prints how many there are.
    """
    if not gpus:
        return
    # Ray hides the GPUs of a node from tasks that book none
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=GPU_SECONDS,
            env=visible,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield f"its GPUs do not answer within {GPU_SECONDS:g} s"
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield f"its GPUs cannot be used ({why})"
        return
    found = int(done.stdout.split()[-1])
    if found < gpus:
        yield f"Ray counts {gpus} GPUs there, and torch can use {found}"
