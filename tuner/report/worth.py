"""The first line of a report: did the search pay?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tuner.report import numbers
from tuner.study.confirmation import confirmed_configs, open_confirmation, verdict
from tuner.study.trial_entry import TrialState, sign_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuner.study.confirmation import ConfirmedConfig
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry

QUESTION = "Did the search pay?"


def did_it_pay(study: Study) -> str:
    """What is known of the winner's gain over the default config, and what it cost.

    A confirmation answers by test cases that nothing was chosen by. Without one the validation
    scores are told, with the warning that the winner was chosen by them.
    """
    confirmation = open_confirmation(study)
    confirmed = confirmed_configs(study, confirmation)
    spent = f"{_hours(study.record.entries.values())} of training for the search"
    if confirmation is None or not confirmed:
        return f"{_by_validation(study)}; {spent}"
    trained = confirmation.record.entries.values()
    return (
        f"{_by_test_cases(confirmed, study.record.mode)}; {spent} and {_hours(trained)} for the "
        "confirmation"
    )


def _hours(entries: Iterable[TrialEntry]) -> str:
    return f"{math.fsum(entry.seconds for entry in entries) / 3600:.2g} hours"


def _by_test_cases(confirmed: Sequence[ConfirmedConfig], mode: str) -> str:
    winner = confirmed[0]
    against = winner.against_default
    if winner.candidate.is_default:
        return "No: no config that was confirmed has a better validation score than the default"
    if against is None:
        return f"Not known: {verdict(confirmed)}"
    found = against.difference
    gain = f"{numbers.difference(found.mean)} {numbers.interval(found)}"
    measured = f"{gain} on {against.cases} test cases that nothing was chosen by"
    name = winner.candidate.name
    if not against.distinguishable:
        return f"Not distinguishable: {name} against the default config {measured}"
    better = sign_of(mode) * found.mean > 0
    answer, word = ("Yes", "better") if better else ("No", "worse")
    return f"{answer}: {name} is {word} than the default config, {measured}"


def _by_validation(study: Study) -> str:
    record, spec = study.record, study.spec
    winner = record.best()
    if winner is None:
        return "Not known yet: no trial has a score"
    default = spec.default_point()
    defaults = [entry for entry in record.entries.values() if entry.values == default]
    scored = [entry for entry in defaults if entry.best(record.mode) is not None]
    if winner in scored:
        return (
            f"No: the default config (trial {winner.number}) has the best validation score, "
            f"{spec.metric} {_score(winner, record.mode)}"
        )
    of_winner = f"{spec.metric} {_score(winner, record.mode)} of trial {winner.number}"
    if not scored:
        return (
            f"Not known: {of_winner}, but no trial of the default config has a score, and nothing "
            "is confirmed"
        )
    sign = sign_of(record.mode)
    best = max(scored, key=lambda entry: sign * (entry.best(record.mode) or (0, 0.0))[1])
    if best.state is not TrialState.COMPLETED:
        return f"Not known: {of_winner}; {_so_far(best, winner)}"
    return (
        f"Not confirmed: {of_winner} against {_score(best, record.mode)} of the default config "
        f"(trial {best.number}), on the validation cases that chose the winner"
    )


def _so_far(default: TrialEntry, winner: TrialEntry) -> str:
    """What is known of a default config that has not trained to its end."""
    epochs = default.epochs
    told = f"the default config (trial {default.number}) has trained {epochs} epochs"
    own, other = default.scores[epochs], winner.scores.get(epochs, math.nan)
    if not (math.isfinite(own) and math.isfinite(other)):
        return told
    return (
        f"{told} and had {numbers.score(own)} then, where trial {winner.number} had "
        f"{numbers.score(other)}"
    )


def _score(entry: TrialEntry, mode: str) -> str:
    best = entry.best(mode)
    assert best is not None
    return numbers.score(best[1])
