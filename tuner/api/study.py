"""A study, as Python users see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tuner.api.libraries import quiet_libraries
from tuner.api.trial import Trial
from tuner.study.commands import study_command
from tuner.study.driver_lock import driver_is_running
from tuner.study.failed_trials import most_failed
from tuner.study.pareto import pareto_front

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from tuner.export.export import Exported
    from tuner.spec.study_spec import StudySpec
    from tuner.spec.yaml_source import Override
    from tuner.study import study as ground_floor


class StudyInterrupted(KeyboardInterrupt):
    """A study was ended in order by Ctrl-C or SIGTERM: every finished epoch is kept.

    Attributes:
        study: The study, which `study.resume()` goes on with.
    """

    def __init__(self, study: Study) -> None:
        command = study_command("resume", study.folder)
        super().__init__(
            f"interrupted: every finished epoch is kept; go on with study.resume() or `{command}`"
        )
        self.study = study


class Study:
    """A study: a folder with a spec and a record of trials.

    `tuner.run`, `tuner.resume`, `tuner.open_study` and `tuner.list_studies` return it.

    Example:
        >>> import tuner
        >>> study = tuner.open_study("liver")
        >>> study
        <Study 'liver': 3 trials, best val_dice 0.8000 (trial 1, epoch 2)>
        >>> study.best.params
        {'learning_rate': 0.02}
        >>> [(trial.number, trial.score) for trial in study.trials]
        [(0, 0.5), (1, 0.8), (2, None)]
    """

    def __init__(self, study: ground_floor.Study, cut_off: str | None = None) -> None:
        self._study = study
        self._cut_off = cut_off

    @property
    def name(self) -> str:
        """Name of the study: that of its folder."""
        return self._study.name

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self._study.folder

    @property
    def spec(self) -> StudySpec:
        """The search space with all settings, as the study runs it."""
        return self._study.spec

    @property
    def trials(self) -> list[Trial]:
        """All trials by number: `study.trials[3]` is trial 3."""
        return [
            Trial(self._study, entry) for _, entry in sorted(self._study.record.entries.items())
        ]

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, which may still run; None before the first score.

        Diverged, infeasible and failed trials cannot win.
        """
        entry = self._study.record.best()
        return None if entry is None else Trial(self._study, entry)

    def pareto_front(self) -> list[Trial]:
        """Trials that no other trial beats in every metric of the study, best first.

        Example:
            >>> import tuner
            >>> [trial.number for trial in tuner.open_study("liver").pareto_front()]
            [1, 0]
        """
        front = pareto_front(self._study.record.entries.values(), self.spec.objectives)
        return [Trial(self._study, entry) for entry in front]

    def to_dataframe(self) -> pd.DataFrame:
        """A row a trial, with the columns of `results.csv`.

        Facts of a trial have plain names (`trial`, `state`, `value`, ...), hyperparameters begin
        with `params_` and metrics of the best epoch with `metrics_`.

        Raises:
            ModuleNotFoundError: if pandas is not installed.

        Example:
            >>> import tuner
            >>> frame = tuner.open_study("liver").to_dataframe()
            >>> frame["params_learning_rate"].tolist()
            [0.01, 0.02, 0.03]
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Study.to_dataframe() needs pandas: pip install pandas; or read "
                f"{self.folder / 'results.csv'}, which has the same columns"
            ) from error
        from tuner.report.results_table import results_table

        columns, rows = results_table(self._study)
        return pd.DataFrame(rows, columns=columns)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the study comes from: versions, commit, command, and its data.

        Raises:
            StudyError: if the study has not begun, or they cannot be read.
        """
        return self._study.provenance()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: to search, or to confirm."""
        from tuner.study.confirmation import is_finished

        return is_finished(self._study)

    @property
    def running(self) -> bool:
        """Whether a process runs the study now."""
        return driver_is_running(self.folder)

    @property
    def cut_off(self) -> str | None:
        """Says that the process which ran the study is gone, and how to go on; None otherwise."""
        return self._cut_off

    def resume(
        self,
        *,
        num_trials: int | Override | None = None,
        epoch_budget: int | Override | None = None,
        gpu_hours: float | Override | None = None,
        time_budget: float | str | Override | None = None,
        address: str | None = None,
        progress: bool | Console = True,
    ) -> Self:
        """Go on with the study; a study that has finished is left as it is.

        Args:
            num_trials: Trials of the study from now on.
            epoch_budget: End after so many epochs of all trials.
            gpu_hours: End after so many GPU-hours of all trials.
            time_budget: End this call after a time: seconds, or e.g. `"30m"`.
            address: Ray cluster to join; RAY_ADDRESS without one, and without both a cluster of
                this machine is started.
            progress: Whether to show the progress, in a terminal, a log or a notebook.

        Returns:
            The study itself.

        Raises:
            SpecError: if a budget is not valid.
            StudyError: if another process runs the study, or its data have changed.
            ResourceError: if no node can hold a trial, or the cluster cannot be reached.
            StudyInterrupted: after Ctrl-C or SIGTERM.

        Example:
            >>> import tuner
            >>> tuner.open_study("liver").resume(num_trials=80)  # doctest: +SKIP
        """
        from tuner.study.driver import change_budgets

        budgets = {
            "num_trials": num_trials,
            "epoch_budget": epoch_budget,
            "gpu_hours": gpu_hours,
            "time_budget": time_budget,
        }
        overrides = _overrides({n: value for n, value in budgets.items() if value is not None})
        if overrides:
            self._study = change_budgets(self._study, overrides)
        if self._go_on(address, progress):
            raise StudyInterrupted(self)
        return self

    def export(
        self,
        folder: str | Path | None = None,
        trial: int | Trial | None = None,
        *,
        data_dir: str | Path | None = None,
        ensemble: int | Override | None = None,
        ensemble_time: float | Override | None = None,
        mirroring: str | bool | Override | None = None,
        postprocessing: bool | Override | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> Exported:
        """Export the best model as a bundle, and check that it predicts as the trials' models do.

        It is the winner or an ensemble of the best trials, with mirroring and postprocessing, as
        the validation cases choose. What is not given is as the study's section `export` has it.

        Args:
            folder: Folder to write; `export/` in the study's folder by default. An older bundle
                there is replaced.
            trial: A trial or its number, which is exported alone. The winner by default is the
                config that the confirmation chose, or without one the best trial.
            data_dir: Where the data are now, if they were moved.
            ensemble: How many networks the model may have; 1 for the winner alone.
            ensemble_time: How many times as long as the winner it may take to predict a case.
            mirroring: `"auto"`, `"on"` or `"off"`: whether predictions are averaged over mirrored
                images.
            postprocessing: Whether predictions may be cleaned of small components.
            tell: Called with a line before each network predicts the validation cases.

        Returns:
            What was exported: `folder`, `members`, `choice`, `metrics`, `notes` and more.

        Raises:
            ExportError: if there is no such trial, it has no checkpoint, or the bundle differs.
            SpecError: if a setting is not valid.

        Example:
            >>> import tuner
            >>> exported = tuner.open_study("liver").export("bundle")  # doctest: +SKIP
            >>> exported.metrics["val_dice"]  # doctest: +SKIP
            0.8
        """
        target = self.folder / "export" if folder is None else Path(folder)
        number = trial.number if isinstance(trial, Trial) else trial
        moved = None if data_dir is None else Path(data_dir)
        given = {
            "ensemble": ensemble,
            "ensemble_time": ensemble_time,
            "mirroring": mirroring,
            "postprocessing": postprocessing,
        }
        settings = self.spec.export
        overrides = _overrides({n: v for n, v in given.items() if v is not None}, "export")
        if overrides:
            settings = self.spec.with_settings(overrides).export
        with quiet_libraries():
            from tuner.export.export import export_study

            return export_study(self._study, target.absolute(), number, moved, settings, tell)

    @property
    def most_failed(self) -> bool:
        """Whether more than half of the trials that have ended failed; `tune` ends with 1 then."""
        return most_failed(self._study.record)

    def print_summary(
        self, console: Console | None = None, *, sort: str | None = None, top: int | None = None
    ) -> None:
        """Print what `tune status` prints: trials, best config, budgets, what to type next.

        Args:
            console: Where to print it; the standard output by default.
            sort: What the trials are sorted by: `number`, `state`, `score`, `epochs`, `seconds`,
                a field that varies or a metric; scores come best first.
            top: How many of the first trials to list; all by default.
        """
        from tuner.report.console import output_console
        from tuner.report.ordering import sorted_trials
        from tuner.report.summary import print_summary

        shown = sorted_trials(self._study, sort, top)
        print_summary(console or output_console(), self._study, shown, driven=self.running)

    def to_dict(
        self, *, trials: bool = True, sort: str | None = None, top: int | None = None
    ) -> dict[str, Any]:
        """The study as plain values, as `tune status --json` prints it.

        Args:
            trials: Whether to list the trials, as `tune list --json` does not.
            sort: What the trials are sorted by, as in `print_summary`.
            top: How many of the first trials to list; all by default.

        Example:
            >>> import tuner
            >>> tuner.open_study("liver").to_dict()["best"]["params"]
            {'learning_rate': 0.02}
        """
        from tuner.report.documents import study_document, trial_document
        from tuner.report.ordering import sorted_trials

        document = study_document(self._study)
        if trials:
            mode = self._study.record.mode
            shown = sorted_trials(self._study, sort, top)
            document["trials"] = [trial_document(entry, mode) for entry in shown]
        return document

    def _go_on(self, address: str | None, progress: bool | Console) -> bool:
        """Run what is left of the study; whether that was interrupted."""
        from tuner.report.console import progress_console
        from tuner.study.budget import spent_budget

        console = progress_console(progress)
        self._cut_off = None
        if self.finished:
            if console is not None:
                spent = None if self._study.searched else spent_budget(self._study)
                why = "has finished already" if spent is None else f"does not go on: {spent}"
                console.print(f"the study {self.name} {why}", markup=False)
            return False
        with quiet_libraries():
            from tuner.driver.run_study import run_study

            return run_study(self._study, address, console)

    def __repr__(self) -> str:
        from tuner.report.tables import best_line

        best = best_line(self._study)
        return f"<Study {self.name!r}: {len(self._study.record.entries)} trials, best {best}>"

    def _repr_html_(self) -> str:
        from tuner.report.html import trials_html

        return trials_html(self._study)


def _overrides(settings: Mapping[str, Any], section: str = "search") -> dict[str, Override]:
    """Settings of a section as overrides, with the argument's name for error messages."""
    from tuner.spec.yaml_source import Override

    return {
        f"{section}.{name}": value
        if isinstance(value, Override)
        else Override(value, f"{name}={value!r}")
        for name, value in settings.items()
    }
