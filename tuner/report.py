"""What a person sees of a study: the live view, the tables, `results.csv`."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tuner.budget import budget_lines, spent_budget
from tuner.confirm import confirm_record, confirmed_configs, is_confirmed
from tuner.confirm_report import CONFIRM_CSV, write_confirm_csv
from tuner.failed_trials import failure_lines
from tuner.goals_view import goal_tables, spending_lines
from tuner.html_report import write_html_report
from tuner.lineage import schedule
from tuner.no_winner import no_winner, way_out
from tuner.record import StudyRecord, TrialEntry, TrialState, epochs_spent
from tuner.results_table import RESULTS, write_results_csv
from tuner.searchers import TRIAL_NUMBER, UNDEFINED, planned_trials
from tuner.study_command import shown_name, study_command

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.resources import TrialResources
    from tuner.spec import StudySpec

REPORT = "report.html"

STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "blue",
    TrialState.COMPLETED: "green",
    TrialState.STOPPED: "yellow",
    TrialState.DIVERGED: "red",
    TrialState.OUT_OF_MEMORY: "red",
    TrialState.INFEASIBLE: "red",
    TrialState.FAILED: "red",
    TrialState.INTERRUPTED: "magenta",
}


class StudyView(Callback):  # type: ignore[misc]
    """Shows a study while it runs: one live picture, or plain lines outside a terminal.

    Args:
        record: The study's record.
        spec: Its spec.
        folder: Its folder.
        resources: Share of a trial.
        dashboard: Address of the Ray dashboard, if there is one.
        console: Where to show it; nowhere if None.
    """

    def __init__(
        self,
        record: StudyRecord,
        spec: StudySpec,
        folder: Path,
        resources: TrialResources,
        dashboard: str | None,
        console: Console | None,
    ) -> None:
        self._record = record
        self._spec = spec
        self._max_epochs = spec.max_epochs
        self._num_trials = planned_trials(spec)
        self._folder = folder
        self._resources = resources
        self._dashboard = dashboard
        self._console = console or Console(quiet=True)
        self._started = time.monotonic()
        self._epochs_before = epochs_spent(record.entries.values())
        self._replayed: dict[int, int] = {}
        self._refreshed = 0.0
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; a view has nothing to keep."""
        return {}

    def __enter__(self) -> Self:
        """Say where to look, and start the live picture in a terminal."""
        share = self._resources
        dashboard = f"http://{self._dashboard}" if self._dashboard else "of the joined cluster"
        self._console.print(f"study          {self._folder}", markup=False)
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

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refresh the picture, at most twice a second."""
        if self._live is not None and time.monotonic() - self._refreshed > 0.5:
            self._refreshed = time.monotonic()
            self._live.update(self._picture(), refresh=True)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Announce a trial."""
        entry = self._entry(trial)
        self._replayed[entry.number] = entry.epochs
        self._line(entry, "started" if not entry.scores else f"goes on after {entry.epochs}")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Announce an epoch that was trained.

        A trial that goes on reports first what its checkpoint holds, which was announced before.
        """
        entry = self._entry(trial)
        if "note" in result:
            self._line(entry, result["note"], always=True)
        if "epoch" in result and result["epoch"] > self._replayed.get(entry.number, 0):
            self._line(
                entry,
                f"epoch {result['epoch']}/{self._max_epochs}  "
                + result.get(UNDEFINED, f"{self._spec.metric} {result['score']:.4f}"),
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Announce the end of a trial."""
        entry = self._entry(trial)
        self._line(entry, f"{entry.state}: {entry.reason}", always=True)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Announce the end of a trial whose process died."""
        self.on_trial_complete(iteration, trials, trial)

    def _entry(self, trial: Trial) -> TrialEntry:
        return self._record.entries[trial.config[TRIAL_NUMBER]]

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
            "trials  " + _counts(record, self._num_trials),
            "best    " + _best_line(record, spec.metric),
            f"epochs  {spent} of {full} that full training would take ({spent / full:.0%})",
            *(f"budget  {line}" for line in budget_lines(record, spec)),
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
        return Panel(Group("\n".join(lines), "", running), title=escape(self._folder.name))

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


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_values(values: dict[str, Any]) -> str:
    """Sampled values on one line, floats with three digits."""
    return "  ".join(f"{name}={short_value(value)}" for name, value in values.items())


def short_value(value: Any) -> str:
    """One value, floats with three digits."""
    if value is None:
        return "null"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _counts(record: StudyRecord, num_trials: int) -> str:
    parts = [
        f"[{STYLES[state]}]{len(entries)} {state}[/]"
        for state in TrialState
        if (entries := record.with_state(state))
    ]
    waiting = num_trials - len(record.entries)
    if waiting > 0:
        parts.append(f"{waiting} to come")
    return " · ".join(parts)


def _best_line(record: StudyRecord, metric: str) -> str:
    entry = record.best()
    if entry is None or (best := entry.best(record.mode)) is None:
        return "none yet"
    running = ", still running" if entry.state is TrialState.RUNNING else ""
    return f"{metric} {best[1]:.4f} (trial {entry.number}, epoch {best[0]}{running})"


def trials_table(entries: Iterable[TrialEntry], metric: str, mode: str) -> Table:
    """Every trial with its state, its score and the reason of its end."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in (
        ("trial", "right"),
        ("state", "left"),
        ("epochs", "right"),
        (f"best {metric}", "right"),
        ("time", "right"),
        ("why it ended", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for entry in entries:
        best = entry.best(mode)
        table.add_row(
            str(entry.number),
            f"[{STYLES[entry.state]}]{entry.state}[/]",
            str(entry.epochs),
            "" if best is None else f"{best[1]:.4f}",
            duration(entry.seconds),
            escape(entry.reason),
        )
    return table


def studies_table(studies: Iterable[tuple[Path, StudyRecord, StudySpec]]) -> Table:
    """One line a study: its trials, its best score, its folder."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("study", "trials", "best", "folder"):
        table.add_column(column)
    for folder, record, spec in studies:
        table.add_row(
            Text(shown_name(folder.name)),
            _counts(record, planned_trials(spec)),
            _best_line(record, spec.metric),
            Text(shown_name(str(folder))),
        )
    return table


def print_summary(
    console: Console, folder: Path, record: StudyRecord, spec: StudySpec, *, driven: bool = False
) -> None:
    """A study: trials, best config, epochs against full training, what to type.

    Args:
        console: Where to print it.
        folder: The study's folder.
        record: Its record.
        spec: Its spec.
        driven: Whether another process runs the study now, so that it cannot be resumed.
    """
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    console.print()
    for line in failure_lines(record):
        console.print(line, markup=False)
    console.print(trials_table(entries, spec.metric, record.mode))
    spent = epochs_spent(entries)
    full = len(entries) * spec.max_epochs
    console.print()
    console.print("trials  " + _counts(record, planned_trials(spec)))
    if full:
        times = f" ({full / spent:.1f} times as many)" if spent else ""
        console.print(
            f"epochs  {spent}; training all {len(entries)} trials to the end would take "
            f"{full}{times}"
        )
    for line in spending_lines(folder, record, spec):
        console.print(line, markup=False)
    console.print("best    " + _best_line(record, spec.metric))
    for line in _about_the_best(record):
        console.print(f"        {line}", markup=False)
    for table in goal_tables(folder, record, spec):
        console.print(table)
    written = [str(folder / name) for name in (RESULTS, REPORT) if (folder / name).is_file()]
    if written:
        console.print(f"files   {', '.join(written)}", markup=False)
    for step in next_commands(folder, record, spec, driven=driven):
        console.print(f"next    {step}", markup=False)


def _about_the_best(record: StudyRecord) -> list[str]:
    """The values that the best score was reached with, or why there is none."""
    best = record.best()
    if best is not None:
        return [f"  {stretch}" for stretch in _winning_schedule(record, best)]
    entries = record.entries.values()
    return [no_winner(record)] if entries and all(e.state.finished for e in entries) else []


def _winning_schedule(record: StudyRecord, best: TrialEntry) -> list[str]:
    """The values that the best score was reached with, by epochs if they changed."""
    score = best.best(record.mode)
    assert score is not None
    stretches = schedule(record.entries, best.number, score[0])
    if len(stretches) == 1:
        return [f"{name}: {short_value(v)}" for name, v in stretches[0].values.items()]
    return [
        f"epochs {s.first} to {s.last} (trial {s.trial}): {short_values(dict(s.values))}"
        for s in stretches
    ]


def next_commands(
    folder: Path, record: StudyRecord, spec: StudySpec, *, driven: bool = False
) -> list[str]:
    """What a person would type next; nothing that is refused while another process runs it."""
    unfinished = record.unfinished() or len(record.entries) < planned_trials(spec)
    spent = spent_budget(record, spec) is not None
    steps = []
    if driven:
        pass
    elif unfinished and spent:
        option = "--epoch-budget N" if spec.search.epoch_budget is not None else "--gpu-hours H"
        steps.append(f"{study_command('resume', folder)} {option}")
    elif unfinished or not is_confirmed(record, confirm_record(folder, spec), spec):
        steps.append(study_command("resume", folder))
    elif record.entries and record.best() is None:
        steps.append(way_out(record, folder))
    if record.best(running=False) is not None:
        steps.append(f"{study_command('export', folder)} -o bundle")
    if record.best() is not None:
        steps.append(f"tensorboard --logdir {shlex.quote(shown_name(str(folder / 'trials')))}")
    return steps


def write_results(folder: Path, record: StudyRecord, spec: StudySpec) -> None:
    """Write `results.csv` and `report.html`: every trial, its ending, metrics and values."""
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    write_results_csv(folder / RESULTS, entries, spec)
    confirmed = confirmed_configs(record, confirm_record(folder, spec), spec)
    if confirmed:
        write_confirm_csv(folder / CONFIRM_CSV, confirmed, spec)
    write_html_report(folder / REPORT, folder.name, record, spec, confirmed)
