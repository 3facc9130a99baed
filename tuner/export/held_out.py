"""Scores of what is exported on the test cases, and its gain over the default config there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from training.bundle.case_scores import (
    NOTHING,
    Grid,
    PredictedCase,
    mean_scores,
    on_file_grid,
    on_preprocessed_grid,
    scores_by_case,
    scoring_device,
)
from training.bundle.member import Member, load_checkpoint
from training.errors import BundleError, DatasetError
from training.registry import is_plugin
from tuner.export.candidates import Candidate, candidate_of
from tuner.export.choice import gain_document, gain_text
from tuner.export.data import WAY_OUT, ExportData
from tuner.study.confirmation import confirmed_configs, open_confirmation
from tuner.study.statistics import Interval, paired_interval
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from training.bundle.postprocessing import Postprocessing
    from tuner.study.study import Study

BY_CASE = ("dice", "iou", "nsd")
"""Metrics that each case has a score of, beside the user's own."""


@dataclass(frozen=True)
class HeldOutScores:
    """Scores on the cases that no trial has seen.

    Attributes:
        metrics: Means by name, with the prefix of their grid; {} without such cases.
        grid: The grid that they were measured on, None without.
        by_case: The study's metric of each case; {} where a case has no score of it.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    grid: Grid | None = None
    by_case: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DefaultGain:
    """Gain of what is exported over the default config, on test cases.

    Attributes:
        metric: The study's metric.
        difference: Mean of the paired differences, and their interval over cases.
        cases: How many cases.
        default: The default config's training, in words.
    """

    metric: str
    difference: Interval
    cases: int
    default: str

    def describe(self) -> str:
        """The gain in words."""
        return (
            f"against the default config ({self.default}): {self.metric} "
            f"{gain_text(self.difference)} on {self.cases} test cases, which nothing was chosen by"
        )

    def to_json(self) -> dict[str, Any]:
        """As `bundle.json` has it."""
        gain = gain_document(self.difference)
        return {"metric": self.metric, **gain, "cases": self.cases, "default": self.default}


def test_prefix(grid: Grid) -> str:
    """How the names of test metrics begin: `test_` is kept for those of the label files."""
    return "test_" if grid == "file" else f"{grid}_test_"


def score_test_cases(
    data: ExportData,
    members: Sequence[Member],
    metric: str,
    postprocessing: Postprocessing = NOTHING,
) -> HeldOutScores:
    """Score what is exported on the test cases.

    Args:
        data: The study's data; it notes what could not be done as usual.
        members: The networks.
        metric: The study's metric.
        postprocessing: What is done to label maps.
    """
    if not data.splits["test"]:
        return HeldOutScores()
    told = data.note
    files = data.files("test")
    if files:
        try:
            cases = on_file_grid(members, data.preprocessing, files, told, postprocessing)
            return _scored(members, cases, metric, "file")
        except (DatasetError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            told(f"a test case cannot be measured against its label file: {reason}")
    if data.dataset is not None:
        cases = on_preprocessed_grid(members, data.dataset, "test", told, postprocessing)
        told(
            "the files of the test cases cannot all be used: test metrics are measured on the "
            "preprocessed grid (preprocessed_test_*), which leaves out what resampling loses; "
            f"{WAY_OUT}"
        )
        return _scored(members, cases, metric, "preprocessed")
    told(
        "there are no test metrics: neither the files of the test cases nor their cache are "
        f"there; {WAY_OUT}"
    )
    return HeldOutScores()


def _scored(
    members: Sequence[Member], cases: Iterable[PredictedCase], metric: str, grid: Grid
) -> HeldOutScores:
    module = members[0].module
    name = metric.removeprefix("val_")
    has_cases = is_plugin(name) or name.partition("_")[0] in BY_CASE
    by_case: dict[str, float] = {}

    def noted() -> Iterator[PredictedCase]:
        for case in cases:
            if has_cases:
                by_case.update(scores_by_case(module, [case], name))
            yield case

    means = mean_scores(module, noted())
    named = {f"{test_prefix(grid)}{score}": value for score, value in means.items()}
    return HeldOutScores(named, grid, by_case)


def gain_over_default(
    study: Study,
    data: ExportData,
    exported: HeldOutScores,
    winner: Candidate,
    provenance: dict[str, Any],
) -> DefaultGain | None:
    """Compare what is exported with the default config on the test cases, paired by case.

    The default config is that of the confirmation, with the mean over its seeds; or without one
    its trial in the search, which is predicted here. It has neither mirroring nor postprocessing.

    Returns:
        None where it was not trained, is exported itself, or has no scores of the same cases.
    """
    found = _confirmed_default(study, exported.grid)
    if found is None and exported.by_case:
        found = _searched_default(study, data, winner, provenance, exported.grid)
    if found is None:
        return None
    name, scores = found
    shared = sorted(set(scores) & set(exported.by_case))
    if not shared:
        return None
    differences = np.array([exported.by_case[case] - scores[case] for case in shared])
    metric = study.spec.metric.replace("val_", "test_", 1)
    return DefaultGain(metric, paired_interval(differences), len(shared), name)


def _confirmed_default(study: Study, grid: Grid | None) -> tuple[str, Mapping[str, float]] | None:
    confirmation = open_confirmation(study)
    for config in confirmed_configs(study, confirmation):
        if config.candidate.is_default and config.grid == grid:
            by_case = dict(zip(config.cases, np.nanmean(config.scores, axis=0), strict=True))
            return f"confirmed with {len(config.trials)} seeds", by_case
    return None


def _searched_default(
    study: Study,
    data: ExportData,
    winner: Candidate,
    provenance: dict[str, Any],
    grid: Grid | None,
) -> tuple[str, Mapping[str, float]] | None:
    default = study.spec.default_point()
    for entry in study.record.entries.values():
        # trained for less, it would be compared with what it might have become
        if entry.values != default or entry.state is not TrialState.COMPLETED:
            continue
        name = f"trial {entry.number}, {entry.epochs} epochs"
        candidate = candidate_of(name, entry, study, study.folder, provenance)
        if candidate is None or candidate.checkpoint == winner.checkpoint:
            continue
        device = scoring_device(candidate.config)
        try:
            module = load_checkpoint(candidate.checkpoint, candidate.config)
        except BundleError:
            continue
        member = Member(candidate.config, module, device=device)
        scores = score_test_cases(data, [member], study.spec.metric)
        return (name, scores.by_case) if scores.grid == grid else None
    return None
