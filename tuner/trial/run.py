"""One trial: sampled values become a config, the config is trained, every epoch reported.

This is the only file that trains. A trial runs in a Ray actor; training goes on in a thread
of that actor, which waits after every epoch until Tune asks for the next one.
"""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from training.config import ModelTrainingConfig
from training.durable_write import write_durably
from training.errors import DatasetError, PluginError, suggestion
from tuner.spec.study_spec import StudySpec
from tuner.study.chosen_checkpoint import choose_checkpoint
from tuner.study.config_files import keep_changed_config, log_folder, set_aside_config
from tuner.study.files import (
    CONFIG_FILE,
    ERROR_FILE,
    HANG_FILE,
    METRICS_FILE,
    PLACEMENT_FILE,
    fold_folder,
    snapshot_file,
)
from tuner.study.remote.trial import fetch_from_trial, trained_here
from tuner.study.trial_entry import CASES, GRID, TrialState
from tuner.trial.auto_patch import assign, take_plan
from tuner.trial.code import check_code
from tuner.trial.context import StudyContext, shown_hyperparameters
from tuner.trial.costs import HOST_MEMORY, TrialCosts
from tuner.trial.failures import ConstraintBrokenError, classify
from tuner.trial.gpus import check_trial_gpu, keep_to_share
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest
from tuner.trial.node_faults import NodeUnfitError, node_fault
from tuner.trial.only_trainer import only_trainer

if TYPE_CHECKING:
    from training.trainer import SegmentationTrainer
    from tuner.trial.memory import MemoryUse
    from tuner.trial.ranks import Ranks

HANG_DUMP_SHARE = 0.9
"""Share of the hang timeout after which a trial writes the stacks of its threads."""


class TrialRun:
    """The training thread of one trial, and the gate that it stops at after every epoch.

    Args:
        study: The study that the trial belongs to.
        spec: The study's spec.
        request: The trial.
        placement: Where the trial runs: node, process and devices.
        ranks: The further processes of a trial on several GPUs; None for one.
        memory: What the trial and its node hold; None where that cannot be measured.
    """

    def __init__(
        self,
        study: StudyContext,
        spec: StudySpec,
        request: TrialRequest,
        placement: Mapping[str, Any] = MappingProxyType({}),
        ranks: Ranks | None = None,
        memory: Callable[[], MemoryUse | None] = lambda: None,
    ) -> None:
        self._study = study
        self._spec = spec
        self._request = request
        self._number = request.number
        self._values = request.values
        self._placement = placement
        self._ranks = ranks
        self._memory = memory
        self._note = ""
        self._planned: dict[str, Any] = {}
        self._reports: queue.Queue[EpochReport | TrialEnd | NodeUnfitError] = queue.Queue()
        self._turn = threading.Semaphore(0)
        self._waits = False
        self._closing = False
        self._cores: int | None = None
        self._scores: dict[int, float] = {}
        self._costs: TrialCosts | None = None
        self._thread = threading.Thread(
            target=self._train_and_report_end, name=f"trial-{request.number}", daemon=True
        )
        self._thread.start()

    def next_report(self) -> EpochReport | TrialEnd:
        """Let training go on and wait for its next report.

        Where `failures.hang_timeout` is set, `hang.txt` tells where every thread stood when the
        time was nearly over, also of a process that holds Python's lock.

        Raises:
            NodeUnfitError: if the trial cannot train on this node; its process is then of no use.
        """
        limit = self._spec.failures.hang_timeout
        if limit is None or not self._study.folder.is_dir():
            self._turn.release()
            return self._report()
        folder = self._study.trial_folder(self._number)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / HANG_FILE
        with path.open("a") as file:
            faulthandler.dump_traceback_later(limit * HANG_DUMP_SHARE, file=file)
            try:
                self._turn.release()
                return self._report()
            finally:
                faulthandler.cancel_dump_traceback_later()
                if not path.stat().st_size:
                    path.unlink()

    def _report(self) -> EpochReport | TrialEnd:
        report = self._reports.get()
        if isinstance(report, NodeUnfitError):
            raise report
        return report

    def use_cores(self, cores: int) -> None:
        """Train with so many cores from the next epoch on."""
        self._cores = cores

    def close(self) -> None:
        """End training at once and free its memory."""
        self._closing = True
        self._turn.release()
        self._thread.join()
        _free_memory()

    def report_epoch(self, row: Mapping[str, float]) -> None:
        """Hand over the metrics of an epoch and wait for the next turn.

        Raises:
            TrialClosed: if the trial must end.
            ConstraintBrokenError: if the trial breaks a constraint of the study.
            PluginError: if the study's metric was not logged.
        """
        metrics = {key: value for key, value in row.items() if key not in {"epoch", "seconds"}}
        if self._costs is not None:
            metrics |= self._costs.measure()
        memory = self._memory()
        if memory is not None:
            metrics[HOST_MEMORY] = memory.peak
        if self._spec.metric not in metrics:
            raise PluginError(
                f"the metric {self._spec.metric} was not logged in epoch {int(row['epoch'])}"
                f"{suggestion(self._spec.metric, metrics)}"
            )
        score, undefined = metrics[self._spec.metric], ""
        self._scores[int(row["epoch"])] = score
        if not math.isfinite(score):
            undefined = (
                f"{self._spec.metric} is not defined: no validation case has what it measures, in "
                "its label or in its prediction; the epoch is ignored"
            )
        note, self._note = self._note, ""
        self._reports.put(
            EpochReport(
                int(row["epoch"]),
                score,
                metrics,
                row["seconds"],
                self._study.gpus,
                undefined,
                note,
                memory,
                self._study.of_whole_trial(self._spec, self._planned),
            )
        )
        self.wait_for_turn()

    def wait_for_turn(self) -> None:
        """Wait until Tune asks for the next report.

        Raises:
            TrialClosed: if the trial must end.
        """
        self._waits = True
        self._turn.acquire()
        self._waits = False
        self._leave_if_closed()
        cores, self._cores = self._cores, None
        if cores is not None:
            import torch

            torch.set_num_threads(cores)

    def _leave_if_closed(self) -> None:
        """Leave the training if the trial must end.

        Raises:
            TrialClosed: if it must.
        """
        if self._closing:
            raise TrialClosed

    def _make_way(self) -> None:
        """Leave the trial to the process that was started for it after this one."""
        if not self._waits:
            # its driver is gone or has lost it, and an epoch may take an hour
            os._exit(1)
        # between two epochs, and the process may have other trials to train
        self._closing = True
        self._turn.release()

    def _train_and_report_end(self) -> None:
        try:
            self.wait_for_turn()
            with self._own_folder():
                trained = self._train()
                notes = self._judge() if self._study.judged else {}
            end = TrialEnd(TrialState.COMPLETED, trained, notes)
        except TrialClosed:
            return
        except Exception as error:
            unfit = node_fault(error, self._study.folder, self._study.gpus)
            self._reports.put(unfit or classify(error))
        else:
            self._reports.put(end)

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Have the trial's folder alone, with what storage has of it."""
        if not self._study.folder.is_dir():
            raise NodeUnfitError(
                f"node {socket.gethostname()} does not see the study folder "
                f"{self._study.folder}: put --studies-dir on storage that every node mounts"
            )
        folder = self._study.trial_folder(self._number)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            only_trainer(folder, self._leave_if_closed, self._make_way),
            trained_here(folder, self._leave_if_closed, self._make_way),
        ):
            try:
                yield
            except Exception as error:
                if not isinstance(error, ConstraintBrokenError):
                    self._write_error()
                raise

    def _train(self) -> str:
        """Train to the end, on each fold; how long it took, as text."""
        folder = self._study.trial_folder(self._number)
        folds, trained = self._study.folds, ""
        for fold in range(self._request.fold, folds):
            trained = self._train_in(fold_folder(folder, fold), fold)
        return trained if folds == 1 else f"trained on all {folds} folds"

    def _train_in(self, folder: Path, fold: int) -> str:
        # torch, Lightning and MONAI load once, in the worker; the driver never needs them
        import torch

        from training.data import PreprocessedDataset, get_dataloaders
        from training.data.patches.mirroring import mirror_axes
        from training.models import build_model
        from training.trainer import SegmentationTrainer
        from tuner.trial.epoch_gate import EpochGate
        from tuner.trial.exploit import keep_snapshot, take_over
        from tuner.trial.rank_gate import RankGate
        from tuner.trial.resume import checkpoint_to_resume

        ranks = self._ranks
        _freeze_gc()
        threads = _threads_of_this_process()
        torch.set_num_threads(threads if ranks is None else max(1, threads // ranks.world))
        if fold:
            # what the fold before has left
            _free_memory()
            folder.mkdir(exist_ok=True)
        check_code(self._spec)
        notes = []
        exploits = self._request.exploits
        if exploits is not None:
            set_aside_config(folder, exploits.epoch)
            donor = self._study.trial_folder(exploits.trial)
            fetch_from_trial(donor, snapshot_file(donor, exploits.epoch).name)
            notes.append(take_over(folder, donor, exploits.epoch, folder / METRICS_FILE))
        config = self._study.trial_config(self._spec, self._number, self._values, fold)
        logical = self._spec.resources.logical_gpus
        gpus = 0 if logical or not config.gpus else self._study.gpus
        check_trial_gpu(gpus)
        keep_to_share(gpus)
        config.data_dir = self._data(config, fold)
        self._planned = self._take_plan(config, gpus)
        # `auto` depends on the labels, and an exported model must record how it was trained
        labels = PreprocessedDataset.load(config.data_dir).labels
        config.mirror_axes = mirror_axes(config, labels)
        keep_changed_config(folder, config, folder / METRICS_FILE)
        config.log_dir = log_folder(folder)
        self._write_settings(folder, config)
        self._costs = TrialCosts(config, self._spec.constraints)
        train_loader, val_loader, _ = get_dataloaders(config)
        interval = self._spec.snapshot_interval
        gate = EpochGate(
            self.report_epoch,
            folder / METRICS_FILE,
            lambda epoch: None if epoch % interval else keep_snapshot(folder, epoch),
            fold=fold,
            fold_epochs=self._spec.max_epochs if self._study.folds > 1 else None,
        )
        trainer = SegmentationTrainer(
            config,
            build_model(config),
            train_loader,
            val_loader,
            callbacks=[gate] if ranks is None else [gate, RankGate()],
            progress_bar=False,
            hyperparameters=shown_hyperparameters(self._spec.space, self._values),
            ranks=None if ranks is None else ranks.first(),
        )
        checkpoint, note = checkpoint_to_resume(folder, trainer.module)
        self._note = "; ".join(filter(None, [*notes, note]))
        if ranks is None:
            trainer.fit(resume=checkpoint or False)
        else:
            with ranks.training(config, checkpoint, self._spec, self._study.code):
                self._fit_together(trainer, checkpoint)
        epochs = trainer.lightning.current_epoch
        if epochs < config.max_epochs:
            return f"trained {epochs} epochs, then stopped improving"
        shortened = epochs < self._spec.max_epochs
        end = ", the end of a schedule that was shortened to the time" if shortened else ""
        return f"trained {epochs} epochs{end}"

    def _take_plan(self, config: ModelTrainingConfig, gpus: float) -> dict[str, Any]:
        """Give the config numbers where its patch or batch is `auto`; those of the whole trial."""
        if self._planned:
            # each fold trains as the first
            take = dict(self._planned)
        else:
            take = take_plan(config, self._spec, self._study.trial_folder(self._number), gpus)
        assign(config, take)
        return take

    def _data(self, config: ModelTrainingConfig, fold: int) -> Path:
        """The preprocessed data of a fold.

        Raises:
            NodeUnfitError: if this node cannot have them: the driver did prepare them.
        """
        try:
            return self._study.data[fold].on_this_node(config)
        except DatasetError as error:
            raise NodeUnfitError(
                f"node {socket.gethostname()} cannot have the data of the study: {error}"
            ) from error

    def _fit_together(self, trainer: SegmentationTrainer, checkpoint: Path | None) -> None:
        """Train with the other processes, and tell them if the trial ends before its end."""
        from tuner.trial.rank_gate import end_others

        try:
            trainer.fit(resume=checkpoint or False)
        except TrialClosed:
            end_others(trainer.lightning.strategy.root_device)
            raise

    def _judge(self) -> dict[str, Any]:
        """Notes on the score of each test case, with the chosen checkpoint if there is one."""
        from training.bundle.case_scores import score_test_cases

        config = self._study.trial_config(self._spec, self._number, self._values)
        config.data_dir = self._data(config, 0)
        self._take_plan(config, self._study.gpus if config.gpus else 0)
        folder = self._study.trial_folder(self._number)
        chosen = choose_checkpoint(folder, self._scores, self._spec.mode)
        if chosen is None:
            # its score was not defined in any epoch
            return {}
        metric = self._spec.metric.removeprefix("val_")
        scores, grid = score_test_cases(config, chosen.path, metric)
        return {CASES: scores, GRID: grid}

    def _write_error(self) -> None:
        folder = self._study.trial_folder(self._number)
        # the error may be that the disk is full
        with suppress(OSError):
            if folder.is_dir():
                write_durably(folder / ERROR_FILE, traceback.format_exc())

    def _write_settings(self, folder: Path, config: ModelTrainingConfig) -> None:
        write_durably(folder / CONFIG_FILE, yaml.safe_dump(config.flat(), sort_keys=False))
        placement = {**self._placement, "started": time.time()}
        write_durably(folder / PLACEMENT_FILE, yaml.safe_dump(placement, sort_keys=False))


class TrialClosed(BaseException):
    """Ends the training thread; not an `Exception`, so that no handler catches it."""


@cache
def _freeze_gc() -> None:
    """Leave what the libraries hold out of garbage collection, once a process.

    It never becomes garbage, and to go through it would take a quarter of a second between two
    trials.
    """
    gc.collect()
    gc.freeze()


@cache
def _threads_of_this_process() -> int:
    """Threads that Ray gave this process, for its share of the cores."""
    import torch

    return torch.get_num_threads()


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
