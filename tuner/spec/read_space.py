"""Reads what varies in a search space: domains and the conditions between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.config import ModelTrainingConfig
from tuner.errors import suggestion
from tuner.spec.domain import Domain
from tuner.spec.domains import DOMAINS
from tuner.spec.parser import SpecParser
from tuner.spec.read_config import fits, is_field, is_searchable
from tuner.spec.space import Space
from tuner.spec.yaml_source import YamlPath


def read_space(parser: SpecParser, config: Mapping[str, Any]) -> Space:
    """What varies, checked domain by domain."""
    domains: dict[str, Domain] = {}
    for name, entry in parser.mapping("space").items():
        path = ("space", name)
        if not (is_field(parser, path, name) and is_searchable(parser, path, name)):
            continue
        if name in parser.mapping("config"):
            parser.problem(
                path,
                f"{name} is fixed under `config` ({parser.where('config', name)}) "
                "and varies under `space`: remove one",
            )
        domain = _domain(parser, path, entry)
        if domain is not None and all(
            fits(parser, path, name, value, domain) for value in domain.examples()
        ):
            domains[name] = domain
    conditions: dict[str, dict[str, list[Any]]] = {}
    unreachable: set[str] = set()
    for name in domains:
        accepted = _condition(parser, name, domains, config)
        if accepted is None:
            unreachable.add(name)
        elif accepted:
            conditions[name] = accepted
    return _assemble(parser, domains, conditions, unreachable)


def _domain(parser: SpecParser, path: YamlPath, entry: Any) -> Domain | None:
    if not isinstance(entry, dict):
        parser.problem(
            path,
            f"{path[-1]} needs a domain, e.g. {{choice: [...]}} or {{loguniform: [1e-5, "
            f"1e-2]}}, but got {entry!r}; a fixed value goes under `config`",
        )
        return None
    kinds = [kind for kind in entry if kind != "when"]
    for kind in kinds:
        if kind not in DOMAINS:
            parser.problem((*path, kind), f"unknown domain {kind!r}{suggestion(kind, DOMAINS)}")
            return None
    if len(kinds) != 1:
        parser.problem(
            path,
            f"{path[-1]} needs exactly one domain of {', '.join(DOMAINS)}, "
            f"but got {', '.join(kinds) or 'none'}",
        )
        return None
    try:
        return DOMAINS[kinds[0]].read(entry[kinds[0]])
    except ValueError as error:
        parser.problem((*path, kinds[0]), str(error))
        return None


def _condition(
    parser: SpecParser, name: str, domains: Mapping[str, Domain], config: Mapping[str, Any]
) -> dict[str, list[Any]] | None:
    """The condition of a field on others of the space; None if it can never hold."""
    when = parser.data["space"][name].get("when", {})
    path: YamlPath = ("space", name, "when")
    if not isinstance(when, dict):
        parser.problem(path, f"when must be a mapping, e.g. {{optimizer: sgd}}, but got {when!r}")
        return {}
    conditions: dict[str, list[Any]] = {}
    for parent, given in when.items():
        accepted = given if isinstance(given, list) else [given]
        if parent in domains:
            _check_accepted(parser, (*path, parent), domains[parent], accepted)
            conditions[parent] = accepted
        elif parent in parser.data["space"]:
            continue  # its own domain is wrong, which is noted already
        elif is_field(parser, (*path, parent), parent):
            fixed = config.get(parent, _default_of(parent))
            if fixed not in accepted:
                return None
    return conditions


def _check_accepted(
    parser: SpecParser, path: YamlPath, domain: Domain, accepted: list[Any]
) -> None:
    if not domain.may_be_condition:
        parser.problem(path, f"when needs a choice or randint, but {path[-1]} is continuous")
        return
    for value in accepted:
        if not domain.contains(value):
            options = domain.options or ()
            known = [str(option) for option in options] or [domain.describe()]
            parser.problem(
                path, f"{path[-1]} is never {value!r} in this space{suggestion(value, known)}"
            )


def _assemble(
    parser: SpecParser,
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
    if not kept and parser.ok:
        parser.problem(("space",), "space is empty: name at least one field that varies")
    try:
        return Space(kept, {name: c for name, c in conditions.items() if name in kept})
    except ValueError as error:
        parser.problem(("space",), str(error))
        return Space({})


def _default_of(name: str) -> Any:
    field = ModelTrainingConfig.model_fields[name.partition(".")[0]]
    return field.default
