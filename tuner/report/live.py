"""Shows a study while it runs: one live picture in a terminal or notebook, lines in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column

from tuner.report import numbers
from tuner.report.picture import Pace, Picture, open_picture
from tuner.report.placement import PLACE_COLUMNS, Places, place_cells
from tuner.report.states import STYLES
from tuner.report.tables import best_line, state_counts, terminal_table
from tuner.spec.grid import planned_trials
from tuner.study.budget import budget_lines
from tuner.study.trial_entry import TrialEntry, TrialState, epochs_spent

if TYPE_CHECKING:
    from tuner.spec.settings import TrialResources
    from tuner.study.study import Study


class Forecast(Protocol):
    """Protocol of what knows how much fits into a time budget."""

    def capacity(self) -> str:
        """How many full trainings fit; empty while not known."""
        ...

    def ending(self) -> str:
        """What still runs until the study ends; empty while there is time."""
        ...


class Cluster(Protocol):
    """Protocol of what knows the nodes of a study's cluster."""

    def summary(self) -> str:
        """How many nodes are used, and which are not, and why; empty for one node that is."""
        ...

    def short_of_memory(self) -> list[str]:
        """Nodes whose memory holds fewer trials than there would be places, a line for each."""
        ...


class StudyView:
    """Shows a study while it runs: one live picture, or plain lines outside a terminal.

    Args:
        study: The study.
        resources: Share of a trial.
        dashboard: Address of the Ray dashboard, if there is one.
        console: Where to show it; nowhere if None.
        forecast: What fits into the time budget; None without one.
        cluster: The nodes that trials use; None where that is not to be shown.
    """

    def __init__(
        self,
        study: Study,
        resources: TrialResources,
        dashboard: str | None,
        console: Console | None,
        forecast: Forecast | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._study = study
        self._record = study.record
        self._spec = study.spec
        self._max_epochs = study.spec.max_epochs
        self._folds = study.spec.folds
        self._num_trials = planned_trials(study.spec)
        self._resources = resources
        self._dashboard = dashboard
        self._console = console or Console(quiet=True)
        self._forecast = forecast
        self._cluster = cluster
        self._told = ""
        self._told_memory = False
        self._started = time.monotonic()
        self._epochs_before = epochs_spent(study.record.entries.values())
        self._replayed: dict[int, int] = {}
        self._places = Places(study.record.entries.values())
        self._pace = Pace()
        self._picture: Picture | None = None

    def __enter__(self) -> Self:
        """Print the folder and the dashboard of the study, and start the live picture."""
        share = self._resources
        dashboard = f"http://{self._dashboard}" if self._dashboard else "of the joined cluster"
        self._console.print(f"study          {self._study.folder}", markup=False)
        self._console.print(f"Ray dashboard  {dashboard}")
        on = f" on each of {self._folds} folds" if self._folds > 1 else ""
        self._console.print(
            f"trials         {self._num_trials} of up to {self._max_epochs} "
            f"epochs{on}, {share.max_concurrent} at once, "
            f"{share.cpu:g} CPU and {share.gpu:g} GPU each"
        )
        self._picture = open_picture(self._console)
        return self

    def __exit__(self, *_: object) -> None:
        """End the live picture."""
        if self._picture is not None:
            self._picture.update(self._panel())
            self._picture.close()

    def refresh(self) -> None:
        """Refresh the picture, at most twice a second."""
        if self._picture is not None and self._pace.due():
            self._picture.update(self._panel())

    def trial_started(self, number: int) -> None:
        """Announce a trial, which is in its worker now."""
        entry = self._record.entries[number]
        if entry.placement is not None:
            self._places.add(entry.placement)
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
            entry = self._record.entries[number]
            self._line(entry, f"epoch {self._progress(entry, epoch)}  {outcome}")
            self._tell_forecast()

    def trial_noted(self, number: int, note: str) -> None:
        """Announce a message of a trial."""
        self._line(self._record.entries[number], note, always=True)

    def trial_ended(self, number: int) -> None:
        """Announce the end of a trial."""
        entry = self._record.entries[number]
        self._line(entry, f"{entry.state}: {entry.reason}", always=True)
        self._tell_memory()

    def _line(self, entry: TrialEntry, text: str, *, always: bool = False) -> None:
        if self._picture is None:
            if not self._console.quiet:
                # `Console.print` takes a millisecond for the colours that a file has not
                where = f"{entry.placement}  " if self._places.differ and entry.placement else ""
                line = f"[{self._clock()}] trial {entry.number:>3}  {where}{text}"
                print(line, file=self._console.file, flush=True)
        elif always:
            style = STYLES[entry.state]
            # a reason may hold brackets: torch's is "[enforce fail at alloc_cpu.cpp:118] ..."
            self._console.print(f"[{style}]trial {entry.number}[/] {escape(text)}")

    def _tell_forecast(self) -> None:
        """Tell how much fits into the time budget when it is first known, and how the end goes."""
        if self._forecast is None:
            return
        text = self._forecast.ending() if self._told else self._forecast.capacity()
        if text and text != self._told and not self._console.quiet:
            self._told = text
            if self._picture is None:
                print(f"[{self._clock()}] time budget: {text}", file=self._console.file, flush=True)
            else:
                self._console.print(f"time budget: {text}", markup=False)

    def _tell_memory(self) -> None:
        """Tell once that trials are too large for as many at once as there are places."""
        lines = self._short_of_memory()
        if self._told_memory or not lines or self._console.quiet:
            return
        self._told_memory = True
        for line in lines:
            if self._picture is None:
                print(f"[{self._clock()}] memory: {line}", file=self._console.file, flush=True)
            else:
                self._console.print(f"memory: {line}", markup=False)

    def _short_of_memory(self) -> list[str]:
        # with no trial left to begin nothing is lost
        more = len(self._record.entries) < self._num_trials
        return self._cluster.short_of_memory() if more and self._cluster is not None else []

    def _clock(self) -> str:
        return numbers.duration(time.monotonic() - self._started)

    def _panel(self) -> Panel:
        record, spec = self._record, self._spec
        spent = epochs_spent(record.entries.values())
        full = self._num_trials * self._spec.full_epochs
        lines = [
            "trials  " + state_counts(self._study),
            "best    " + best_line(self._study),
            f"epochs  {spent} of {full} that full training would take "
            f"({numbers.share(spent, full)})",
            *(f"budget  {line}" for line in budget_lines(self._study)),
            *(f"nodes   {escape(line)}" for line in self._nodes()),
            *(f"memory  {escape(line)}" for line in self._short_of_memory()),
            f"time    {self._clock()}, {self._time_left(spent)}{self._ending()}",
        ]
        placed = PLACE_COLUMNS if self._places.differ else ()
        headings = ("trial", "epoch", spec.metric, *placed)
        running = terminal_table(
            [
                *(Column(name, no_wrap=True, min_width=max(6, len(name))) for name in headings),
                Column("config", no_wrap=True, overflow="ellipsis"),
            ],
            (self._row(entry) for entry in record.with_state(TrialState.RUNNING)),
        )
        return Panel(Group("\n".join(lines), "", running), title=escape(self._study.name))

    def _nodes(self) -> list[str]:
        text = "" if self._cluster is None else self._cluster.summary()
        return [text] if text else []

    def _ending(self) -> str:
        text = "" if self._forecast is None else self._forecast.ending()
        return f": {text}" if text else ""

    def _row(self, entry: TrialEntry) -> list[str]:
        last = entry.scores.get(entry.epochs)
        return [
            str(entry.number),
            self._progress(entry, entry.epochs),
            "" if last is None else numbers.score(last),
            *(place_cells(entry) if self._places.differ else ()),
            numbers.values(entry.trained_values),
        ]

    def _progress(self, entry: TrialEntry, epoch: int) -> str:
        """An epoch of a trial, of how many."""
        return numbers.progress(epoch, entry.ends_at or self._max_epochs, self._folds)

    def _time_left(self, spent: int) -> str:
        """An estimate from the epochs so far and the expected savings of early stopping."""
        trained = spent - self._epochs_before
        if not trained:
            return "time left not known yet"
        ended = [
            entry.epochs_trained for entry in self._record.entries.values() if entry.state.finished
        ]
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
        return f"about {numbers.duration(seconds)} left"
