"""Confirming a search: the best trials and the default config, trained again with other seeds.

The trials of a confirmation are kept in a record of their own, in the folder `confirm` of the
study, so that the searcher and the rungs never see them. Each is trained to the end, and judged
on the test cases, which nothing was selected by. The winner is the config with the best mean
validation score over its seeds; its test scores say how good it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from training.durable_write import write_durably
from tuner.spec.grid import DEFAULT
from tuner.study.budget import spent_budget
from tuner.study.files import CONFIRM_FOLDER, CONFIRM_PLAN, DATABASE
from tuner.study.record import StudyRecord
from tuner.study.statistics import Comparison, Interval, compare, interval
from tuner.study.study import Study
from tuner.study.trial_entry import CASES, GRID, TrialEntry, ranked, sign_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from tuner.spec.study_spec import StudySpec

SEED = "seed"
"""Note of a confirmation trial: the seed that it trains with."""

PREPROCESSED = "preprocessed"
"""Grid of trials without a note of it, which earlier versions recorded."""

LEAST_SEEDS = 2
"""With fewer there is no interval over seeds."""

MARGIN = 1.15
"""Time that is planned for a training, in times of what it took in the search: test cases are
predicted, and workers started."""

COMPARABLE = ({"file"}, {PREPROCESSED})
"""Grids of two configs whose scores can be compared."""


@dataclass(frozen=True)
class Candidate:
    """A config that is confirmed.

    Attributes:
        name: What it is: `trial 7`, or `default`.
        values: Its values of the fields that vary.
        trial: Number of the trial of the search that has them, None for none.
        is_default: Whether it is the default config.
    """

    name: str
    values: Mapping[str, Any]
    trial: int | None
    is_default: bool


def open_confirmation(study: Study) -> Study | None:
    """The confirmation of a study, a study of its own; None if it has not begun."""
    # reading makes no record: a folder of that name may be the user's
    there = (study.folder / CONFIRM_FOLDER / DATABASE).is_file()
    return begin_confirmation(study) if there else None


def begin_confirmation(study: Study) -> Study:
    """The confirmation of a study, whose folder is there; its record is made if it is not.

    Its spec has the number of seeds that was planned, where `confirm: auto` left it open.
    """
    folder, spec = study.folder / CONFIRM_FOLDER, study.spec
    if spec.confirm is not None and (folder / CONFIRM_PLAN).is_file():
        plan = json.loads((folder / CONFIRM_PLAN).read_text())
        confirm = spec.confirm.model_copy(update={"seeds": plan["seeds"]})
        spec = spec.model_copy(update={"confirm": confirm})
    return Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))


def plan_confirmation(study: Study, seconds: float, workers: int) -> str | None:
    """Plan how many seeds a confirmation has that only takes the time that is left.

    The plan is kept: a confirmation that was cut off goes on with it.

    Args:
        study: The study, which has searched.
        seconds: Time that is left; infinite without a limit.
        workers: Trials at once.

    Returns:
        Why there is no confirmation, None where there is one.
    """
    assert study.spec.confirm is not None
    plan = study.folder / CONFIRM_FOLDER / CONFIRM_PLAN
    if not study.spec.confirm.auto or plan.is_file():
        return None
    chosen = candidates(study)
    if all(candidate.is_default for candidate in chosen):
        return "not confirmed: the default config has the best score, there is nothing to compare"
    cost = max((_training_seconds(study, candidate) for candidate in chosen), default=0.0)

    def needed(count: int) -> float:
        return MARGIN * cost * math.ceil(count * len(chosen) / workers)

    possible = range(study.spec.confirm.seeds, LEAST_SEEDS - 1, -1)
    fitting = next((count for count in possible if needed(count) <= seconds), None)
    if fitting is None:
        return (
            f"not confirmed: {len(chosen)} configs with {LEAST_SEEDS} seeds each would take about "
            f"{needed(LEAST_SEEDS) / 60:.0f} minutes, and {max(0.0, seconds) / 60:.0f} are left of "
            "the time budget"
        )
    plan.parent.mkdir(exist_ok=True)
    write_durably(plan, json.dumps({"seeds": fitting}))
    return None


def _training_seconds(study: Study, candidate: Candidate) -> float:
    """Seconds of a whole training: those of the trial's epochs, or else of the slowest trial's."""
    entries = study.record.entries
    same = [entries[candidate.trial]] if candidate.trial is not None else []
    same = same or [entry for entry in entries.values() if entry.values == candidate.values]
    trained = [entry for entry in same or entries.values() if entry.epochs]
    trained = trained or [entry for entry in entries.values() if entry.epochs]
    return study.spec.max_epochs * max(entry.seconds / entry.epochs for entry in trained)


def candidates(study: Study) -> list[Candidate]:
    """The best trials of the search, and the default config."""
    record, spec = study.record, study.spec
    assert spec.confirm is not None
    default = spec.default_point()
    chosen: list[Candidate] = []
    for entry in ranked(record.entries.values(), record.mode):
        number, values = entry.number, entry.values
        if len(chosen) < spec.confirm.top and all(values != other.values for other in chosen):
            chosen.append(Candidate(f"trial {number}", values, number, values == default))
    if chosen and not any(candidate.is_default for candidate in chosen):
        chosen.append(Candidate(DEFAULT, default, None, is_default=True))
    return chosen


def seeds(spec: StudySpec) -> list[int]:
    """The seeds that each candidate is trained with: all of them differ from the search's own."""
    assert spec.confirm is not None
    first = spec.base_config().seed + 1
    return [(first + offset) % 2**32 for offset in range(spec.confirm.seeds)]


def missing(confirmation: Study, chosen: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """Candidates and seeds that no trial of the confirmation has yet."""
    entries = confirmation.record.entries.values()
    there = [(entry.values, entry.notes.get(SEED)) for entry in entries]
    return [
        (candidate, seed)
        for seed in seeds(confirmation.spec)
        for candidate in chosen
        if (candidate.values, seed) not in there
    ]


def is_finished(study: Study) -> bool:
    """Whether there is nothing left to do: to search, or to confirm."""
    searched = study.searched or spent_budget(study) is not None
    return searched and is_confirmed(study, open_confirmation(study))


def is_confirmed(study: Study, confirmation: Study | None) -> bool:
    """Whether there is nothing (more) to confirm."""
    if study.spec.confirm is None:
        return True
    chosen = candidates(study)
    if confirmation is None:
        # by itself it begins when the search ends, with time left, or not at all
        return study.spec.confirm.auto or not chosen
    return not confirmation.record.unfinished() and not missing(confirmation, chosen)


@dataclass(frozen=True)
class ConfirmedConfig:
    """Result of the confirmation for one candidate.

    Attributes:
        candidate: The config.
        trials: Its confirmation trials that were judged, the best validation score first.
        tried: How many of its confirmation trials have ended.
        seeds: With how many seeds it is trained.
        validation: Mean over seeds of the best validation score.
        cases: Test cases that at least one of its trials has a score of, by name.
        scores: Their scores, a row a seed; NaN where one is not defined.
        test: Their mean, with its interval.
        grid: What its scores were measured against: `file`, `preprocessed`, or `mixed`, where
            the files of a test case were not there for all of its trials.
        against_default: How it compares with the default config; None for the default itself,
            or where that was not judged on the same grid.
    """

    candidate: Candidate
    trials: list[TrialEntry]
    tried: int
    seeds: int
    validation: float
    cases: list[str]
    scores: Float[ndarray, "seeds cases"]
    test: Interval
    grid: str
    against_default: Comparison | None = None


def confirmed_configs(study: Study, confirmation: Study | None) -> list[ConfirmedConfig]:
    """Results of the confirmation so far, the winner first."""
    if study.spec.confirm is None or confirmation is None:
        return []
    found = [_judged(candidate, confirmation) for candidate in candidates(study)]
    known = [config for config in found if config is not None]
    default = next((config for config in known if config.candidate.is_default), None)
    compared = [_compared(config, default) for config in known]
    sign = -sign_of(study.record.mode)
    return sorted(compared, key=lambda config: sign * config.validation)


def verdict(configs: Sequence[ConfirmedConfig]) -> str:
    """One sentence: how the winner compares with the default config."""
    if not configs:
        return "nothing is confirmed yet"
    winner = configs[0]
    if winner.candidate.is_default:
        return "the default config wins: the search found none with a better validation score"
    against = winner.against_default
    if against is None and any(config.candidate.is_default for config in configs):
        return (
            f"{winner.candidate.name} wins; it is not compared with the default config, whose "
            "test cases are other ones, or were measured on another grid (see test_grid)"
        )
    if against is None:
        return f"{winner.candidate.name} wins; the default config could not be judged"
    difference = against.difference
    figures = (
        f"difference on {against.cases} test cases {difference.mean:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}], p = {against.p_value:.2g}"
    )
    if not against.distinguishable:
        return (
            f"{winner.candidate.name} wins by validation, but is not distinguishable from the "
            f"default config: {figures}"
        )
    return f"{winner.candidate.name} wins and differs from the default config: {figures}"


def _judged(candidate: Candidate, confirmed: Study) -> ConfirmedConfig | None:
    confirmation = confirmed.record
    mine = [entry for entry in confirmation.entries.values() if entry.values == candidate.values]
    scored = {
        entry.number: best[1]
        for entry in mine
        if entry.notes.get(CASES) and (best := entry.best(confirmation.mode)) is not None
    }
    sign = -sign_of(confirmation.mode)
    trials = [confirmation.entries[n] for n in sorted(scored, key=lambda n: sign * scored[n])]
    if not trials:
        return None
    cases = sorted(set().union(*(entry.notes[CASES] for entry in trials)))
    scores = np.array(
        [[entry.notes[CASES].get(case, np.nan) for case in cases] for entry in trials]
    )
    return ConfirmedConfig(
        candidate,
        trials,
        sum(entry.state.finished for entry in mine),
        len(seeds(confirmed.spec)),
        float(np.mean(list(scored.values()))),
        cases,
        scores,
        interval(scores),
        _grid(trials),
    )


def _grid(trials: Sequence[TrialEntry]) -> str:
    grids = {entry.notes.get(GRID, PREPROCESSED) for entry in trials}
    return grids.pop() if len(grids) == 1 else "mixed"


def _compared(config: ConfirmedConfig, default: ConfirmedConfig | None) -> ConfirmedConfig:
    if default is None or config is default or {config.grid, default.grid} not in COMPARABLE:
        return config
    shared = sorted(set(config.cases) & set(default.cases))
    if not shared:
        return config
    one, other = (
        judged.scores[:, [judged.cases.index(case) for case in shared]]
        for judged in (config, default)
    )
    return replace(config, against_default=compare(one, other))
