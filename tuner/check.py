"""What `tune check` does: print the space and what its search may cost, build its networks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ByteSize, ValidationError
from rich.table import Table

from tuner.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from training.config import ModelTrainingConfig
    from tuner.spec import StudySpec

NETWORKS = 12
"""Networks of a space that are built at most; a large one takes half a second."""

DRAWS = 300


def check_data(spec: StudySpec) -> tuple[StudySpec, list[str]]:
    """Look at the data folder of a spec and at the headers of its files; no voxel is read.

    Args:
        spec: A valid spec.

    Returns:
        The spec with what the data decide, and lines about the data. Where the folder is not
        there, the spec as it is and a line that says so.

    Raises:
        training.data.DatasetError: for all that is wrong with the folder, or contradicts it.
        StudyError: if a value that varies contradicts the data.
    """
    from training.data import PHANTOM, DatasetError, read_layout
    from training.data.header import spacing_text
    from training.data.header_survey import median_spacing, survey_headers
    from tuner.dataset import complete_spec, mirroring_line, shown_warnings

    folder = spec.base_config().data_dir
    if str(folder) == PHANTOM:
        return spec, [f"data      {PHANTOM}: the embedded CT of a liver with tumours"]
    if not folder.exists() and not folder.is_symlink():
        return spec, [f"data      {folder} is not there: nothing is checked against it"]
    dataset = read_layout(folder)
    completed = complete_spec(spec, dataset)
    survey = survey_headers(dataset)
    if survey.problems:
        raise DatasetError.of(folder, list(survey.problems.values()))
    spacing = spacing_text(median_spacing(list(survey.spacings.values())))
    shape = np.median(list(survey.shapes.values()), axis=0)
    lines = [
        f"data      {dataset.name}: {len(dataset.cases)} cases of {', '.join(dataset.channels)}; "
        f"labels {', '.join(dataset.labels)}",
        f"          median {' x '.join(f'{size:.0f}' for size in shape)} voxels of {spacing} mm "
        "(superior, anterior, right)",
        *shown_warnings([*dataset.warnings, *survey.warnings]),
        mirroring_line(completed, dataset.labels),
    ]
    return completed, [line for line in lines if line]


@dataclass(frozen=True)
class Networks:
    """What came out when networks of a space were built.

    Attributes:
        costs: Parameters of each different one, and bytes that a step of its training takes.
        too_large: How many of them break a constraint of the study.
    """

    costs: Sequence[Cost]
    too_large: int

    def describe(self) -> list[str]:
        """Lines for a person to read."""
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
        return lines


class Cost(NamedTuple):
    """What a network takes: parameters, and bytes of memory in training, at least."""

    parameters: int
    bytes: int

    @classmethod
    def of(cls, config: ModelTrainingConfig) -> Cost:
        """The cost of the network of a config, which is not computed with."""
        from training.models.footprint import training_bytes
        from tuner.constraints import count_parameters

        return cls(count_parameters(config), training_bytes(config))


def _shown(size: int) -> str:
    return ByteSize(size).human_readable(decimal=True)


def check_networks(spec: StudySpec) -> Networks:
    """Build networks that the space can propose, as a trial does.

    Args:
        spec: A valid spec.

    Raises:
        SpecError: for the first one that cannot be built, with its settings; or if none was
            found that keeps to the constraints.
    """
    from training.models import build_model

    costs = []
    for values, config in islice(_networks(spec), NETWORKS):
        try:
            build_model(config)
        except Exception as error:
            # MONAI's constructors refuse with whatever their code runs into
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SpecError(
                f"{spec.source}: the network {config.model_name} cannot be built"
                f"{' with ' if values else ''}{_settings(values)}: {reason}"
            ) from error
        costs.append(Cost.of(config))
    too_large = [cost for cost in costs if _above(cost, spec)]
    if costs and len(too_large) == len(costs):
        _check_that_one_fits(spec)
    return Networks(costs, len(too_large))


def _check_that_one_fits(spec: StudySpec) -> None:
    """Look among more networks, which are counted and not built, for one that is small enough."""
    counted = []
    for values, config in _networks(spec):
        counted.append((Cost.of(config), config.model_name, _settings(values)))
        if not _above(counted[-1][0], spec):
            return
    cost, name, settings = min(counted)
    raise SpecError(
        f"{spec.source}: none of the {len(counted)} networks of this space that were tried keeps "
        f"to the constraints: the smallest, {name}{' with ' if settings else ''}{settings}, has "
        f"{cost.parameters:,} parameters, {_above(cost, spec)}; every trial would end as "
        "infeasible: raise the limit, or let smaller networks into the space"
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


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _networks(spec: StudySpec) -> Iterator[tuple[dict[str, Any], ModelTrainingConfig]]:
    """Configs whose networks or batches are unlike each other, and what decides those."""
    decisive = (
        *("model_name", "model_params", "gradient_checkpointing", "patch_size"),
        "train_batch_size",
    )
    rng = random.Random(0)
    seen: set[str] = set()
    for _ in range(DRAWS):
        drawn = spec.space.sample(rng)
        values = {k: v for k, v in drawn.items() if k.split(".")[0] in decisive}
        try:
            config = spec.trial_config(drawn)
        except ValidationError:
            # fields that do not fit together end a trial with that reason
            continue
        if (key := repr(sorted(values.items(), key=str))) not in seen:
            seen.add(key)
            yield values, config


def print_spec(console: Console, spec: StudySpec) -> None:
    """Print the space and the budget of a valid spec."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("field", "domain", "when"):
        table.add_column(column)
    for name, domain, condition in spec.space.describe():
        table.add_row(name, domain, condition)
    aims = ", ".join(f"{mode} {name}" for name, mode in spec.objectives)
    console.print(f"{spec.source} is valid: {aims}", markup=False)
    console.print()
    console.print(table)
    console.print()
    trials = _planned(spec)
    full = trials * spec.max_epochs
    console.print(
        f"search    {spec.search.searcher}, {spec.search.num_trials} trials, "
        f"seed {spec.search.seed}",
        markup=False,
    )
    for line in (*_grid(spec), *_goals(spec)):
        console.print(line, markup=False)
    if spec.population:
        console.print(
            f"scheduler {spec.scheduler}: compares every {spec.pbt.perturbation_interval} epochs; "
            f"about {spec.pbt.quantile_fraction:.0%} of the trials take over a better one"
        )
    rungs = ", ".join(str(rung) for rung in spec.rungs())
    if not rungs:
        most = "at most " if spec.scheduler == "median" else ""
        console.print(f"budget    {most}{full} epochs: every trial trains {most}{spec.max_epochs}")
        return
    console.print(
        f"scheduler {spec.scheduler}: compares at epochs {rungs}; about 1 in "
        f"{spec.rung_settings.reduction_factor} goes on"
    )
    expected = spec.expected_epochs() * trials / spec.search.num_trials
    console.print(
        f"budget    about {expected:.0f} epochs; training every trial to epoch "
        f"{spec.max_epochs} would take {full} ({full / expected:.1f} times as many)"
    )


def _planned(spec: StudySpec) -> int:
    """Trials of the study; those of a grid are counted with Ray's searchers, which load slowly."""
    if spec.search.searcher != "grid":
        return spec.search.num_trials
    from tuner.searchers import planned_trials

    return planned_trials(spec)


def _grid(spec: StudySpec) -> Iterator[str]:
    """A line about the size of a grid."""
    if spec.search.searcher != "grid":
        return
    from tuner.searchers.grid import grid_points, trials_of_grid

    points, trials = len(grid_points(spec.space)), trials_of_grid(spec)
    beside = f", {trials} trials with those to try first" if trials > points else ""
    if trials > spec.search.num_trials:
        end = f"num_trials={spec.search.num_trials} ends the search before all are tried"
    else:
        end = f"the search ends when all are tried, after {trials} trials"
    yield f"grid      {points} points{beside}: {end}"


def _goals(spec: StudySpec) -> Iterator[str]:
    """Lines about what a study aims at and may spend, where the file says something of it."""
    search, limits = spec.search, spec.constraints
    budgets = [
        f"{search.epoch_budget} epochs" if search.epoch_budget is not None else "",
        f"{search.gpu_hours:g} GPU-hours" if search.gpu_hours is not None else "",
        f"{search.time_budget:g} s a run" if search.time_budget is not None else "",
    ]
    if any(budgets):
        yield f"at most   {', '.join(budget for budget in budgets if budget)}"
    if search.warm_start:
        yield f"learns    from the studies {', '.join(search.warm_start)}"
    kept = [
        f"{limits.max_parameters:,} parameters" if limits.max_parameters is not None else "",
        f"{limits.max_memory.human_readable(decimal=True)} of memory"
        if limits.max_memory is not None
        else "",
    ]
    if any(kept):
        yield f"networks  of at most {', '.join(limit for limit in kept if limit)}"
    if spec.confirm is not None:
        most = (spec.confirm.top + 1) * spec.confirm.seeds
        yield (
            f"confirm   the best {spec.confirm.top} and the default config, "
            f"{spec.confirm.seeds} seeds each: after the search, up to {most * spec.max_epochs} "
            "epochs beside its budget"
        )
