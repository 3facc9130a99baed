"""Reads the fixed values of a search space, and checks which config fields may be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.config import ModelTrainingConfig
from training.local_path import is_url
from tuner.errors import suggestion
from tuner.spec.domain import Domain
from tuner.spec.field_errors import field_problem, value_problems
from tuner.spec.parser import SpecParser
from tuner.spec.policies import POLICY_SETTINGS
from tuner.spec.settings import EMBEDDED_DATA
from tuner.spec.spec_values import SECTION_OF, assumed_classes
from tuner.spec.yaml_source import YamlPath

SET_ELSEWHERE = {
    "monitor": "give it as `metric:`",
    "monitor_mode": "give it as `mode:`",
    "gpus": "give it as `resources: {gpu: ...}`",
    "log_dir": "a trial logs into its own folder",
    "checkpoint_dir": "a trial keeps its checkpoints in its own folder",
}
"""Config fields that a study decides, and how."""


def read_config(parser: SpecParser) -> dict[str, Any]:
    """The fixed values, checked together."""
    values = {
        name: value
        for name, value in parser.mapping("config").items()
        if is_field(parser, ("config", name), name)
    }
    try:
        ModelTrainingConfig.from_flat({**assumed_classes(values), **values})
    except ValueError as error:
        for problem in value_problems(error, values):
            message, name = problem.message, problem.name_in(values)
            if name == "scheduler" and values[name] in POLICY_SETTINGS:
                message += f"; what stops trials is the section policy: policy={values[name]}"
            parser.problem(("config", name) if name else ("config",), message)
    data_dir = values.get("data_dir")
    # an address is absolute
    if data_dir != EMBEDDED_DATA and not is_url(str(data_dir)):
        _make_absolute(values, "data_dir")
    _make_absolute(values, "splits_file")
    if str(values.get("groups")).lower().endswith(".csv"):
        _make_absolute(values, "groups")
    return values


def _make_absolute(values: dict[str, Any], name: str) -> None:
    """Fix a path to where it was given: a study may be resumed from another working folder."""
    path = values.get(name)
    if isinstance(path, str) and path:
        values[name] = str(Path(path).expanduser().absolute())


def is_field(parser: SpecParser, path: YamlPath, name: str) -> bool:
    """Whether a study may give this field of the config; notes why not."""
    field, dot, entry = name.partition(".")
    fields = ModelTrainingConfig.model_fields
    if field not in fields:
        # an option may name a setting of a section, too
        known = [*fields, *SECTION_OF] if path in parser.source.origins else fields
        parser.problem(path, f"unknown field {name!r}{suggestion(name, known)}", key=True)
        return False
    if dot and (field not in {"model_params", "class_weights"} or not entry):
        parser.problem(
            path, f"{name!r} is not a field: only model_params and class_weights have parts"
        )
        return False
    if field in SET_ELSEWHERE:
        parser.problem(path, f"{field} is not set here: {SET_ELSEWHERE[field]}")
        return False
    return True


def is_searchable(parser: SpecParser, path: YamlPath, name: str) -> bool:
    """Whether a field may vary; notes why not."""
    field = name.partition(".")[0]
    if field == "max_epochs":
        parser.problem(path, "max_epochs is the full budget of every trial: fix it in `config`")
        return False
    extra = ModelTrainingConfig.model_fields[field].json_schema_extra
    if isinstance(extra, dict) and extra.get("searchable") is False:
        parser.problem(
            path,
            f"{field} cannot vary: trials of one study could not be compared; fix it in `config`",
        )
        return False
    return True


def fits(
    parser: SpecParser, path: YamlPath, name: str, value: Any, domain: Domain | None = None
) -> bool:
    """Whether a value is valid for its field; notes why not."""
    problem = field_problem(name, value)
    if problem is None:
        return True
    message = problem.message
    if domain is not None:
        path = (*path, *domain.place_of(value))
        if problem.is_fraction:
            message += ": use randint, lograndint or choice for whole numbers"
    parser.problem(path, message)
    return False
