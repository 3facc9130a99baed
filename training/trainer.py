"""Fits and tests a segmentation network with Lightning, as a config says."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from training.callbacks import BestScore, SeedSteps, StopOnDivergence, get_callbacks
from training.checkpoints import BEST_CHECKPOINT, LAST_CHECKPOINT, DurableCheckpointIO
from training.hparams import Hyperparameter, hyperparameters_of, log_hyperparameters
from training.lightning_module import SegmentationLightningModule, build_module
from training.logged_names import EPOCH
from training.models.precision import FASTER_IN_BF16, cpu_computes_in_bf16

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from training.config import ModelTrainingConfig
    from training.ranks import GivenRanks

logger = logging.getLogger(__name__)


def choose_devices(config: ModelTrainingConfig) -> dict[str, Any]:
    """Lightning's device arguments for `config.gpus` on this machine.

    GPUs are used when there are any; otherwise `config.gpus` processes train on the CPU.

    Raises:
        ValueError: if the machine has GPUs, but fewer than asked for.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = config.gpus
    if wanted == 0 or available == 0:
        accelerator, devices = "cpu", max(wanted, 1)
    elif wanted > available:
        raise ValueError(
            f"gpus={wanted} but this machine has {available}: "
            f"choose gpus between 0 (train on the CPU) and {available}"
        )
    else:
        accelerator, devices = "gpu", wanted
    strategy = "ddp" if devices > 1 else "auto"
    return {"accelerator": accelerator, "devices": devices, "strategy": strategy}


def choose_precision(config: ModelTrainingConfig) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
    """Lightning's precision for `config.precision` on this machine.

    `auto` is fp16 with scaled gradients on a GPU, as nnU-Net trains. On a CPU it is bf16 where
    the CPU computes in it and the network gains by it, and else fp32.
    """
    if config.precision != "auto":
        return config.precision
    if choose_devices(config)["accelerator"] == "gpu":
        return "16-mixed"
    faster = config.model_name in FASTER_IN_BF16 and cpu_computes_in_bf16()
    return "bf16-mixed" if faster else "32-true"


class SegmentationTrainer:
    """Trains one network: TensorBoard under `config.log_dir`, best and last checkpoint kept.

    With `config.gpus` above 1 the script is started once a process, and gradients are averaged
    over the processes (DistributedDataParallel). Each process takes
    `config.train_batch_size` patches a step and its share of the validation and test cases, so
    metrics are those of one process. The loaders must give each rank its own items, as those
    of `training.data` do.

    With `config.accumulate` above 1 the optimizer steps once in so many batches. Where the batches
    of an epoch, of a loader of your own, leave a rest, the last step has the sum of the gradients
    of the rest, each divided by `accumulate` (as Lightning does it).

    Args:
        config: Settings of the run.
        model: A network, or a `SegmentationLightningModule` (or subclass) around one.
        train_loader: Batches of patches, see `training.data.get_dataloader`.
        val_loader: Whole cases that the monitored metric is computed on.
        test_loader: Whole cases for `test`.
        module: A subclass of `SegmentationLightningModule` that trains the network, in the place
            of the config's `lightning_module`.
        callbacks: Further Lightning callbacks, after those of `get_callbacks`.
        progress_bar: Whether Lightning shows its progress bar.
        hyperparameters: Columns of TensorBoard's HParams tab, which shows them beside the best
            value of the monitored metric; by default all fields that could be searched.
        ranks: Which process this is of those that train together, where something else has started
            them all.

    Raises:
        PluginError: if `config.lightning_module` cannot be used.
        ValueError: if the machine has fewer GPUs than `config.gpus`, or there are fewer
            validation or test cases than processes.

    Example:
        >>> config = ModelTrainingConfig(data_dir="data_preprocessed", max_epochs=100)
        >>> train, val, test = get_dataloaders(config)
        >>> trainer = SegmentationTrainer(config, build_model(config), train, val, test)
        >>> trainer.fit()
        >>> trainer.test()["test_dice"]
    """

    def __init__(
        self,
        config: ModelTrainingConfig,
        model: nn.Module,
        train_loader: DataLoader[Any],
        val_loader: DataLoader[Any],
        test_loader: DataLoader[Any] | None = None,
        *,
        module: type[SegmentationLightningModule] | None = None,
        callbacks: Sequence[Callback] = (),
        progress_bar: bool = True,
        hyperparameters: Sequence[Hyperparameter] | None = None,
        ranks: GivenRanks | None = None,
    ) -> None:
        self.config = config
        self._hyperparameters = hyperparameters
        self.module = (
            model
            if isinstance(model, SegmentationLightningModule)
            else build_module(model, config, module)
        )
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.test_loader = test_loader
        devices = choose_devices(config)
        if ranks is not None:
            devices["strategy"] = DDPStrategy(cluster_environment=ranks)
        for stage, loader in (("validation", val_loader), ("test", test_loader)):
            _check_a_case_each(stage, loader, devices["devices"])
        if config.debug:
            logging.getLogger("training").setLevel(logging.INFO)
        self.lightning = pl.Trainer(
            **devices,
            precision=choose_precision(config),
            max_epochs=config.max_epochs,
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            deterministic=config.deterministic,
            logger=TensorBoardLogger(str(config.log_dir), name=None, version=""),
            callbacks=[
                *get_callbacks(config),
                SeedSteps(config.seed, config.accumulate),
                StopOnDivergence(config.monitor),
                BestScore(config.monitor, config.monitor_mode, config.log_dir.name),
                *callbacks,
            ],
            plugins=[DurableCheckpointIO()],
            # our own loaders know their rank and repeat no case
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=_log_interval(config, train_loader, devices["devices"]),
            enable_progress_bar=progress_bar,
            enable_model_summary=config.debug,
        )

    @property
    def best_checkpoint(self) -> Path:
        """Where the checkpoint that is best by the monitored metric is kept."""
        return self.config.checkpoint_dir / f"{BEST_CHECKPOINT}.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest checkpoint is kept."""
        return self.config.checkpoint_dir / f"{LAST_CHECKPOINT}.ckpt"

    def fit(self, *, resume: bool | Path = False) -> dict[str, float]:
        """Train to `config.max_epochs` and return the metrics of the last epoch.

        A resumed run gives the metrics of one that was never interrupted: weights, moments of
        the optimizer, epoch and what scheduler and early stopping have seen come from the
        checkpoint, and all that is random depends on seed and step. An epoch that was cut off
        is trained again from its start.

        All settings come from the config, none from the checkpoint. So learning rate,
        scheduler, weight decay, loss, patience and `max_epochs` may be changed before a run is
        resumed, and hold from there on; of another optimizer the moments begin anew. The
        learning rate is the one that the config's schedule has at that epoch: when the
        `max_epochs` of a finished run is raised, poly, cosine and one_cycle go back up to
        where a run of that length would be.

        Args:
            resume: A checkpoint to go on from; or True for the last checkpoint of this run, if
                there is one.

        Raises:
            FileNotFoundError: if `resume` is a path and no file.
            TrainingDivergedError: if the loss or the weights are not finite.
        """
        checkpoint = self._checkpoint_to_resume(resume)
        pl.seed_everything(self.config.seed, workers=True, verbose=False)
        if self.config.debug:
            logger.info("training %s", self.config)
        self._log_hyperparameters()
        self.lightning.fit(
            self.module,
            self.train_loader,
            self.val_loader,
            ckpt_path=checkpoint,
            weights_only=True if checkpoint else None,
        )
        return self._metrics()

    def test(self, *, checkpoint: Path | None = None) -> dict[str, float]:
        """Metrics on the test cases, of the best checkpoint if there is one.

        Args:
            checkpoint: Weights to test instead.

        Raises:
            ValueError: if the trainer has no `test_loader`.
        """
        if self.test_loader is None:
            raise ValueError(
                "test() needs test cases, but test_loader is None: give the trainer a test_loader"
            )
        if checkpoint is None and self.best_checkpoint.is_file():
            checkpoint = self.best_checkpoint
        self.lightning.test(
            self.module,
            self.test_loader,
            ckpt_path=checkpoint,
            weights_only=True if checkpoint else None,
            verbose=False,
        )
        return self._metrics()

    def _checkpoint_to_resume(self, resume: bool | Path) -> Path | None:
        if resume is False:
            return None
        if resume is True:
            return self.last_checkpoint if self.last_checkpoint.is_file() else None
        if not resume.is_file():
            raise FileNotFoundError(f"there is no checkpoint {resume} to resume from")
        return resume

    def _metrics(self) -> dict[str, float]:
        # how fast the machine was is logged, but is not a result: those are the same in every run
        return {
            name: float(value)
            for name, value in self.lightning.callback_metrics.items()
            if not name.endswith("_seconds_per_case") and name != EPOCH
        }

    def _log_hyperparameters(self) -> None:
        if not self.lightning.is_global_zero:
            return
        shown = self._hyperparameters
        if shown is None:
            shown = hyperparameters_of(self.config)
        # a folder is not called by its name alone: two studies have a trial 0007 each
        run = "/".join(self.config.log_dir.absolute().parts[-3:])
        for experiment_logger in self.lightning.loggers:
            assert isinstance(experiment_logger, TensorBoardLogger)
            log_hyperparameters(experiment_logger, shown, self.config.monitor, run)
            # the file hparams.yaml has the whole config
            experiment_logger.hparams.update(self.config.flat())


def _log_interval(config: ModelTrainingConfig, loader: DataLoader[Any], processes: int) -> int:
    """Optimizer steps from one log to the next: there is one in each epoch."""
    # before the processes have met, a loader counts the batches of all
    batches = len(loader) // processes
    return max(1, min(50, batches // config.accumulate))


def _check_a_case_each(stage: str, loader: DataLoader[Any] | None, processes: int) -> None:
    # a rank without a case would leave the others waiting for its metrics
    if loader is None or processes == 1 or not isinstance(loader.dataset, Sized):
        return
    cases = len(loader.dataset)
    if cases < processes:
        raise ValueError(
            f"gpus={processes} but there are {cases} {stage} cases: each process needs one, so "
            f"choose gpus of at most {cases}"
        )
