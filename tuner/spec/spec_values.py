"""The values of a search space, and the values derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from training.config import DEFAULT_TEST_FRACTION, Mode, ModelTrainingConfig
from training.registry import is_plugin
from tuner.spec.policies import AshaSettings, PolicySettings
from tuner.spec.recipes import (
    DEFAULTS_OF_FORMAT_1,
    DEFAULTS_OF_FORMAT_2,
    recipe_values,
    unnamed_values,
    usual_optimizer,
)
from tuner.spec.settings import (
    EMBEDDED_DATA,
    CheckpointSettings,
    ConfirmSettings,
    ConstraintSettings,
    ExportSettings,
    FailureSettings,
    ResourceSettings,
    SearchSettings,
    Section,
)
from tuner.spec.space import Space
from tuner.spec.yaml_source import dump_yaml

FORMAT = 3
"""Format of a search space. In 1, of earlier versions, a field that a study did not name had the
default of then (`DEFAULTS_OF_FORMAT_1`); in 2 it has the value of the network's recipe, and data
are prepared as then (`DEFAULTS_OF_FORMAT_2`)."""

RACED_SHARE = 0.2
"""Share of the further folds of trials that a race trains, about; see `bench_folds.py`."""

FINALE_SHARE = 0.6
"""Share of a study's time, at most, in which its best trials alone train on where time is short.

A winner that has had no more of the time than any other trial is worth less than the default
config that trains for all of it (the phantom, five minutes: 0.86 against 0.89 with a quarter of the
steps)."""


class SpecValues(BaseModel):
    """The values of a search space: metrics, config, space, and sections of settings.

    Each field that is a `Section` is a section of the file under that name; one that may be None
    may be left out or be `false` there.

    Attributes:
        source: The file it was read from.
        source_text: The file as given.
        format: `FORMAT`, or that of an earlier version which made the study.
        metric: Validation metric that trials are compared by.
        mode: Whether a greater ("max") or smaller ("min") metric is better.
        further_metrics: Metrics that matter beside it, with their modes.
        config: Fixed values of `ModelTrainingConfig`, as given.
        space: What varies.
        search: What proposes trials.
        policy: What stops, pauses or changes trials.
        resources: Share of a trial.
        failures: Retry policy for failed trials.
        checkpoints: Which checkpoints are kept.
        constraints: What a trial must keep to.
        confirm: How the best trials are confirmed, None for not at all.
        export: What is made of the checkpoints when the study is exported.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    source: Path
    source_text: str
    format: int = FORMAT
    metric: str
    mode: Mode
    further_metrics: tuple[tuple[str, Mode], ...] = ()
    config: dict[str, Any]
    space: Space
    search: SearchSettings = SearchSettings()
    policy: PolicySettings = AshaSettings()
    resources: ResourceSettings = ResourceSettings()
    failures: FailureSettings = FailureSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    constraints: ConstraintSettings = ConstraintSettings()
    confirm: ConfirmSettings | None = None
    export: ExportSettings = ExportSettings()

    @property
    def objectives(self) -> tuple[tuple[str, Mode], ...]:
        """All metrics that matter with their modes, the one that trials are compared by first."""
        return ((self.metric, self.mode), *self.further_metrics)

    @property
    def max_epochs(self) -> int:
        """Epochs of a full training on one fold."""
        return self.base_config().max_epochs

    @property
    def folds(self) -> int:
        """Folds that a configuration is judged on."""
        return self.search.folds

    @property
    def fold_epochs(self) -> int | None:
        """Epochs of a fold where there are several, None where a trial trains once."""
        return self.max_epochs if self.folds > 1 else None

    @property
    def full_epochs(self) -> int:
        """Epochs of a full training on every fold."""
        return self.max_epochs * self.folds

    @property
    def fold_ends(self) -> tuple[int, ...]:
        """Epochs of a trial at which its folds end, counted over all of them."""
        return tuple(self.max_epochs * (fold + 1) for fold in range(self.folds))

    def base_config(self) -> ModelTrainingConfig:
        """The config of the fixed values alone."""
        return self.trial_config({})

    def trial_config(self, values: Mapping[str, Any], fold: int = 0) -> ModelTrainingConfig:
        """The config of a trial with the sampled `values`.

        Args:
            values: Its values by field name.
            fold: Which of the study's folds is for validation, from 0, where there are several.

        Raises:
            pydantic.ValidationError: if the values do not fit together.
        """
        flat = {**self.config, **values}
        if self.format == 1:
            unnamed = dict(DEFAULTS_OF_FORMAT_1)
        else:
            unnamed = unnamed_values(flat, {*self.config, *self.space.domains})
        if self.format < 3:
            unnamed = {**unnamed, **DEFAULTS_OF_FORMAT_2}
        flat = {
            **unnamed,
            **flat,
            **self._fold_values(fold),
            "monitor": self.metric,
            "monitor_mode": self.mode,
        }
        own = [metric for metric, _ in self.further_metrics if is_plugin(metric)]
        if own:
            flat["own_metrics"] = list(dict.fromkeys([*self.config.get("own_metrics", []), *own]))
        return ModelTrainingConfig.from_flat({**assumed_classes(flat), **flat})

    def _fold_values(self, fold: int) -> dict[str, Any]:
        """Fields of the config that say which cases are for validation."""
        if self.folds == 1:
            return {}
        values = {"fold": fold, "num_folds": self.config.get("num_folds", self.folds)}
        if "splits_file" not in self.config and self.config.get("test_fraction") is None:
            # nnU-Net's folds keep none apart; a study does, with folds as without
            values["test_fraction"] = DEFAULT_TEST_FRACTION
        return values

    def default_point(self) -> dict[str, Any]:
        """The known good point of the space: each field's default, or what comes nearest."""
        return self._completed({})

    def start_points(self) -> list[dict[str, Any]]:
        """The points of `search.start_from`, with the default of fields that they leave out."""
        return [self._completed(given) for given in self.search.start_from]

    def _completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        plain = self.base_config().flat()
        recipe = self._recipe(given)
        values: dict[str, Any] = {}
        for name, domain in self.space.items():
            if not self.space.active(name, values):
                continue
            field, _, part = name.partition(".")
            default = plain.get(field)
            if name in recipe and (domain.options is None or domain.contains(recipe[name])):
                default = recipe[name]
            if part:
                default = default.get(part) if isinstance(default, dict) else None
            values[name] = domain.nearest(given.get(name, default))
        return values

    def _recipe(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of the network for the optimizer that the point will have."""
        base = self.base_config()
        domains = self.space.domains
        model_name: Any = base.model_name
        if "model_name" in domains:
            model_name = domains["model_name"].nearest(given.get("model_name", model_name))
        optimizer: Any = self.trial_config({"model_name": model_name}).optimizer
        if "optimizer" in domains:
            usual = usual_optimizer(model_name)
            optimizer = domains["optimizer"].nearest(given.get("optimizer", usual))
        values = recipe_values(model_name, optimizer, base.max_epochs)
        return {**values, "optimizer": optimizer, "model_name": model_name}

    def rungs(self) -> tuple[int, ...]:
        """Epochs below max_epochs at which trials are compared by rungs, ascending."""
        return self.policy.rungs(self.max_epochs)

    @property
    def population(self) -> int:
        """Trials that copy each other's weights, 0 if they do not."""
        return self.search.num_trials if self.policy.exchanges_weights else 0

    @property
    def snapshot_interval(self) -> int:
        """Epochs after which a trial keeps its checkpoint for others to copy."""
        return self.policy.snapshot_interval(self.max_epochs)

    def expected_epochs(self) -> float:
        """Epochs that the study is expected to take if no trial fails."""
        trials = self.search.num_trials
        first = self.policy.expected_epochs(self.max_epochs, trials)
        full = self.policy.expected_full_trainings(self.max_epochs, trials)
        share = RACED_SHARE if self.search.race else 1.0
        # the winner has all folds, however few trials there are
        further = max(1.0, share * full) * (self.folds - 1) * self.max_epochs
        return first + further

    def to_dict(self) -> dict[str, Any]:
        """The whole spec as plain values, every setting written out."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return {
            "format": self.format,
            "metric": self._listed(0),
            "mode": self._listed(1),
            "config": dict(self.config),
            "space": self.space.to_yaml(),
            **{
                name: False if section is None else section.model_dump(mode="json")
                for name, section in sections.items()
            },
        }

    def to_yaml(self) -> str:
        """The whole spec as a search space file, every setting written out."""
        return dump_yaml(self.to_dict())

    def _listed(self, part: int) -> Any:
        """Names (0) or modes (1) of the metrics; a plain value where there is one."""
        listed = [objective[part] for objective in self.objectives]
        return listed if len(listed) > 1 else listed[0]


def assumed_classes(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The number of classes that flat values ask for, where the data will decide it later.

    Without it, weights of two classes or a fifth label would be refused for a default of three.

    Args:
        flat: Values of a config with dotted keys.

    Returns:
        `num_classes`, or nothing where it is given or known.
    """
    if "num_classes" in flat or flat.get("data_dir") == EMBEDDED_DATA:
        return {}
    if isinstance(flat.get("label_values"), list):
        return {"num_classes": max(2, len(flat["label_values"]))}
    if isinstance(flat.get("regions"), dict):
        found = [value for of in flat["regions"].values() if isinstance(of, list) for value in of]
        return {"num_classes": max([1, *(one for one in found if isinstance(one, int))]) + 1}
    weights = flat.get("class_weights")
    if isinstance(weights, list):
        return {"num_classes": max(2, len(weights))}
    default: int = ModelTrainingConfig.model_fields["num_classes"].default
    named = [str(flat.get("target_label")), *(key.partition("class_weights.")[2] for key in flat)]
    most = max((int(label) for label in named if label.isdecimal()), default=0)
    return {"num_classes": most + 1} if most >= default else {}


def _section_kinds() -> dict[str, type[Section]]:
    kinds: dict[str, type[Section]] = {}
    for name, field in SpecValues.model_fields.items():
        for kind in get_args(field.annotation) or (field.annotation,):
            if isinstance(kind, type) and issubclass(kind, Section):
                kinds[name] = kind
    return kinds


SECTIONS = _section_kinds()
"""Sections of settings by their names, in the order in which they are written."""


def _sections_of_settings() -> dict[str, str]:
    having: dict[str, list[str]] = {}
    for section, kind in SECTIONS.items():
        for name in kind.setting_names():
            having.setdefault(name, []).append(section)
    return {
        name: found[0]
        for name, found in having.items()
        if len(found) == 1 and name not in ModelTrainingConfig.model_fields
    }


SECTION_OF = _sections_of_settings()
"""The section of each setting whose name no other section and no config field has."""

PARTS = ("metric", "mode", "config", "space", *SECTIONS)
"""All that a search space may have at its top."""


def may_be_off(section: str) -> bool:
    """Whether a section may be `false`, and is where it is left out."""
    return SpecValues.model_fields[section].default is None
