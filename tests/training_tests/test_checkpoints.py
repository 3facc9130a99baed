"""Checkpoints that are read are as they were written, or refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.checkpoints import DurableCheckpointIO, read_checkpoint
from training.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    state = {"state_dict": {"weight": torch.arange(4096.0)}, "epoch": 3}
    DurableCheckpointIO().save_checkpoint(state, path)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_read_is_what_was_written(checkpoint: Path, mmap: bool) -> None:
    read = read_checkpoint(checkpoint, mmap=mmap)
    assert read["epoch"] == 3
    assert torch.equal(read["state_dict"]["weight"], torch.arange(4096.0))
    assert DurableCheckpointIO().load_checkpoint(checkpoint).keys() == read.keys()


def flip(path: Path) -> None:
    """One bit of a weight, which `torch.load` alone does not notice."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.tensor([4000.0]).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    loaded = torch.load(path, weights_only=True)["state_dict"]["weight"]
    assert not torch.equal(loaded, torch.arange(4096.0))


HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "missing": lambda path: path.unlink(),
    "code": lambda path: torch.save({"state_dict": Path("x"), "epoch": print}, path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_damaged_is_refused(checkpoint: Path, harm: str, mmap: bool) -> None:
    HARMS[harm](checkpoint)
    with pytest.raises(CheckpointError):
        read_checkpoint(checkpoint, mmap=mmap)
    with pytest.raises(CheckpointError):
        DurableCheckpointIO().load_checkpoint(checkpoint)
