"""Builds networks of a space before they are trained: whether they can be, and what they take."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import ByteSize, ValidationError
from torch import nn

from training.config import ModelTrainingConfig
from training.models import build_model
from tuner.errors import SpecError, StudyError
from tuner.spec.field_errors import value_problems
from tuner.spec.plugins import import_plugins
from tuner.trial.auto_patch import number_for_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from training.planning import CaseSizes
    from tuner.spec.study_spec import StudySpec

NETWORKS = 12
"""Networks of a space that are built at most; a large one takes half a second."""

DRAWS = 300


@dataclass(frozen=True)
class Networks:
    """Result of building networks of a space.

    Attributes:
        costs: Parameters of each different one, and bytes that a step of its training takes.
        too_large: How many of them break a constraint of the study.
        planned: Patch and batch that networks with `auto` would have on this machine, as text.
    """

    costs: Sequence[Cost]
    too_large: int
    planned: Sequence[str] = ()

    def describe(self) -> list[str]:
        """The result as lines of text."""
        line = f"networks  {len(self.costs)} different ones of this space can be built"
        if self.too_large:
            line += f"; {self.too_large} of them break a constraint, and would end as infeasible"
        lines = [line]
        if self.costs:
            few, many = (_shown(pick(cost.bytes for cost in self.costs)) for pick in (min, max))
            memory = few if few == many else f"{few} to {many}"
            lines.append(
                f"memory    at least {memory} for a trial to train on its batch of patches, "
                "beside what the libraries take"
            )
        heads = ["planned   ", *["          "] * len(self.planned)]
        return lines + [f"{head}{each}" for head, each in zip(heads, self.planned, strict=False)]


class Cost(NamedTuple):
    """Lower bounds of a network's cost: parameters, and bytes of memory in training."""

    parameters: int
    bytes: int

    @classmethod
    def of(cls, config: ModelTrainingConfig) -> Cost:
        """The cost of the network of a config, which is not computed with."""
        from training.models.footprint import training_bytes

        return cls(count_parameters(config), training_bytes(config))


def _shown(size: int) -> str:
    return ByteSize(size).human_readable(decimal=True)


def check_networks(spec: StudySpec, sizes: CaseSizes | None = None) -> Networks:
    """Build networks that the space can propose.

    Args:
        spec: A valid spec.
        sizes: Sizes of the cases, for which `patch_size: auto` is planned; None if they are not
            known.

    Raises:
        SpecError: for the first one that cannot be built, with its settings; or if none was
            found that keeps to the constraints.
    """
    import_plugins(spec)
    costs = []
    plans: dict[str, None] = {}
    for drawn in islice(_drawn(spec), NETWORKS):
        try:
            config, plan = number_for_now(drawn.config, spec, sizes)
            build_on_meta(config)
        except Exception as error:
            # MONAI's constructors refuse with whatever their code runs into
            raise SpecError(
                f"{spec.source}: the network {drawn.config.model_name} cannot be built"
                f"{drawn.settings()}: {_reason(error)}"
            ) from error
        costs.append(Cost.of(config))
        if plan:
            plans[plan] = None
    too_large = [cost for cost in costs if _above(cost, spec)]
    if costs and len(too_large) == len(costs):
        _check_constraints(spec)
    return Networks(costs, len(too_large), tuple(plans))


def check_some_network_builds(spec: StudySpec) -> None:
    """Build networks that the space can propose until one can be built.

    Raises:
        StudyError: if none can be built, with the reason; a part that fails is left to its
            trials, which end with that reason.
    """
    problem = None
    for drawn in islice(_drawn(spec), NETWORKS):
        try:
            build_on_meta(number_for_now(drawn.config, spec, None)[0])
        except Exception as error:
            problem = problem or _reason(error)
        else:
            return
    if problem is not None:
        raise StudyError(
            f"no network of this space can be built: {problem}; `tune check` says with which "
            "settings"
        )


def _check_constraints(spec: StudySpec) -> None:
    """Look among more networks for one that is small enough."""
    counted = []
    for drawn in _drawn(spec):
        config, _ = number_for_now(drawn.config, spec, None)
        counted.append((Cost.of(config), f"{drawn.config.model_name}{drawn.settings()}"))
        if not _above(counted[-1][0], spec):
            return
    cost, name = min(counted)
    raise SpecError(
        f"{spec.source}: none of the {len(counted)} networks of this space that were tried keeps "
        f"to the constraints: the smallest, {name}, has {cost.parameters:,} parameters, "
        f"{_above(cost, spec)}; every trial would end as infeasible: raise the limit, or let "
        "smaller networks into the space"
    )


def _above(cost: Cost, spec: StudySpec) -> str:
    """Which constraint a network breaks in any case, empty for none."""
    most, memory = spec.constraints.max_parameters, spec.constraints.max_memory
    if most is not None and cost.parameters > most:
        return f"above max_parameters={most:,}"
    if memory is not None and cost.bytes > memory:
        return (
            f"and its training takes {_shown(cost.bytes)} at least, above "
            f"max_memory={memory.human_readable(decimal=True)}"
        )
    return ""


class _Drawn(NamedTuple):
    """A config that the space can propose, and the values that decide its network."""

    config: ModelTrainingConfig
    values: Mapping[str, Any]

    def settings(self) -> str:
        """` with NAME=VALUE, ...` of what decides the network; empty for nothing."""
        settings = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return f"{' with ' if settings else ''}{settings}"


def _drawn(spec: StudySpec) -> Iterator[_Drawn]:
    """Configs whose networks or batches are unlike each other.

    Raises:
        SpecError: if no config of the space is valid.
    """
    decisive = (
        *("model_name", "model_params", "gradient_checkpointing", "patch_size"),
        *("train_batch_size", "spatial_dims"),
    )
    rng = random.Random(0)
    seen: set[str] = set()
    invalid: ValidationError | None = None
    for _ in range(DRAWS):
        drawn = spec.space.sample(rng)
        values = {k: v for k, v in drawn.items() if k.split(".")[0] in decisive}
        try:
            config = spec.trial_config(drawn)
        except ValidationError as error:
            # fields that do not fit together end a trial with that reason
            invalid = error
            continue
        if (key := repr(sorted(values.items(), key=str))) not in seen:
            seen.add(key)
            yield _Drawn(config, values)
    if invalid is not None and not seen:
        reason = value_problems(invalid)[0].message
        raise SpecError(f"{spec.source}: none of {DRAWS} configs of this space is valid: {reason}")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def build_on_meta(config: ModelTrainingConfig) -> nn.Module:
    """The network of a config, built without memory for its weights.

    Raises:
        MemoryError: if no memory could hold them.
        ValueError: if it cannot be built; MONAI's networks raise whatever their code runs into.
    """
    with torch.device("meta"):
        try:
            return build_model(config)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise MemoryError(f"can't allocate memory for the network: {error}") from error


def count_parameters(config: ModelTrainingConfig) -> int:
    """Parameters of the network of a config, see `build_on_meta`."""
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())
