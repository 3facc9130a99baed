"""The code of the user's own that a search space names, by import path."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import PluginError
from training.registry import FIELDS, METRICS, MODULES, Registry, is_plugin
from tuner.errors import SpecError
from tuner.spec.policies import OwnPolicySettings
from tuner.spec.registry import POLICIES, SEARCHERS
from tuner.spec.yaml_source import YamlPath, YamlSource

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec

CODE_FOLDER = "code"
"""Folder in which a study keeps the code of the user's own that it uses."""


MODULE_BASE = "training.lightning_module:SegmentationLightningModule"
"""Class that a Lightning module of the user's own inherits from."""


def trial_plugins(spec: StudySpec) -> dict[str, tuple[str, Registry]]:
    """Code of the user's own that a study's trials use: field and kind, by import path."""
    return {path: (field, kind) for field, path, kind in _named(spec) if is_plugin(path)}


def import_plugins(spec: StudySpec) -> dict[str, Any]:
    """Import all code of the user's own that a search space names.

    Modules are looked for beside the search space and in the working folder as well; a study's
    own copy of them goes before any other.

    Returns:
        What each import path leads to.

    Raises:
        SpecError: naming the field and the import path that leads nowhere.
    """
    named = trial_plugins(spec)
    for field, path, kind in (
        ("searcher", spec.search.searcher, SEARCHERS),
        ("policy", spec.policy.name, POLICIES),
    ):
        if is_plugin(path):
            named[path] = (field, kind)
    if named:
        look_for_modules(spec.source)
    found = {}
    for path, (field, kind) in named.items():
        try:
            found[path] = kind.resolve(path)
            kind.check(path, found[path])
            if kind is SEARCHERS:
                _check_searcher(path, found[path])
            if kind is MODULES:
                _check_module(path, found[path])
            if kind is POLICIES and isinstance(spec.policy, OwnPolicySettings):
                spec.policy.check(found[path])
        except PluginError as error:
            raise SpecError(f"{_place(spec, path)}: {field}: {error}") from error
    return found


def _check_searcher(path: str, function: Any) -> None:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"searcher {path} must take one argument, the SearchView: {error}"
        ) from error


def _check_module(path: str, module: Any) -> None:
    # by name, since torch is not imported to read a search space
    bases = {f"{base.__module__}:{base.__qualname__}" for base in getattr(module, "__mro__", ())}
    if MODULE_BASE not in bases:
        raise PluginError(
            f"lightning_module={path} must be a subclass of {MODULE_BASE.replace(':', '.')}"
        )


def look_for_modules(source: Path) -> None:
    """Let modules be imported from beside a search space, and from the working folder.

    Args:
        source: The search space, or the resolved one of a study.
    """
    kept = source.absolute().parent / CODE_FOLDER
    if kept.is_dir() and str(kept) not in sys.path:
        sys.path.insert(0, str(kept))
    for folder in (source.absolute().parent, Path.cwd()):
        if str(folder) not in sys.path:
            # last, so that no file of the user's hides a module of a library
            sys.path.append(str(folder))


def _place(spec: StudySpec, path: str) -> str:
    """Where an import path is written; the file where an option gave it."""
    if not spec.source.name:
        return "the search space"
    source = YamlSource.parse(spec.source_text, str(spec.source))
    written = (place for place, value in _leaves(source.data) if value == path)
    return source.where(*next(written, ()))


def _leaves(value: Any, place: YamlPath = ()) -> Iterator[tuple[YamlPath, Any]]:
    """Every plain value of a search space with its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, (*place, index))
    else:
        yield place, value


def _named(spec: StudySpec) -> Iterator[tuple[str, Any, Registry]]:
    """Field, name and kind of everything that has a name in a spec."""
    for field, kind in FIELDS.items():
        yield field, spec.config.get(field), kind
        domain = spec.space.domains.get(field)
        for value in (domain.options or ()) if domain is not None else ():
            yield field, value, kind
    for metric, _ in spec.objectives:
        yield "metric", metric, METRICS
    for metric in spec.config.get("own_metrics", []):
        yield "own_metrics", metric, METRICS
    yield "lightning_module", spec.config.get("lightning_module"), MODULES
