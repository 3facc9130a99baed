"""Tells failures of a node from failures of a trial.

Storage that answers no more, a GPU that is gone or broken, a full disk of its own, memory that
other processes hold: the next trial on that node would meet the same, and another node would not.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
""""No space left on device" and "disk quota exceeded"."""

STORAGE_LOST = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EROFS,
    errno.ENODEV,
    errno.ENXIO,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EREMOTEIO,
)
"""What a disk or mount that has failed answers."""

CUDA_BROKEN = (
    "no cuda-capable device is detected",
    "cuda-capable device(s) is/are busy or unavailable",
    "devices are busy or unavailable",
    "cuda driver version is insufficient",
    "cuda driver initialization failed",
    "cuda unknown error",
    "unknown error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
    "gpu is lost",
    "system not yet initialized",
    "initialization error",
    "found no nvidia driver",
)
"""Messages of CUDA about a device or driver that no process of the node could use."""

CUDA_WORDS = re.compile(r"\b(cuda|nvidia)\b", re.IGNORECASE)

ERRNO = re.compile(r"\[Errno (\d+)\]")

GIB_IN_USE = re.compile(r"(this process|Process \d+) has ([\d.]+) (GiB|MiB) memory in use")
"""How torch tells who holds the memory of a GPU that is full."""

MEMORY_USER = re.compile(r"^\d+\s+([\d.]+)\s+(\S.*)$", re.MULTILINE)
"""A line of Ray's list of the processes that use most of a node's memory: PID, GB, command."""

PROBE_BYTES = b"\0" * 65536

SHOWN = 200
"""Characters of a message that are shown."""


class NodeUnfitError(Exception):
    """A node cannot train trials; its message names it. It is not the fault of a trial."""


class GpuMissingError(NodeUnfitError):
    """A trial booked a GPU, and its process has none."""


class CodeMissingError(NodeUnfitError):
    """A node cannot import code of the user's own that the study's trials need."""


def node_fault(error: Exception, study_folder: Path, gpus: float) -> NodeUnfitError | None:
    """What is wrong with this node if that is why a trial failed; None if it is not.

    Args:
        error: What the training raised.
        study_folder: The study's folder. Where it is its disk that is full, no node is at fault.
        gpus: GPUs of the trial; a shared one may be full of another trial.
    """
    if isinstance(error, NodeUnfitError):
        return error
    problem = _problem(error, study_folder, gpus)
    return None if problem is None else NodeUnfitError(f"node {socket.gethostname()} {problem}")


def _problem(error: Exception, study_folder: Path, gpus: float) -> str | None:
    text = " ".join(str(error).split())[:SHOWN]
    # unlike pathlib's, it is false too where the mount answers with an error
    if not os.path.isdir(study_folder):
        return f"does not see the study folder {study_folder} any more ({text})"
    if isinstance(error, OSError):
        number = _errno_of(error)
        if number in STORAGE_LOST:
            return f"has storage that fails ({text})"
        if number in DISK_FULL and not is_full(study_folder):
            return f"has a disk of its own that is full ({text})"
        return None
    if not isinstance(error, RuntimeError | AssertionError) or not CUDA_WORDS.search(text):
        return None
    others = memory_of_others_on_gpu(str(error)) if gpus >= 1 else None
    if others is not None:
        return f"has other processes that hold {others:.1f} GiB of its GPU ({text})"
    if any(words in text.lower() for words in CUDA_BROKEN):
        return f"has a GPU that CUDA cannot use ({text})"
    return None


def _errno_of(error: OSError) -> int | None:
    """Its number, also where a loader's process handed on no more than the text."""
    if error.errno is not None:
        return error.errno
    found = ERRNO.search(str(error))
    return None if found is None else int(found[1])


def is_full(folder: Path) -> bool:
    """Whether nothing more can be written to a folder for want of room."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in DISK_FULL
    return False


def memory_of_others_on_gpu(message: str) -> float | None:
    """GiB that other processes hold of a GPU, if they hold more than this one; else None.

    Args:
        message: torch's, of a GPU that is full.
    """
    own = others = 0.0
    for who, amount, unit in GIB_IN_USE.findall(message):
        gib = float(amount) / (1 if unit == "GiB" else 1024)
        if who == "this process":
            own += gib
        else:
            others += gib
    return others if others > own else None


def memory_of_others(message: str) -> float | None:
    """GB that other programs hold of a node's memory, if they hold more than Ray's; else None.

    Args:
        message: Ray's, of a worker that it ended as the node ran low on memory; it lists the
            largest processes.
    """
    own = others = 0.0
    for amount, command in MEMORY_USER.findall(message):
        if "ray::" in command:
            own += float(amount)
        else:
            others += float(amount)
    return others if others > own else None
