"""Removes the checkpoints that a study no longer needs.

A trial that may go on keeps its best and its last checkpoint. Of those that have ended, the best
`checkpoints.keep` trials do. As many as an exported ensemble may have (`export.ensemble`), the
best trial of each network, and the default config, which what is exported is compared with, keep
at least their best one. The others lost, and theirs are removed as soon as the record says so.
Above the disk budget, ended trials lose their last checkpoints and then their best, the worst trial
first. The winner's are never removed. Checkpoints that trials of a population keep for each other
(`epoch-00010.ckpt`) are removed when every trial has come further. Of a confirmation, the best
trial of each configuration keeps its own.
"""

from __future__ import annotations

import math
from bisect import insort
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from training.storage import StoreError
from tuner.spec.grid import planned_trials
from tuner.study.checkpoint_files import (
    checkpoint_files,
    remove_checkpoint,
    remove_checkpoints,
)
from tuner.study.files import CHECKPOINT_FILES, LAST_FILE, SNAPSHOT_PATTERN
from tuner.study.pareto import pareto_front
from tuner.study.remote.place import remote_place
from tuner.trial.messages import TrialRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ray.tune.experiment import Trial
    from rich.console import Console

    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


class CheckpointKeeper(Callback):  # type: ignore[misc]
    """Removes the checkpoints of trials that lost, whenever a trial ends.

    Args:
        study: The study; with several metrics, the trials of their Pareto front keep their
            checkpoints as well.
        console: Where to say that the budget cannot be kept.
    """

    def __init__(self, study: Study, console: Console | None = None) -> None:
        self._study = study
        self._record = study.record
        self._objectives = study.spec.objectives
        self._folder = study.folder
        self._settings = study.spec.checkpoints
        self._ensemble = study.spec.export.ensemble
        self._default = study.spec.default_point()
        self._console = console
        self._warned = False
        self._kept: list[tuple[int, float, int]] = []
        self._seen: set[int] = set()
        self._remote = remote_place(self._folder) is not None
        self._removed: list[tuple[int, Sequence[str]]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; all of the state is in the record."""
        return {}

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Prune when a trial has ended, or pauses."""
        # where storage does not answer, what is left is removed at the end
        with suppress(StoreError):
            removed, self._removed = self._removed, []
            for number, names in removed:
                # its node had not sent all that it had when it was told that the trial lost
                remove_checkpoints(self._folder, number, names)
            self._prune([self._record.entries[TrialRequest.from_ray(trial.config).number]])
            self._remove_snapshots()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Prune when a trial has failed for good."""
        self.on_trial_complete(iteration, trials, trial)

    def prune(self) -> None:
        """Remove all checkpoints that are no longer needed, by the record."""
        self._prune(self._record.entries.values())
        self._remove_snapshots()

    def _prune(self, entries: Iterable[TrialEntry]) -> None:
        for entry in entries:
            if entry.state.finished and entry.number not in self._seen:
                self._seen.add(entry.number)
                self._place(entry)
        if self._settings.disk_budget is not None:
            self._keep_budget(self._settings.disk_budget)

    def _place(self, entry: TrialEntry) -> None:
        """Rank a trial that has ended among the others; the one that loses is removed."""
        standing = entry.standing(self._record.mode) if entry.state.usable else None
        if standing is None:
            self._remove(entry.number, CHECKPOINT_FILES)
            return
        insort(self._kept, (-standing[0], -standing[1], entry.number))
        # only ended trials are ranked: a place that is lost is lost for good
        losers = self._kept[self._settings.keep :]
        if not losers:
            return
        front = self._front()
        members = self._members()
        self._kept = [
            place
            for place in self._kept
            if place not in losers or place[-1] in front or place[-1] in members
        ]
        for place in losers:
            if place[-1] in front:
                continue
            self._remove(place[-1], (LAST_FILE,) if place[-1] in members else CHECKPOINT_FILES)

    def _members(self) -> set[int]:
        """Ended trials that an ensemble may want: the best ones, and the best of each network.

        And the default config, which what is exported is compared with.
        """
        ranked = [number for *_, number in self._kept]
        of_network: dict[Any, int] = {}
        for number in ranked:
            values = self._record.entries[number].values
            of_network.setdefault(values.get("model_name"), number)
        default = {n for n in ranked if self._record.entries[n].values == self._default}
        return {*ranked[: self._ensemble], *of_network.values(), *default}

    def _front(self) -> set[int]:
        """Ended trials of the Pareto front: the user may export any of them."""
        if len(self._objectives) < 2:
            return set()
        ended = [entry for entry in self._record.entries.values() if entry.state.finished]
        return {entry.number for entry in pareto_front(ended, self._objectives)}

    def _keep_budget(self, budget: int) -> None:
        spent = sum(
            file.size
            for number in self._record.entries
            for file in checkpoint_files(
                self._folder, number, (*CHECKPOINT_FILES, SNAPSHOT_PATTERN)
            )
        )
        # the best that has ended comes first: a better one that still runs may fail yet
        losers = [number for *_, number in reversed(self._kept[1:])]
        for names in ((LAST_FILE,), CHECKPOINT_FILES):
            for number in losers:
                if spent <= budget:
                    return
                spent -= self._remove(number, names)
        if spent > budget and not self._warned and self._console is not None:
            self._warned = True
            self._console.print(
                f"checkpoints take {spent / 1e9:.2f} GB, above the disk budget of "
                f"{budget / 1e9:.2f} GB: they are those of the winner and of trials that may go on",
                markup=False,
            )

    def _remove_snapshots(self) -> None:
        """Remove snapshots of epochs that every trial has passed."""
        spec = self._study.spec
        if not spec.population:
            return
        entries = self._record.entries
        going = [entry.epochs for entry in entries.values() if not entry.state.finished]
        # a trial that is about to copy one has not trained on yet
        needed = min(going, default=math.inf) if len(entries) >= planned_trials(spec) else 0
        for number in entries:
            for file in checkpoint_files(self._folder, number, (SNAPSHOT_PATTERN,)):
                if int(file.path.name.split(".")[0].rpartition("-")[2]) < needed:
                    remove_checkpoint(file)

    def _remove(self, number: int, names: Sequence[str]) -> int:
        if self._remote:
            self._removed.append((number, names))
        return remove_checkpoints(self._folder, number, names)
