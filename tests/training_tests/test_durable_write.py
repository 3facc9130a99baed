from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.checkpoints import DurableCheckpointIO
from training.durable_write import check_writable, durable_file, link_durably, write_durably

ROOT = Path(__file__).parents[2]


def test_a_file_that_cannot_be_synced_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    write_durably(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["config.yaml"]


def test_what_the_file_size_limit_cuts_off_is_no_file(tmp_path: Path) -> None:
    """A real limit of the system, in a process of its own."""
    program = """
import resource, sys
from pathlib import Path
from training.durable_write import write_durably
path = Path(sys.argv[1])
write_durably(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_durably(path, "n" * 100_000)
except OSError as error:
    print(error.strerror)
"""
    path = tmp_path / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "File too large"
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from training.durable_write import durable_file
with durable_file(Path(sys.argv[1])) as file:
    file.write(b"n" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with durable_file(path) as file:  # what was left is no obstacle
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"epoch": 3}, str(path))
    assert DurableCheckpointIO().load_checkpoint(path, weights_only=True) == {"epoch": 3}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_second_name_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    last, kept = tmp_path / "last.ckpt", tmp_path / "epoch-00001.ckpt"
    write_durably(last, b"one")
    # left by a process that was killed
    (tmp_path / "epoch-00001.ckpt.partial").write_bytes(b"half")
    if not links:

        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "link", refuse)
    link_durably(last, kept)
    write_durably(last, b"two")
    assert kept.read_bytes() == b"one"
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "epoch-00001.ckpt"}


def test_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Not a directory"):
        check_writable(tmp_path / "file")
