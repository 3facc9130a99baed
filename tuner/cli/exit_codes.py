"""Exit codes of `tune`: 0 done, 1 no usable result, 2 a mistake in the input, 130 interrupted."""

from __future__ import annotations

DONE = 0

NO_RESULT = 1
"""No trial has a usable result, or most trials failed."""

USER_ERROR = 2
"""A mistake in the input, which the message names."""

INTERRUPTED = 130
"""Ended by Ctrl-C or SIGTERM."""
