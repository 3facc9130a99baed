"""Markdown that is generated from the source: fields, sections, commands, registries, the API.

A page names what it wants in a line of its own, `{{generated:fields}}`, and `GENERATORS` has the
function of that name.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

from pydantic import BaseModel

from training import registry
from training.config import ModelTrainingConfig
from tuner.spec import reference
from tuner.spec.domains import DOMAINS
from tuner.spec.policies import POLICY_SETTINGS
from tuner.spec.reference import FieldHelp

MARKER = re.compile(r"^\{\{generated:(\w+)\}\}$", re.MULTILINE)


def insert_generated(app: object, docname: str, source: list[str]) -> None:
    """Put what is generated into a page, in place."""
    source[0] = MARKER.sub(lambda found: GENERATORS[found[1]](), source[0])


def docstring(thing: Any) -> str:
    """The docstring of a function or class without its sections (Args, Raises, Example)."""
    text = inspect.cleandoc(thing.__doc__ or "")
    return re.split(r"\n\n(?:Args|Attributes|Returns|Raises|Example|Examples):\n", text)[0]


def code(value: object) -> str:
    """A value as inline code."""
    return f"`{value}`"


def described(entries: Iterable[tuple[str, str]]) -> str:
    """A definition list, which a narrow screen can show where it could not show a table."""
    parts = []
    for term, text in entries:
        body = "\n".join(f"  {line}".rstrip() for line in text.splitlines())
        parts.append(f"{term}\n: {body.lstrip()}\n")
    return "\n".join(parts)


def _field(row: FieldHelp, level: str) -> str:
    facts = f"{row.kind.replace('|', '·')}\n\nDefault: {code(row.default)}"
    if row.domain:
        facts += f"\n\nIn a space, for example: {code(row.domain)}"
    return f"{level} `{row.key}`\n\n{row.text}\n\n:::{{container}} facts\n{facts}\n:::\n"


def fields() -> str:
    """Every field of the config, by group."""
    parts, group = [], ""
    for row in reference.config_fields():
        if row.group != group:
            group = row.group
            parts.append(f"## {group}\n")
        parts.append(_field(row, "###"))
    return "\n".join(parts)


def sections() -> str:
    """Every section of settings with its settings."""
    parts = []
    for name, model in reference.sections().items():
        if name == reference.POLICY:
            continue
        parts.append(f"### `{name}`\n\n{docstring(model)}\n")
        parts += [_field(row, "####") for row in reference.section_fields(name)]
    return "\n".join(parts)


def domains() -> str:
    """Every domain as it is written, and what it means."""
    return described(
        (f"`{name}: [{', '.join(inspect.signature(kind).parameters)}]`", docstring(kind))
        if name != "choice"
        else ("`choice: [VALUE, ...]` or `choice: {NAME: VALUE, ...}`", docstring(kind))
        for name, kind in DOMAINS.items()
    )


def _usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def _option(action: argparse.Action) -> tuple[str, str]:
    values: Any = action.metavar or (action.choices and "{" + ",".join(action.choices) + "}")
    if isinstance(values, tuple):
        values = " ".join(values)
    if not action.option_strings:
        return code(values or action.dest), action.help or ""
    value = "" if action.nargs == 0 else f" {values or action.dest.upper()}"
    names = ", ".join(code(name + value) for name in action.option_strings)
    text = action.help or ""
    if action.required:
        text += " (required)"
    shown = action.default not in (None, False, [], argparse.SUPPRESS)
    if shown and "default" not in text:
        text += f" (default: {code(action.default)})"
    return names, text


def commands() -> str:
    """Every command with its arguments, options and examples."""
    from tuner.cli.parser import COMMANDS

    parts = []
    for command in COMMANDS:
        parser = argparse.ArgumentParser(prog=f"tune {command.name}", add_help=False)
        command.add_options(parser)
        parts.append(f"## `tune {command.name}`\n\n{_sentence(command.summary)}\n")
        parts.append(f"```{{code-block}} text\n:class: usage\n\n{_usage(parser)}\n```\n")
        parts.append(described(_option(action) for action in parser._actions))
        parts.append("Examples:\n\n```bash\n{}\n```\n".format("\n".join(command.examples)))
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _registry(entries: Mapping[str, Any]) -> str:
    """The entries of a registry with the docstrings of what they stand for."""
    return described((code(name), docstring(thing)) for name, thing in resolved(entries))


def resolved(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of a registry, and what they stand for, imported."""
    for name, thing in entries.items():
        yield name, entries.resolve(name) if isinstance(entries, registry.Registry) else thing


def searchers() -> str:
    """Every searcher with its docstring."""
    from tuner.search.searchers import SEARCHERS

    return _registry(SEARCHERS)


def policies() -> str:
    """Every policy with its settings."""
    from tuner.search.policies import POLICIES

    parts = []
    for name in POLICIES:
        parts.append(f"### `{name}`\n\n{docstring(POLICY_SETTINGS[name])}\n")
        parts += [_field(row, "####") for row in reference.policy_fields(name)]
    return "\n".join(parts)


def losses() -> str:
    """Every loss with its docstring."""
    return _registry(registry.LOSSES)


def region_losses() -> str:
    """Every loss of regions with its docstring."""
    return _registry(registry.REGION_LOSSES)


def optimizers() -> str:
    """Every optimizer with its docstring."""
    return _registry(registry.OPTIMIZERS)


def lr_schedules() -> str:
    """Every learning-rate schedule with its docstring."""
    return _registry(registry.LR_SCHEDULES)


def class_weights() -> str:
    """The presets of class weights, from the docstring of their module."""
    from training import class_weights as module

    return inspect.cleandoc(module.__doc__ or "")


def augmentations() -> str:
    """Which kinds of change each augmentation makes."""

    def changes(preset: Any) -> str:
        made = [name for name, on in vars(preset).items() if on]
        return ", ".join(made) or "no change"

    return described(
        (code(name), changes(preset)) for name, preset in resolved(registry.AUGMENTATIONS)
    )


def _model_params(name: str) -> list[str]:
    """Names that a network takes in `model_params`: what it says about one it does not take."""
    from training.models import build_model

    config = ModelTrainingConfig(model_name=name, model_params={"?": 0}, patch_size=(32, 32, 32))
    try:
        build_model(config)
    except ValueError as error:
        return str(error).rpartition("It takes ")[2].split(", ")
    raise AssertionError(f"{name} takes any parameter")


def networks() -> str:
    """Every network with its source, recipe and parameters."""
    from tuner.spec.recipes import RECIPES

    parts = []
    for name, builder in resolved(registry.MODELS):
        recipe = RECIPES[name]
        parts.append(f"## `{name}`\n\n{docstring(builder)}\n\nRecipe: {recipe.source}.\n")
        rows = {"optimizer": recipe.optimizer, **recipe.optimizers[recipe.optimizer]}
        rows |= dict(recipe.values)
        if recipe.warmup:
            rows["warmup_epochs"] = f"{recipe.warmup:.0%} of max_epochs"
        values = ", ".join(
            f"{key}: {reference.as_yaml(value)}" for key, value in sorted(rows.items())
        )
        parts.append(f"```{{code-block}} text\n:class: usage\n\n{values}\n```\n")
        parts.append(f"`model_params`: {', '.join(map(code, _model_params(name)))}\n")
    return "\n".join(parts)


def metrics() -> str:
    """Metrics that can be optimised."""
    from tuner.spec.read_metrics import COSTS, METRICS

    return (
        f"Scores that trials can be compared by: {', '.join(map(code, METRICS))}, of one class "
        "`val_dice_1`, `val_nsd_1` and so on (by the label's value in the files), and of "
        "a region by its name, `val_dice_tumour_core`.\n\nCosts that may stand after the first "
        "metric: "
        f"{', '.join(map(code, COSTS))}."
    )


def metric_conventions() -> str:
    """The conventions of the metrics, from the docstring of their package."""
    from training import metrics as module

    text = inspect.cleandoc(module.__doc__ or "")
    return re.sub(r"^# ", "### ", text, flags=re.MULTILINE)


def plugin_arguments() -> str:
    """What a user's own code is called with, from the docstring of the registry."""
    text = inspect.cleandoc(registry.__doc__ or "")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    fields = {"METRICS": "`metric`, `own_metrics`", "MODULES": "`lightning_module`"}
    for field, kind in registry.FIELDS.items():
        name = next(name for name, thing in vars(registry).items() if thing is kind)
        fields[name] = code(field)
    for name, field in fields.items():
        rows = rows.replace(f"| {name} |", f"| {field} |")
    return rows.replace("| Registry |", "| Field |")


def trial_states() -> str:
    """How a trial can stand."""
    from tuner.study.trial_entry import TrialState

    return ", ".join(code(state.value) for state in TrialState)


def errors() -> str:
    """The error tree, and each error with its docstring."""
    import tuner.errors
    from training import errors as training_errors

    found: dict[str, type[Exception]] = {}
    for module in (training_errors, tuner.errors):
        for name, thing in vars(module).items():
            if isinstance(thing, type) and issubclass(thing, Exception):
                found[name] = thing
    tree = inspect.cleandoc(training_errors.__doc__ or "").split("```")[1].strip()
    listed = described(
        (code(f"{thing.__module__}.{name}"), docstring(thing)) for name, thing in found.items()
    )
    return f"```text\n{tree}\n```\n\n{listed}"


PUBLIC_MODULES = (
    "training.config",
    "training.registry",
    "training.trainer",
    "training.planning",
    "training.lightning_module",
    "training.callbacks",
    "training.models",
    "training.models.dformer",
    "training.data",
    "training.losses",
    "training.region_losses",
    "training.region_maps",
    "training.ignored_voxels",
    "training.partial_labels",
    "training.optimizers",
    "training.lr_schedules",
    "training.metrics",
    "training.bundle",
    "training.bundle.postprocessing",
    "training.testing",
)
"""Modules whose public names the API pages list."""


def public_names(module: Any) -> list[str]:
    """`__all__` of a module, or the public classes and functions that are defined in it."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and getattr(thing, "__module__", None) == module.__name__
        and (inspect.isclass(thing) or inspect.isfunction(thing))
    ]


def _documented(module_name: str) -> str:
    module = importlib.import_module(module_name)
    lines = [f"## `{module_name}`", "", docstring(module).split("\n\n")[0], ""]
    return "\n".join([*lines, _autodoc(module, public_names(module)), ""])


def _autodoc(module: Any, names: Iterable[str]) -> str:
    lines = ["```{eval-rst}"]
    for name in sorted(names):
        thing = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if inspect.isclass(thing):
            lines.append(f".. autoclass:: {path}{_members(thing)}\n")
        elif inspect.isroutine(thing):
            lines.append(f".. autofunction:: {path}\n")
        else:
            lines.append(f".. py:data:: {path}\n")
    return "\n".join([*lines, "```"])


def _members(kind: type) -> str:
    """The public methods of a class, without the fields of a model, which have a page."""
    if issubclass(kind, BaseModel):
        own = [
            name
            for name, member in vars(kind).items()
            if not name.startswith("_")
            and name not in kind.model_fields
            and isinstance(member, property | classmethod | staticmethod | FunctionType)
        ]
        return f"\n   :members: {', '.join(own)}" if own else ""
    return "" if issubclass(kind, Exception) else "\n   :members:"


def training_api() -> str:
    """The public names of the training library."""
    return "\n".join(_documented(name) for name in PUBLIC_MODULES)


def tuner_api() -> str:
    """The public names of the search, but for its errors, which have a page."""
    import tuner

    names = [
        name for name in tuner.__all__ if not name.startswith("_") and not name.endswith("Error")
    ]
    functions = [name for name in names if inspect.isfunction(getattr(tuner, name))]
    classes = [name for name in names if name not in functions]
    return (
        f"## Functions\n\n{_autodoc(tuner, functions)}\n\n"
        f"## Classes\n\n{_autodoc(tuner, classes)}\n\n{_documented('tuner.testing')}"
    )


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        fields,
        sections,
        domains,
        commands,
        searchers,
        policies,
        losses,
        region_losses,
        optimizers,
        lr_schedules,
        class_weights,
        augmentations,
        networks,
        metrics,
        metric_conventions,
        plugin_arguments,
        trial_states,
        errors,
        training_api,
        tuner_api,
    )
}
"""What a page can ask for."""
