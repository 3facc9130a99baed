"""The terminal output of a study that runs: one live picture, or plain lines."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from tuner.report.states import STYLES
from tuner.report.tables import best_line, duration, short_values, state_counts
from tuner.spec.grid import planned_trials
from tuner.study.budget import budget_lines
from tuner.study.trial_entry import TrialEntry, TrialState, epochs_spent

if TYPE_CHECKING:
    from tuner.spec.settings import TrialResources
    from tuner.study.study import Study


class StudyView:
    """Shows a study while it runs: one live picture, or plain lines outside a terminal.

    Args:
        study: The study.
        resources: Share of a trial.
        dashboard: Address of the Ray dashboard, if there is one.
        console: Where to show it; nowhere if None.
    """

    def __init__(
        self,
        study: Study,
        resources: TrialResources,
        dashboard: str | None,
        console: Console | None,
    ) -> None:
        self._study = study
        self._record = study.record
        self._spec = study.spec
        self._max_epochs = study.spec.max_epochs
        self._num_trials = planned_trials(study.spec)
        self._resources = resources
        self._dashboard = dashboard
        self._console = console or Console(quiet=True)
        self._started = time.monotonic()
        self._epochs_before = epochs_spent(study.record.entries.values())
        self._replayed: dict[int, int] = {}
        self._refreshed = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Say where to look, and start the live picture in a terminal."""
        share = self._resources
        dashboard = f"http://{self._dashboard}" if self._dashboard else "of the joined cluster"
        self._console.print(f"study          {self._study.folder}", markup=False)
        self._console.print(f"Ray dashboard  {dashboard}")
        self._console.print(
            f"trials         {self._num_trials} of up to {self._max_epochs} "
            f"epochs, {share.max_concurrent} at once, {share.cpu:g} CPU and {share.gpu:g} GPU each"
        )
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the live picture."""
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Refresh the picture, at most twice a second."""
        if self._live is not None and time.monotonic() - self._refreshed > 0.5:
            self._refreshed = time.monotonic()
            self._live.update(self._picture(), refresh=True)

    def trial_started(self, number: int) -> None:
        """Announce a trial."""
        entry = self._record.entries[number]
        self._replayed[number] = entry.epochs
        self._line(entry, "started" if not entry.scores else f"goes on after {entry.epochs}")

    def epoch_ended(self, number: int, epoch: int, outcome: str) -> None:
        """Announce an epoch that was trained.

        A trial that goes on reports first what its checkpoint holds, which was announced before.

        Args:
            number: The trial.
            epoch: The epoch.
            outcome: Its score, or why it has none.
        """
        if epoch > self._replayed.get(number, 0):
            line = f"epoch {epoch}/{self._max_epochs}  {outcome}"
            self._line(self._record.entries[number], line)

    def trial_noted(self, number: int, note: str) -> None:
        """Announce what a trial had to say."""
        self._line(self._record.entries[number], note, always=True)

    def trial_ended(self, number: int) -> None:
        """Announce the end of a trial."""
        entry = self._record.entries[number]
        self._line(entry, f"{entry.state}: {entry.reason}", always=True)

    def _line(self, entry: TrialEntry, text: str, *, always: bool = False) -> None:
        if self._live is None:
            if not self._console.quiet:
                # `Console.print` takes a millisecond for the colours that a file has not
                line = f"[{self._clock()}] trial {entry.number:>3}  {text}"
                print(line, file=self._console.file, flush=True)
        elif always:
            style = STYLES[entry.state]
            # a reason may hold brackets: torch's is "[enforce fail at alloc_cpu.cpp:118] ..."
            self._live.console.print(f"[{style}]trial {entry.number}[/] {escape(text)}")

    def _clock(self) -> str:
        return duration(time.monotonic() - self._started)

    def _picture(self) -> RenderableType:
        record, spec = self._record, self._spec
        spent = epochs_spent(record.entries.values())
        full = self._num_trials * self._max_epochs
        lines = [
            "trials  " + state_counts(self._study),
            "best    " + best_line(self._study),
            f"epochs  {spent} of {full} that full training would take ({spent / full:.0%})",
            *(f"budget  {line}" for line in budget_lines(self._study)),
            f"time    {self._clock()}, {self._time_left(spent)}",
        ]
        running = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("trial", "epoch", spec.metric):
            running.add_column(column, no_wrap=True, min_width=max(6, len(column)))
        running.add_column("config", no_wrap=True, overflow="ellipsis")
        for entry in record.with_state(TrialState.RUNNING):
            last = entry.scores.get(entry.epochs)
            running.add_row(
                str(entry.number),
                f"{entry.epochs}/{self._max_epochs}",
                "" if last is None else "undefined" if math.isnan(last) else f"{last:.4f}",
                short_values(entry.trained_values),
            )
        return Panel(Group("\n".join(lines), "", running), title=escape(self._study.name))

    def _time_left(self, spent: int) -> str:
        """A guess from the epochs so far and what early stopping is expected to save."""
        trained = spent - self._epochs_before
        if not trained:
            return "time left not known yet"
        ended = [entry.epochs for entry in self._record.entries.values() if entry.state.finished]
        per_trial = (
            sum(ended) / len(ended)
            if ended
            else self._spec.expected_epochs() / self._spec.search.num_trials
        )
        most = per_trial * self._num_trials
        if self._spec.search.epoch_budget is not None:
            most = min(most, self._spec.search.epoch_budget)
        left = max(0.0, most - spent)
        seconds = left * (time.monotonic() - self._started) / trained
        if self._spec.search.time_budget is not None:
            budget_left = self._spec.search.time_budget - (time.monotonic() - self._started)
            seconds = min(seconds, max(0.0, budget_left))
        return f"about {duration(seconds)} left"
