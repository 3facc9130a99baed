"""The errors of the search; each names the value, the place and the way out.

```
SegtuneError           the root, in `training.errors`
└── TunerError
    ├── SpecError      a search space file or an option is wrong
    ├── StudyError     a study cannot be made, opened or resumed
    ├── ResourceError  no node can hold a trial, or the cluster cannot be reached
    └── ExportError    a trial cannot be exported
```
"""

from __future__ import annotations

from training.errors import SegtuneError, suggestion

__all__ = ["ExportError", "ResourceError", "SpecError", "StudyError", "TunerError", "suggestion"]


class TunerError(SegtuneError):
    """An error of the search that a user can put right."""


class SpecError(TunerError):
    """A search space is wrong; holds every problem that was found, one a line."""


class StudyError(TunerError):
    """A study cannot be made, opened or resumed."""


class ResourceError(TunerError):
    """No node can hold a trial, or the cluster cannot be reached."""


class ExportError(TunerError):
    """A trial cannot be exported."""
