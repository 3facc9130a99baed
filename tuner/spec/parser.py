"""Reads the parts of a search space file and collects what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from training.config import Mode, ModelTrainingConfig
from training.local_path import is_url, url_refusal
from tuner.errors import SpecError, suggestion
from tuner.spec.domains import DOMAINS, Choice, Domain, RandInt
from tuner.spec.field_errors import UNKNOWN_NAME, describe_errors, field_problem
from tuner.spec.old_sections import OLD_SECTIONS, old_sections, refusal
from tuner.spec.policies import DEFAULT_POLICY, POLICY_SETTINGS, PolicySettings
from tuner.spec.settings import EMBEDDED_DATA
from tuner.spec.space import Space
from tuner.spec.yaml_source import Override, YamlPath, YamlSource

SECTIONS = (
    *("metric", "mode", "config", "space", "search", "policy", "resources"),
    *("failures", "checkpoints", "constraints", "confirm"),
)

METRICS = ("val_dice", "val_nsd", "val_iou", "val_boundary_f1", "val_accuracy", "val_loss")
"""Metrics that trials can be compared by; `val_dice_K` and `val_nsd_K` are those of class K."""

COSTS = ("val_seconds_per_case", "parameters", "peak_memory")
"""Metrics that may stand after the first one: smaller is better of each."""

DEFAULT_METRIC = "val_dice"


SET_ELSEWHERE = {
    "monitor": "give it as `metric:`",
    "monitor_mode": "give it as `mode:`",
    "gpus": "give it as `resources: {gpu: ...}`",
    "log_dir": "a trial logs into its own folder",
    "checkpoint_dir": "a trial keeps its checkpoints in its own folder",
}
"""Config fields that a study decides, and how."""

Section = TypeVar("Section", bound=BaseModel)


class SpecParser:
    """Reads a search space part by part; problems are collected and raised together.

    Args:
        source: The file's values and where they are written.

    Raises:
        SpecError: if the file is no mapping.
    """

    def __init__(self, source: YamlSource) -> None:
        self._source = source
        self._problems: list[str] = []
        if source.data is None:
            raise SpecError(f"{source.name} is empty: it needs at least the section `space`")
        if not isinstance(source.data, dict):
            raise SpecError(
                f"{source.where()}: a search space is a mapping of {', '.join(SECTIONS)}, "
                f"but this is {source.data!r}"
            )

    @property
    def data(self) -> dict[str, Any]:
        """The file's values."""
        values: dict[str, Any] = self._source.data
        return values

    def problem(self, path: YamlPath, message: str, *, key: bool = False) -> None:
        """Note what is wrong with the value (or the key) at `path`."""
        line = f"{self._source.where(*path, key=key)}: {message}"
        if line not in self._problems:
            self._problems.append(line)

    def raise_problems(self) -> None:
        """Raise all problems so far, if there are any."""
        if self._problems:
            raise SpecError("\n".join(self._problems))

    def apply(self, overrides: Mapping[str, Override]) -> None:
        """Put the values of options in the place of those of the file."""
        for key, override in overrides.items():
            section, _, name = key.partition(".")
            policy = self.data.get("policy")
            if section == "policy" and name and isinstance(policy, str):
                self.data["policy"] = {"name": policy}
            # `--set scheduler=cosine` sets the field of the config
            if section not in {*SECTIONS, *OLD_SECTIONS} - {"scheduler"}:
                section, name = "config", key
            if not name:
                self._source.replace((section,), override)
                continue
            self._source.replace((section, name), override)
            if section == "config":
                self._source.remove("space", name)
            elif section == "space":
                self._source.remove("config", name)

    def check_sections(self) -> None:
        """Note unknown sections, and sections that are no mapping."""
        old = old_sections(self.data)
        if old:
            options = (path for path in self._source.origins if path[0] in old)
            self.problem(next(options, (old[0],)), refusal(self.data), key=True)
        for name in self.data:
            if name not in {*SECTIONS, *old}:
                hint = suggestion(name, SECTIONS)
                if name in ModelTrainingConfig.model_fields:
                    hint = f": fixed values of the config go under `config:`, e.g. config.{name}"
                self.problem((name,), f"unknown section {name!r}{hint}", key=True)
        for name in (
            *("config", "space", "search", "resources"),
            *("failures", "checkpoints", "constraints"),
        ):
            if not isinstance(self.data.get(name, {}), dict):
                self.problem(
                    (name,), f"{name} must be a mapping of names, but got {self.data[name]!r}"
                )
        if "space" not in self.data and not self._problems:
            self.problem(("space",), "there is no section `space`: nothing would vary")

    def metrics(self) -> list[tuple[str, Mode]]:
        """The metrics and their modes, the one that trials are compared by first."""
        given = self.data.get("metric", DEFAULT_METRIC)
        names = given if isinstance(given, list) else [given]
        found = [self._metric(name, index) for index, name in enumerate(names)]
        modes = self.data.get("mode")
        expected = [mode for _, mode in found]
        if "mode" in self.data and modes not in (expected, *(expected if len(found) == 1 else ())):
            wanted = expected[0] if len(found) == 1 else f"[{', '.join(expected)}]"
            shown = ", ".join(str(name) for name in names)
            self.problem(
                ("mode",),
                f"mode={modes!r} does not fit metric {shown}: write {wanted}, or leave out",
            )
        if not found:
            self.problem(("metric",), "metric names none: leave it out for val_dice")
        return found or [(DEFAULT_METRIC, "max")]

    def _metric(self, name: Any, index: int) -> tuple[str, Mode]:
        """One of the metrics; notes what is wrong with it."""
        path: YamlPath = (
            ("metric", index) if isinstance(self.data.get("metric"), list) else ("metric",)
        )
        if isinstance(name, str) and name in COSTS:
            if index == 0:
                self.problem(
                    path,
                    f"{name} cannot be the first metric: trials are compared by it, and the "
                    "cheapest network is seldom the best; put e.g. val_dice before it",
                )
            return name, "min"
        if isinstance(name, str) and (
            name in METRICS or re.fullmatch(r"val_(dice|nsd)_[1-9]\d*", name)
        ):
            return name, "min" if name == "val_loss" else "max"
        known = [*METRICS, "val_dice_1", *COSTS]
        self.problem(path, f"unknown metric {name!r}{suggestion(name, known)}")
        return DEFAULT_METRIC, "max"

    def config(self) -> dict[str, Any]:
        """The fixed values, checked one by one."""
        given = self.data.get("config", {})
        values: dict[str, Any] = {}
        for name, value in given.items() if isinstance(given, dict) else ():
            path = ("config", name)
            if self._is_field(path, name) and self._fits(path, name, value):
                values[name] = value
        data_dir = values.get("data_dir")
        if data_dir is not None and is_url(data_dir):
            self.problem(("config", "data_dir"), f"data_dir {url_refusal(data_dir)}")
        elif data_dir is not None and data_dir != EMBEDDED_DATA:
            # a study may be resumed from another working folder
            values["data_dir"] = str(Path(data_dir).expanduser().absolute())
        for name in ("splits_file", "groups"):
            given_path = values.get(name)
            if given_path and (name != "groups" or given_path.lower().endswith(".csv")):
                values[name] = str(Path(given_path).expanduser().absolute())
        return values

    def space(self, config: Mapping[str, Any]) -> Space:
        """What varies, checked domain by domain."""
        given = self.data.get("space")
        domains: dict[str, Domain] = {}
        for name, entry in given.items() if isinstance(given, dict) else ():
            path = ("space", name)
            if not (self._is_field(path, name) and self._is_searchable(path, name)):
                continue
            if name in self.data.get("config", {}):
                self.problem(
                    path,
                    f"{name} is fixed under `config` ({self._source.where('config', name)}) "
                    "and varies under `space`: remove one",
                )
            domain = self._domain(path, entry)
            if domain is not None and all(
                self._fits(path, name, value, domain) for value in domain.examples()
            ):
                domains[name] = domain
        conditions: dict[str, dict[str, list[Any]]] = {}
        unreachable: set[str] = set()
        for name in domains:
            accepted = self._condition(name, domains, config)
            if accepted is None:
                unreachable.add(name)
            elif accepted:
                conditions[name] = accepted
        return self._assemble(domains, conditions, unreachable)

    def section(self, name: str, model: type[Section]) -> Section | None:
        """A section of settings; None if something in it is wrong."""
        given = self.data.get(name, {})
        if not isinstance(given, dict):
            if name == "confirm":
                self.problem((name,), f"{name} must be a mapping or false, but got {given!r}")
            return None
        try:
            return model(**given)
        except ValidationError as error:
            for path, message in describe_errors(error, model):
                self.problem((name, *path), message, key=message.startswith(UNKNOWN_NAME))
            return None

    def policy(self) -> PolicySettings | None:
        """The policy with its settings, given by name or as a mapping; None if it is wrong."""
        given = self.data.get("policy", {})
        path: YamlPath = ("policy",)
        if isinstance(given, dict):
            path, settings = (*path, "name"), given
        elif isinstance(given, str):
            settings = {"name": given}
        else:
            self.problem(
                path,
                "policy must be a name, or a mapping such as {name: asha, grace_period: 2}, "
                f"but got {given!r}",
            )
            return None
        name = settings.get("name", DEFAULT_POLICY)
        if not isinstance(name, str) or name not in POLICY_SETTINGS:
            self.problem(path, f"unknown policy {name!r}{suggestion(name, POLICY_SETTINGS)}")
            return None
        model = POLICY_SETTINGS[name]
        try:
            return model(**settings)
        except ValidationError as error:
            for place, message in describe_errors(error, model):
                unknown = message.startswith(UNKNOWN_NAME)
                shown = f"policy={name}: {message}" if unknown else message
                self.problem(("policy", *place), shown, key=unknown)
            return None

    def _is_field(self, path: YamlPath, name: str) -> bool:
        field, dot, entry = name.partition(".")
        fields = ModelTrainingConfig.model_fields
        if field not in fields:
            self.problem(path, f"unknown field {name!r}{suggestion(name, fields)}", key=True)
            return False
        if dot and (field not in {"model_params", "class_weights"} or not entry):
            self.problem(
                path, f"{name!r} is no field: only model_params and class_weights have parts"
            )
            return False
        if field in SET_ELSEWHERE:
            self.problem(path, f"{field} is not set here: {SET_ELSEWHERE[field]}")
            return False
        return True

    def _is_searchable(self, path: YamlPath, name: str) -> bool:
        field = name.partition(".")[0]
        if field == "max_epochs":
            self.problem(path, "max_epochs is the full budget of every trial: fix it in `config`")
            return False
        extra = ModelTrainingConfig.model_fields[field].json_schema_extra
        if isinstance(extra, dict) and extra.get("searchable") is False:
            self.problem(
                path,
                f"{field} cannot vary: trials of one study could not be compared; "
                "fix it in `config`",
            )
            return False
        return True

    def _fits(self, path: YamlPath, name: str, value: Any, domain: Domain | None = None) -> bool:
        """Whether a value is valid for its field; notes why not."""
        message = field_problem(name, value)
        if message is None:
            return True
        if name == "scheduler" and isinstance(value, str) and value in POLICY_SETTINGS:
            message += f"; what stops trials is the section policy: policy={value}"
        if isinstance(domain, Choice):
            path = (*path, "choice", domain.values.index(value))
        elif domain is not None:
            path = (*path, next(iter(domain.to_yaml())))
            if "fractional part" in message:
                message += ": use randint, or choice, for whole numbers"
        self.problem(path, message)
        return False

    def _domain(self, path: YamlPath, entry: Any) -> Domain | None:
        if not isinstance(entry, dict):
            self.problem(
                path,
                f"{path[-1]} needs a domain, e.g. {{choice: [...]}} or {{loguniform: [1e-5, "
                f"1e-2]}}, but got {entry!r}; a fixed value goes under `config`",
            )
            return None
        kinds = [kind for kind in entry if kind != "when"]
        for kind in kinds:
            if kind not in DOMAINS:
                self.problem((*path, kind), f"unknown domain {kind!r}{suggestion(kind, DOMAINS)}")
                return None
        if len(kinds) != 1:
            self.problem(
                path,
                f"{path[-1]} needs exactly one domain of {', '.join(DOMAINS)}, "
                f"but got {', '.join(kinds) or 'none'}",
            )
            return None
        try:
            return _build_domain(kinds[0], entry[kinds[0]])
        except ValueError as error:
            self.problem((*path, kinds[0]), str(error))
            return None

    def _condition(
        self, name: str, domains: Mapping[str, Domain], config: Mapping[str, Any]
    ) -> dict[str, list[Any]] | None:
        """The condition of a field on others of the space; None if it can never hold."""
        when = self.data["space"][name].get("when", {})
        path: YamlPath = ("space", name, "when")
        if not isinstance(when, dict):
            self.problem(path, f"when must be a mapping, e.g. {{optimizer: sgd}}, but got {when!r}")
            return {}
        conditions: dict[str, list[Any]] = {}
        for parent, given in when.items():
            accepted = given if isinstance(given, list) else [given]
            if parent in domains:
                self._check_accepted((*path, parent), domains[parent], accepted)
                conditions[parent] = accepted
            elif parent in self.data["space"]:
                continue  # its own domain is wrong, which is noted already
            elif self._is_field((*path, parent), parent):
                fixed = config.get(parent, _default_of(parent))
                if fixed not in accepted:
                    return None
        return conditions

    def _check_accepted(self, path: YamlPath, domain: Domain, accepted: list[Any]) -> None:
        if not isinstance(domain, Choice | RandInt):
            self.problem(path, f"when needs a choice or randint, but {path[-1]} is continuous")
            return
        for value in accepted:
            if not domain.contains(value):
                known = (
                    [str(known) for known in domain.values]
                    if isinstance(domain, Choice)
                    else [domain.describe()]
                )
                self.problem(
                    path, f"{path[-1]} is never {value!r} in this space{suggestion(value, known)}"
                )

    def _assemble(
        self,
        domains: dict[str, Domain],
        conditions: dict[str, dict[str, list[Any]]],
        unreachable: set[str],
    ) -> Space:
        # a field whose condition cannot hold leaves, and so does all that depends on it
        while True:
            dependent = {n for n, c in conditions.items() if unreachable & set(c)} - unreachable
            if not dependent:
                break
            unreachable |= dependent
        kept = {name: domain for name, domain in domains.items() if name not in unreachable}
        if not kept and not self._problems:
            self.problem(("space",), "space is empty: name at least one field that varies")
        try:
            return Space(kept, {name: c for name, c in conditions.items() if name in kept})
        except ValueError as error:
            self.problem(("space",), str(error))
            return Space({})


def _build_domain(kind: str, arguments: Any) -> Domain:
    if kind == "choice":
        if isinstance(arguments, dict):
            return Choice(tuple(arguments.values()), tuple(arguments))
        if not isinstance(arguments, list):
            raise ValueError(f"choice needs a list of values, but got {arguments!r}")
        return Choice(tuple(arguments))
    names = "low, high, step" if kind == "quniform" else "low, high"
    expected = len(names.split(", "))
    if not isinstance(arguments, list) or len(arguments) != expected:
        raise ValueError(f"{kind} needs [{names}], but got {arguments!r}")
    return DOMAINS[kind](*arguments)


def _default_of(name: str) -> Any:
    field = ModelTrainingConfig.model_fields[name.partition(".")[0]]
    return field.default
