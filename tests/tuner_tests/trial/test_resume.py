from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoints import DurableCheckpointIO
from tuner.trial.resume import checkpoint_to_resume


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trial's folder: the best checkpoint of epoch 3, the last one of epoch 5."""
    for name, epoch in (("best", 3), ("last", 5)):
        save(tmp_path / f"{name}.ckpt", epoch)
    return tmp_path


def network(width: int = 64) -> nn.Module:
    return nn.Linear(width, width)


def save(path: Path, epoch: int) -> None:
    DurableCheckpointIO().save_checkpoint(
        {"epoch": epoch, "state_dict": network().state_dict()}, path
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["state_dict"]["weight"].numpy().tobytes()
    data[data.index(weights) + 100] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_trial_goes_on_from_its_newest_checkpoint(folder: Path) -> None:
    assert checkpoint_to_resume(folder, network()) == (folder / "last.ckpt", "")
    save(folder / "best.ckpt", 6)  # the process ended between the two
    assert checkpoint_to_resume(folder, network()) == (folder / "best.ckpt", "")


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty])
def test_a_damaged_checkpoint_is_set_aside_for_the_best(folder: Path, harm: object) -> None:
    assert callable(harm)
    harm(folder / "last.ckpt")
    path, note = checkpoint_to_resume(folder, network())
    assert path == folder / "best.ckpt"
    assert "last.ckpt cannot be used" in note
    assert note.endswith("goes on from best.ckpt after epoch 3")
    # not lost either, for who wants to look at it
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt.damaged"}


def test_a_trial_without_a_good_checkpoint_starts_again(folder: Path, tmp_path: Path) -> None:
    for name in ("best", "last"):
        truncate(folder / f"{name}.ckpt")
    path, note = checkpoint_to_resume(folder, network())
    assert path is None
    assert note.endswith("starts again")
    assert note.count("cannot be used") == 2
    assert checkpoint_to_resume(folder, network()) == (None, "")


def test_weights_of_another_network_are_not_resumed(folder: Path) -> None:
    path, note = checkpoint_to_resume(folder, network(32))
    assert path is None
    assert "its weights are those of another network" in note
