"""The error of data that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class DatasetError(ValueError):
    """A folder or file of images that cannot be used, with every reason, by file."""

    @classmethod
    def of(cls, folder: object, problems: Sequence[str]) -> Self:
        """One error of all problems of a data folder."""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return cls("\n  ".join([f"the data in {folder} have {count}:", *problems]))


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class TrainingDivergedError(ArithmeticError):
    """The loss or the weights are NaN or infinite."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or not one."""


class BundleError(ValueError):
    """A folder is no bundle, or a bundle does not predict what its trial predicted."""
