"""Failures of a node, and failures of a trial."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from tuner.trial import node_faults
from tuner.trial.node_faults import (
    CodeMissingError,
    GpuMissingError,
    NodeUnfitError,
    is_full,
    memory_of_others,
    memory_of_others_on_gpu,
    node_fault,
)

HOST = socket.gethostname()

GPU_FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 12.00 MiB is free. Process 1234 has {others} memory in use. Including non-PyTorch "
    "memory, this process has {own} memory in use. Of the allocated memory 4.00 GiB is allocated "
    "by PyTorch, and 10.00 MiB is reserved by PyTorch but unallocated."
)

RAY_LIST = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.2, ID: 89ea) where the task was running was 15.2GB / 16.0GB\n"
    "Top 10 memory users:\nPID\tMEM(GB)\tCOMMAND\n"
    "41\t{others}\t/opt/matlab/bin/matlab -nodisplay\n"
    "42\t{own}\tray::TrialTrainable.train\n43\t0.05\t/usr/bin/raylet --port=1"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "storage that fails"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "storage that fails"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "last.ckpt"), "last.ckpt"),
        # a loader's process hands on the text alone
        (OSError("Caught OSError in process 0.\nOSError: [Errno 5] worn"), "storage that fails"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "a disk of its own that is full"),
        (OSError(errno.EDQUOT, "quota"), "a disk of its own that is full"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "CUDA cannot use"),
        (RuntimeError("No CUDA GPUs are available; Found no NVIDIA driver"), "CUDA cannot use"),
        (
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
            "CUDA cannot use",
        ),
        (
            RuntimeError(GPU_FULL.format(others="70.00 GiB", own="4.50 GiB")),
            "other processes that hold 70.0 GiB",
        ),
    ],
)
def test_a_failure_of_the_node_names_it(error: Exception, words: str, tmp_path: Path) -> None:
    unfit = node_fault(error, tmp_path, 1)
    assert unfit is not None
    assert str(unfit).startswith(f"node {HOST} has ")
    assert words in str(unfit)


def test_a_mount_that_went_away_is_a_failure_of_the_node(tmp_path: Path) -> None:
    gone = tmp_path / "studies" / "liver"
    for error in (
        FileNotFoundError(errno.ENOENT, "no such file", "last.ckpt"),
        # torch's own
        RuntimeError("Parent directory trials/0000 does not exist."),
    ):
        unfit = node_fault(error, gone, 0)
        assert unfit is not None
        assert f"node {HOST} does not see the study folder {gone} any more" in str(unfit)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a fault of the code"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("an unknown error of no GPU"),
        RuntimeError(GPU_FULL.format(others="512.00 MiB", own="78.00 GiB")),
        MemoryError("a batch"),
    ],
)
def test_a_failure_of_the_trial_is_none_of_its_node(error: Exception, tmp_path: Path) -> None:
    assert node_fault(error, tmp_path, 1) is None


def test_a_shared_gpu_may_be_full_of_trials(tmp_path: Path) -> None:
    error = RuntimeError(GPU_FULL.format(others="70.00 GiB", own="4.50 GiB"))
    assert node_fault(error, tmp_path, 0.5) is None


@pytest.mark.parametrize("kind", [NodeUnfitError, GpuMissingError, CodeMissingError])
def test_what_says_that_a_node_is_unfit_is_taken_as_it_is(
    kind: type[NodeUnfitError], tmp_path: Path
) -> None:
    error = kind("node w2 has no GPU")
    assert node_fault(error, tmp_path, 0) is error


def test_where_the_disk_of_the_study_is_full_no_node_is_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not is_full(tmp_path)

    def no_room(file: int) -> None:
        raise full

    monkeypatch.setattr(node_faults.os, "fsync", no_room)
    assert is_full(tmp_path)
    assert node_fault(full, tmp_path, 1) is None


def test_memory_of_others_counts_where_it_is_more_than_that_of_trials() -> None:
    assert memory_of_others(RAY_LIST.format(others="12.25", own="2.50")) == pytest.approx(12.3)
    assert memory_of_others(RAY_LIST.format(others="1.00", own="13.50")) is None
    assert memory_of_others("1 worker(s) were killed") is None
    assert memory_of_others_on_gpu("this process has 1.00 GiB memory in use") is None
    two = "Process 1 has 900.00 MiB memory in use. Process 2 has 1.50 GiB memory in use."
    assert memory_of_others_on_gpu(two) == pytest.approx(900 / 1024 + 1.5)
