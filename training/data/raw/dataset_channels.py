"""Channels by a dataset.json: their names, and whether a case may lack some of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from training.config import MissingChannels
from training.data.raw.file_names import CaseFiles
from training.errors import DatasetError

MISSING_CHANNELS = "missing_channels"
"""Entry of a dataset.json, and field of a config."""


def read_channels(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Name of each channel: `modality` of the Decathlon, or nnU-Net's `channel_names`.

    Args:
        description: What is in the file.
        path: The file.

    Raises:
        DatasetError: if it names none, or they are not numbered from 0.
    """
    given = description.get("channel_names", description.get("modality"))
    if not isinstance(given, dict) or set(given) != {str(i) for i in range(len(given))}:
        raise DatasetError(
            f"{path}: `modality` (or nnU-Net's `channel_names`) must name each channel, "
            'e.g. {"0": "CT"}'
        )
    if not given:
        raise DatasetError(f"{path}: `modality` names no channel")
    return tuple(str(given[str(index)]) for index in range(len(given)))


def may_lack_channels(
    description: Mapping[str, Any], path: Path, chosen: MissingChannels | None
) -> bool:
    """Whether a case may lack channels.

    Args:
        description: What is in the file.
        path: The file.
        chosen: What a config says, which comes before the file; None where it says nothing.

    Raises:
        DatasetError: if the file says something else than refused or allowed.
    """
    given = description.get(MISSING_CHANNELS, "refused")
    if given not in get_args(MissingChannels):
        raise DatasetError(
            f'{path}: `{MISSING_CHANNELS}` must be "refused" or "allowed", but is {given!r}'
        )
    return (chosen or given) == "allowed"


def channels_problem(files: CaseFiles, channels: Sequence[str], *, allowed: bool) -> str | None:
    """What is wrong with the channels of a case by the names of its files, None if nothing is.

    Args:
        files: The files of a case.
        channels: Name of each channel of the data.
        allowed: Whether some may be missing.
    """
    count = len(channels)
    if files.numbers is None or files.numbers == tuple(range(count)):
        return None
    absent = files.missing(count)
    fits = absent and len(files.numbers) + len(absent) == count
    if allowed and fits and not files.in_another_format(count):
        return None
    lacking = f": {files.lacks(count)} is missing" if absent else ""
    way_out = (
        f"; add it, leave out the case, or train without it by `{MISSING_CHANNELS}: allowed`"
        if absent and not allowed
        else ""
    )
    return (
        f"{files.paths[0]}: {len(files.paths)} channels, but dataset.json declares {count} "
        f"({', '.join(channels)}){lacking}{way_out}"
    )


def present_channels(files: CaseFiles, count: int) -> tuple[int, ...] | None:
    """Numbers of the channels that a case has, None for all of them."""
    complete = files.numbers is None or len(files.numbers) == count
    return None if complete else files.numbers


def without_any(present: Sequence[tuple[int, ...] | None], channels: Sequence[str]) -> list[str]:
    """Channels that no case has, a line each.

    Args:
        present: Channels of each case, None for all.
        channels: Name of each channel.
    """
    if not present or any(numbers is None for numbers in present):
        return []
    found = {number for numbers in present for number in numbers or ()}
    return [
        f"no case has the channel {name} ({index:04}): take it out of the names of channels, or "
        "give at least one case that has it"
        for index, name in enumerate(channels)
        if index not in found
    ]


def lacking_line(present: Sequence[tuple[int, ...] | None], channels: Sequence[str]) -> str:
    """How many cases lack which channel, in one line; empty where none does."""
    lacking: Counter[str] = Counter()
    for numbers in present:
        if numbers is not None:
            lacking.update(name for index, name in enumerate(channels) if index not in numbers)
    if not lacking:
        return ""
    cases = sum(numbers is not None for numbers in present)
    parts = ", ".join(f"{name} in {lacking[name]}" for name in channels if lacking[name])
    return f"{cases} of {len(present)} cases lack channels, which are 0 for them: {parts}"
