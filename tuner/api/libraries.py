"""Hides warnings and log lines of libraries that are meant for programmers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("pytorch_lightning", "monai", "torch", "ray", "optuna", "tqdm")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Ignore the warnings of libraries in the block, and log only what concerns the user."""
    # Lightning sets the level of its top logger on import, but not of those that write
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.ERROR)
    # our own error names the file whose header is wrong
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    # Tune counts a trial that goes on after a failure as lost, since it is a new one to Tune
    logging.getLogger("ray.tune.tune").addFilter(_is_not_trial_count)
    with warnings.catch_warnings():
        for library in LIBRARIES:
            warnings.filterwarnings("ignore", module=library)
        yield


def _is_not_trial_count(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Trials did not complete")
