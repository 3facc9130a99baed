"""Checks that every searcher must pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from tuner.search.searchers import SEARCHERS, Proposal, SearchView
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

SPACE: dict[str, Any] = {
    "learning_rate": {"loguniform": [1e-5, 1e-2]},
    "optimizer": {"choice": ["adamw", "sgd"]},
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
    "nesterov": {"choice": [True, False], "when": {"optimizer": "sgd"}},
    "scheduler": {"choice": ["none", "step"]},
    "step_size": {"randint": [2, 5], "when": {"scheduler": "step"}},
    "foreground_fraction": {"quniform": [0.3, 0.9, 0.2]},
}
"""A space with every kind of domain, and with conditions."""


def quality(values: Mapping[str, Any]) -> float:
    """A score of a configuration: best with sgd, a rate of 1e-3 and a momentum of 0.9."""
    found = -abs(math.log10(values["learning_rate"]) + 3)
    if values["optimizer"] == "sgd":
        found += 0.5 - 5 * abs(values["momentum"] - 0.9)
    return found


def check_proposals_lie_in_the_space(searcher: str) -> None:
    """Proposals have valid values for exactly the fields that take part, and differ."""
    record = new_record()
    for _ in range(40):
        values = _propose(searcher, record)
        active: dict[str, Any] = {}
        for field in record.space.domains:
            takes_part = record.space.active(field, active)
            assert (field in values) == takes_part, (
                f"{searcher} proposed {values}, in which {field} "
                + ("is missing" if takes_part else "takes no part")
            )
            if takes_part:
                active[field] = values[field]
        assert set(values) == set(active), f"{searcher} proposed other fields: {sorted(values)}"
        _end(record, values)
    different = {tuple(map(str, entry.values.values())) for entry in record.entries.values()}
    assert len(different) > 20, f"{searcher} proposed {len(different)} configurations in 40 trials"


def check_proposals_depend_on_the_record_alone(searcher: str) -> None:
    """The same record leads to the same proposal: a searcher keeps no other state."""
    record, again = new_record(), new_record()
    for _ in range(24):
        one, other = _propose(searcher, record), _propose(searcher, again)
        assert one == other, (
            f"{searcher} proposed {one} and {other} for the same record: it must draw by "
            "`view.trial_seed()` or `view.rng()`, and keep nothing between proposals"
        )
        _end(record, one)
        # as in a study that was resumed: another record, with the same trials
        again = new_record()
        for entry in record.entries.values():
            again.propose(entry.values, searcher, entry.generation)
            _close(again, entry.number, entry.values)


def check_seeds_share_no_trial(searcher: str) -> None:
    """Studies of neighbouring seeds try different configurations."""
    drawn = []
    for seed in (0, 1):
        record, found = new_record(), set()
        for _ in range(8):
            values = _propose(searcher, record, seed)
            found.add(values["learning_rate"])
            _end(record, values)
        drawn.append(found)
    both = drawn[0] & drawn[1]
    assert not both, f"{searcher} proposed the rates {sorted(both)} with seeds 0 and 1"


def check_undefined_scores_are_no_harm(searcher: str) -> None:
    """Proposals are valid beside trials whose scores are nan at some epochs, or at all."""
    record = new_record()
    rng = np.random.default_rng(0)
    for _ in range(24):
        _propose(searcher, record)
        number = len(record.entries) - 1
        for epoch in range(1, 10):
            defined = rng.uniform() < 0.5 and number % 4
            score = float(rng.uniform()) if defined else math.nan
            record.report(number, epoch, score, {"val_dice": score}, 1.0)
        record.finish(number, TrialState.COMPLETED, "done")


SEARCHER_CHECKS: tuple[Callable[[str], None], ...] = (
    check_proposals_lie_in_the_space,
    check_proposals_depend_on_the_record_alone,
    check_seeds_share_no_trial,
    check_undefined_scores_are_no_harm,
)
"""All checks of searchers."""


def new_record() -> StudyRecord:
    """The record, in memory, of a study of `SPACE` that has no trial."""
    return StudyRecord(Path("memory"), _spec().space, "max", InMemoryStorage())


def _spec() -> StudySpec:
    return StudySpec.from_dict({"config": {"max_epochs": 9}, "space": SPACE})


def _propose(searcher: str, record: StudyRecord, seed: int = 0) -> dict[str, Any]:
    """The next proposal of a searcher, opened as a running trial."""
    spec = _spec()
    rungs = (*spec.rungs(), spec.max_epochs)
    view = SearchView(record, len(record.entries), seed, spec.default_point(), rungs)
    proposal = SEARCHERS.resolve(searcher)(view)
    assert isinstance(proposal, Proposal), f"{searcher} gave {proposal!r}, which is not a Proposal"
    values = dict(proposal.values)
    for field, value in values.items():
        domain = record.space.domains.get(field)
        assert domain is not None, f"{searcher} proposed {field}={value!r}, which does not vary"
        assert domain.contains(value), (
            f"{searcher} proposed {field}={value!r}, outside {domain.describe()}"
        )
    record.propose(values, searcher, proposal.generation)
    return values


def _end(record: StudyRecord, values: Mapping[str, Any]) -> None:
    """End the newest trial, in one of many ways."""
    _close(record, len(record.entries) - 1, values)


def _close(record: StudyRecord, number: int, values: Mapping[str, Any]) -> None:
    if number % 7 == 3:
        record.finish(number, TrialState.DIVERGED, "loss is nan")
    elif number % 7 == 5:
        record.finish(number, TrialState.FAILED, "no fault of its own")
    elif number % 7 != 6:
        record.report(number, 1, quality(values), {}, 1.0)
        record.finish(number, TrialState.STOPPED, "weak")
