"""The checkpoints of a study's trials: which there are, and how they are removed."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.durable_write import DAMAGED, PARTIAL
from tuner.study.files import CHECKPOINT_FILES, FOLD_PATTERN, trial_folder
from tuner.study.remote.place import remote_place


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that the program wrote.

    Attributes:
        path: Where it is; of a study at an address, where it would be on this machine.
        size: Its bytes.
    """

    path: Path
    size: int


def checkpoint_files(
    study_folder: Path, number: int, patterns: Sequence[str]
) -> list[CheckpointFile]:
    """Checkpoints of a trial that the program wrote, by name: a `best.ckpt.mine` is the user's.

    Those of all its folds are among them.
    """
    folder = trial_folder(study_folder, number)
    own = [pattern + suffix for pattern in patterns for suffix in ("", DAMAGED, PARTIAL)]
    own += [f"{FOLD_PATTERN}/{pattern}" for pattern in own]
    place = remote_place(folder)
    if place is None:
        here = (path for depth in ("*", f"{FOLD_PATTERN}/*") for path in folder.glob(depth))
        found = [CheckpointFile(path, path.stat().st_size) for path in here if path.is_file()]
    else:
        start = len(place.prefix) + 1
        found = [
            CheckpointFile(folder / name[start:], stored.size)
            for name, stored in place.store.listing(place.prefix).items()
        ]
    return [file for file in found if _is_own(file.path.relative_to(folder).as_posix(), own)]


def _is_own(name: str, patterns: Sequence[str]) -> bool:
    return any(
        name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def remove_checkpoints(
    study_folder: Path, number: int, names: Sequence[str] = CHECKPOINT_FILES
) -> int:
    """Remove a trial's checkpoints, with those left partly written or found damaged.

    Returns:
        Bytes that this made free.
    """
    found = checkpoint_files(study_folder, number, names)
    for file in found:
        remove_checkpoint(file)
    return sum(file.size for file in found)


def remove_checkpoint(file: CheckpointFile) -> None:
    """Remove a checkpoint, also at its address if it has one."""
    place = remote_place(file.path)
    if place is None:
        file.path.unlink()
        return
    place.store.remove(place.prefix)
    file.path.unlink(missing_ok=True)
