"""The errors that a user of `tune` can cause; each names the value, the place and the way out.

```
ValueError
└── TunerError
    ├── SpecError      a search space file or an option is wrong
    ├── StudyError     a study cannot be made, opened or gone on with
    ├── ResourceError  no node can hold a trial, or the cluster cannot be reached
    └── ExportError    a trial cannot be exported
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["ExportError", "ResourceError", "SpecError", "StudyError", "TunerError", "suggestion"]


class TunerError(ValueError):
    """What a user can put right; the root of the tree."""


class SpecError(TunerError):
    """A search space is wrong; holds every problem that was found, one a line."""


class StudyError(TunerError):
    """A study cannot be made, opened or gone on with."""


class ResourceError(TunerError):
    """No node can hold a trial, or the cluster cannot be reached."""


class ExportError(TunerError):
    """A trial cannot be exported."""


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
