"""The sections `scheduler`, `asha` and `pbt`, which the section `policy` has replaced.

A new file that has them is refused with the new spelling; the resolved spec of a study that an
earlier version made is translated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tuner.spec.policies import DEFAULT_POLICY, POLICY_SETTINGS

OLD_SECTIONS = ("scheduler", "asha", "pbt")


def old_sections(data: Mapping[str, Any]) -> list[str]:
    """Old sections that a file has; `scheduler` is one if it names a policy."""
    return [
        name
        for name in OLD_SECTIONS
        if name in data and (name != "scheduler" or str(data[name]) in POLICY_SETTINGS)
    ]


def as_policy(data: Mapping[str, Any]) -> dict[str, Any]:
    """The section `policy` that is equivalent to the old sections of a file.

    Settings that the policy never read are left out.
    """
    default = "none" if data.get("asha", True) is False else DEFAULT_POLICY
    scheduler = str(data.get("scheduler", default))
    name = scheduler if scheduler in POLICY_SETTINGS else default
    read = POLICY_SETTINGS[name].model_fields
    given = {key.partition(".")[2]: value for key, value in _settings(data).items()}
    return {"name": name, **{key: value for key, value in given.items() if key in read}}


def _settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the old sections, by their dotted keys."""
    return {
        f"{section}.{key}": value
        for section in ("asha", "pbt")
        if isinstance(data.get(section), dict)
        for key, value in data[section].items()
    }


def translate(data: dict[str, Any]) -> None:
    """Put the section `policy` in the place of the old sections of a resolved spec."""
    if not old_sections(data):
        return
    policy = as_policy(data)
    for name in OLD_SECTIONS:
        data.pop(name, None)
    data["policy"] = policy


def refusal(data: Mapping[str, Any]) -> str:
    """Why a new file with old sections is refused, and what to write instead."""
    found = old_sections(data)
    policy = as_policy(data)
    value: Any = policy if len(policy) > 1 else policy["name"]
    written = yaml.safe_dump({"policy": value}, default_flow_style=True, sort_keys=False, width=999)
    sections, are = ("section", "is") if len(found) == 1 else ("sections", "are")
    unread = [key for key in _settings(data) if key.partition(".")[2] not in policy]
    left_out = f"; {policy['name']} does not read {', '.join(unread)}" if unread else ""
    return (
        f"the {sections} {', '.join(found)} {are} now one section, policy: write "
        f"`{written.strip().removeprefix('{').removesuffix('}')}` instead{left_out}"
    )
