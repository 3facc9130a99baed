"""Searchers that ask a sampler of Optuna, which is shown the study's trials on one scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from tuner.search.searchers.ranks import ranks_by_rung
from tuner.search.searchers.view import Proposal
from tuner.spec.space import stored_values
from tuner.study.distributions import distribution_of
from tuner.study.trial_entry import VIOLATION, sign_of

if TYPE_CHECKING:
    from tuner.search.searchers.view import SearchView
    from tuner.spec.domain import Domain
    from tuner.study.trial_entry import TrialEntry

GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler keeps the generation of a trial."""


def tpe(view: SearchView) -> Proposal:
    """Multivariate tree-structured Parzen estimator (Bergstra et al., 2011).

    Conditional fields are modelled by groups. Trials are ranked by the rung that they reached
    and their score there; running trials without a score count as bad, so that concurrent
    trials spread out.
    """
    with warnings.catch_warnings():
        # grouping is Optuna's only way to model conditional fields together
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = TPESampler(
            seed=view.trial_seed(), multivariate=True, group=True, constant_liar=True
        )
    return _ask(view, sampler)


def random(view: SearchView) -> Proposal:
    """Independent random search (Bergstra and Bengio, 2012)."""
    return _ask(view, RandomSampler(seed=view.trial_seed()), history=False)


def qmc(view: SearchView) -> Proposal:
    """A scrambled Sobol sequence: random search that fills the space evenly."""
    from scipy.stats import qmc as sequences

    sobol = sequences.Sobol(view.encoding.size, scramble=True, rng=view.seed)
    if view.number:
        sobol.fast_forward(view.number)
    return Proposal(view.encoding.decode(sobol.random(1)[0]))


def nsga2(view: SearchView) -> Proposal:
    """Genetic algorithm with non-dominated sorting (Deb et al., 2002), 16 trials a generation.

    It seeks the Pareto front of all metrics of the study.
    """
    sampler = NSGAIISampler(seed=view.trial_seed(), population_size=16)
    return _ask(view, sampler, further_metrics=view.further_metrics)


def _ask(
    view: SearchView,
    sampler: BaseSampler,
    *,
    history: bool = True,
    further_metrics: Sequence[tuple[str, str]] = (),
) -> Proposal:
    """A point from a sampler that is shown the study's trials.

    Args:
        view: The study.
        sampler: The sampler.
        history: Whether it is shown the trials at all.
        further_metrics: Metrics that it optimises beside the study's own, with their modes.
    """
    study = optuna.create_study(
        storage=InMemoryStorage(),
        sampler=sampler,
        directions=["maximize"] * (1 + len(further_metrics)),
    )
    if history:
        copy_trials(view, study, further_metrics)
    trial = study.ask()
    values: dict[str, Any] = {}
    for name, domain in view.space.items():
        if view.space.active(name, values):
            values[name] = suggest(trial, name, domain)
    drawn = study.get_trials(deepcopy=False)[-1]
    return Proposal(values, int(drawn.system_attrs.get(GENERATION, 0)))


def copy_trials(
    view: SearchView, study: optuna.Study, further_metrics: Sequence[tuple[str, str]]
) -> None:
    """Put the trials of the record into a study, in the order of their numbers."""
    ranks = ranks_by_rung(view)
    entries = view.record.entries
    further = [_signed_values([entries[n] for n in ranks], *metric) for metric in further_metrics]
    for number, entry in view.record.entries.items():
        rank = ranks.get(number)
        if rank is None and entry.state.finished:
            # it failed through no fault of its configuration
            continue
        study.add_trial(
            create_trial(
                state=OptunaState.RUNNING if rank is None else OptunaState.COMPLETE,
                values=None if rank is None else [rank, *(known[number] for known in further)],
                params=stored_values(view.space, entry.values),
                distributions={
                    name: distribution_of(view.space.domains[name]) for name in entry.values
                },
                system_attrs={GENERATION: entry.generation},
                # a trial without a result has no say yet on what is feasible
                constraints=None if rank is None else {"limits": entry.notes.get(VIOLATION, 0.0)},
            )
        )


def _signed_values(entries: Sequence[TrialEntry], metric: str, mode: str) -> dict[int, float]:
    """A metric of each trial's best epoch, greater is better; the worst where it is missing."""
    sign = sign_of(mode)
    values = {entry.number: sign * entry.metrics.get(metric, math.nan) for entry in entries}
    worst = min((value for value in values.values() if math.isfinite(value)), default=0.0)
    return {number: value if math.isfinite(value) else worst for number, value in values.items()}


def suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    """Draw a value of `domain` from the trial's sampler."""
    given = domain.distribution
    if given.choices is not None:
        return domain.restored(trial.suggest_categorical(name, given.choices))
    if given.whole:
        step = int(given.step or 1)
        whole = trial.suggest_int(name, int(given.low), int(given.high), step=step, log=given.log)
        return domain.restored(whole)
    number = trial.suggest_float(name, given.low, given.high, step=given.step, log=given.log)
    return domain.restored(number)
