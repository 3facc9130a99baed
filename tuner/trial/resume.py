"""Chooses the checkpoint that a trial resumes from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from training.checkpoints import BEST_CHECKPOINT, LAST_CHECKPOINT, read_checkpoint
from training.durable_write import DAMAGED
from training.errors import CheckpointError


def checkpoint_to_resume(folder: Path, module: nn.Module) -> tuple[Path | None, str]:
    """The newest good checkpoint of a trial, and messages about those that are damaged.

    A checkpoint is good if every byte of it is as it was written (the checksums of its archive),
    and its weights fit the network, which a smaller patch may have changed.

    Args:
        folder: The trial's folder.
        module: What is to be trained.

    Returns:
        The checkpoint, None to train from the start; and a note, empty if nothing is wrong.
    """
    found: list[tuple[int, Path]] = []
    bad: list[str] = []
    for name in (f"{LAST_CHECKPOINT}.ckpt", f"{BEST_CHECKPOINT}.ckpt"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found.append((_epochs_in(path, module), path))
        except CheckpointError as error:
            # a good one may take its name again, and this one must not be exported
            path.replace(folder / f"{name}{DAMAGED}")
            bad.append(f"{name} cannot be used ({error})")
    # last before best where both are of one epoch: it is the newer one
    epochs, newest = max(found, key=lambda pair: pair[0], default=(0, None))
    if not bad:
        return newest, ""
    onward = f"goes on from {newest.name} after epoch {epochs}" if newest else "starts again"
    return newest, f"{'; '.join(bad)}: {onward}"


def _epochs_in(path: Path, module: nn.Module) -> int:
    """Epochs that a checkpoint has trained.

    Raises:
        CheckpointError: if it is damaged or does not fit.
    """
    checkpoint = read_checkpoint(path, mmap=True)
    if not {"state_dict", "epoch"} <= checkpoint.keys():
        raise CheckpointError("it is not a checkpoint of a training")
    stored = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    expected = {name: value.shape for name, value in module.state_dict().items()}
    if stored != expected:
        raise CheckpointError("its weights are those of another network")
    return int(checkpoint["epoch"])
