"""The differences of two specs, by dotted key, as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.study.commands import study_command

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec

BUDGETS = {
    "search.num_trials": "--num-trials",
    "search.epoch_budget": "--epoch-budget",
    "search.gpu_hours": "--gpu-hours",
    "search.time_budget": "--time-budget",
}
"""Settings that `tune resume` may change, and its options."""

ABSENT = object()


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Attributes:
        key: Its dotted key.
        old: Its value in the study, `ABSENT` for none.
        new: Its value now, `ABSENT` for none.
    """

    key: str
    old: Any
    new: Any

    def describe(self) -> str:
        """The change on one line, e.g. `search.seed: 0 -> 9`."""
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def spec_changes(old: StudySpec, new: StudySpec) -> list[Change]:
    """Every setting that differs between two specs, in the order of the file."""
    before, after = _flat(old), _flat(new)
    return [
        Change(key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def refusal(name: str, studies_dir: Path, changes: list[Change]) -> str:
    """Why a study of that name is refused, what differs, and what to do."""
    resume = study_command("resume", studies_dir / name)
    lines = [f"  {change.describe()}" for change in changes]
    budgets = [BUDGETS[change.key] for change in changes if change.key in BUDGETS]
    if len(budgets) == len(changes):
        options = " ".join(f"{BUDGETS[change.key]} {_option(change.new)}" for change in changes)
        head = f"the study {name!r} exists in {studies_dir} with other budgets:"
        way = f"go on with it by `{resume} {options}`, or choose another --name"
    else:
        head = f"the study {name!r} exists in {studies_dir} with another search space:"
        more = " (of these, it takes " + ", ".join(budgets) + ")" if budgets else ""
        way = f"choose another --name, or go on with it as it is by `{resume}`{more}"
    return "\n".join([head, *lines, way])


def _flat(spec: StudySpec) -> dict[str, Any]:
    """Settings by dotted key; a domain of the space is one value."""
    flat: dict[str, Any] = {}
    for section, value in spec.to_dict().items():
        depth = 1 if section == "space" else 9
        flat |= _entries(section, value, depth)
    return flat


def _entries(key: str, value: Any, depth: int) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value or not depth:
        return {key: value}
    entries: dict[str, Any] = {}
    for name, part in value.items():
        entries |= _entries(f"{key}.{name}", part, depth - 1)
    return entries


def _shown(value: Any) -> str:
    return "not given" if value is ABSENT else _option(value)


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
