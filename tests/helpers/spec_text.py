"""Search spaces from text, with what `--set` puts in place of their values."""

from __future__ import annotations

from typing import Any

from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import Override


def parse(text: str, **overrides: Any) -> StudySpec:
    """The spec of a text; `search__seed=3` is `--set search.seed=3`."""
    return parse_spec(
        text,
        source="s.yaml",
        overrides={
            key.replace("__", "."): Override(value, f"--set {key}={value}")
            for key, value in overrides.items()
        },
    )
