"""The errors that a user can cause and put right: one tree, of both packages.

```
ValueError
└── SegtuneError       the root: the value, the place and the way out
    ├── DatasetError   data that cannot be used
    ├── BundleError    a folder that is not a bundle, or does not predict what it should
    ├── CheckpointError  a file of a training that is damaged
    ├── PluginError    code of the user's own that cannot be found or used
    ├── NoFitError     a training that the memory is too small for; a MemoryError too
    ├── FieldsError    values of config fields that do not fit together
    └── TunerError     an error of the search, see `tuner.errors`
        ├── SpecError  StudyError  ResourceError  ExportError
```

`TrainingDivergedError` is not among them: it is a result of a training, not a mistake of a user.
This module loads nothing else, so that asking what an error is costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Self

__all__ = [
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "FieldsError",
    "NoFitError",
    "PluginError",
    "SegtuneError",
    "TrainingDivergedError",
    "reason_of",
    "suggestion",
]


class SegtuneError(ValueError):
    """An error that a user can fix; the root of the tree."""


class DatasetError(SegtuneError):
    """A folder or file of images that cannot be used, with every reason, by file."""

    @classmethod
    def of(cls, folder: object, problems: Sequence[str]) -> Self:
        """One error of all problems of a data folder."""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return cls("\n  ".join([f"the data in {folder} have {count}:", *problems]))


class AddressError(SegtuneError):
    """An address such as `s3://bucket/data` is not one, or nothing here reaches it."""


class BundleError(SegtuneError):
    """A folder is not a bundle, or a bundle does not predict what its trial predicted."""


class CheckpointError(SegtuneError):
    """A file of tensors is missing or damaged, or is not the checkpoint of a training."""


class PluginError(SegtuneError):
    """Code of the user's own, named by its import path, cannot be found or used."""


class FieldsError(SegtuneError):
    """Values of config fields that do not fit together.

    Args:
        message: What is wrong.
        fields: The fields that it is about, as they were given.
    """

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class NoFitError(SegtuneError, MemoryError):
    """No patch of a network fits into the memory that there is."""


class TrainingDivergedError(ArithmeticError):
    """The loss or the weights are NaN or infinite."""


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    if isinstance(error, MemoryError) and not isinstance(error, NoFitError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, or what is known.

    Example:
        >>> suggestion("learning_rat", ["learning_rate", "loss"])
        "; did you mean 'learning_rate'?"
        >>> suggestion("zzz", ["a", "b"])
        '; choose from a, b'
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(names)}"
