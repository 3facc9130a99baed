"""The Lightning module that trains, validates and tests a segmentation network."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from training.class_weights import VoxelCounts
from training.config import ModelTrainingConfig
from training.errors import PluginError
from training.ignored_voxels import IGNORE_INDEX
from training.inference import logit_slabs, predict_case
from training.logged_names import EPOCH, check_logged_name
from training.losses import DeepSupervisionLoss, build_loss
from training.lr_schedules import is_stepped_each_step
from training.metrics import SegmentationMetrics, SurfaceMetrics, predict_labels
from training.metrics.own import measure, own_metrics
from training.optimizers import get_optimizer
from training.partial_labels import hide_missing
from training.region_maps import classes_of_regions
from training.registry import MODULES

logger = logging.getLogger(__name__)

Stage = Literal["train", "val", "test"]
Batch = Mapping[str, Any] | Sequence[Tensor]


class SegmentationLightningModule(pl.LightningModule):
    """Trains `model` as `config` says.

    A training batch is a mapping `{"image": (b, c, *spatial), "label": (b, *spatial)}` or a
    pair of those; `label` has `IGNORE_INDEX` where a voxel is left out. A mapping may have
    `labelled` `(b, classes)`, see `training.partial_labels`. Training computes loss and metrics on
    patches. An evaluation batch is one such batch of whole cases, or a list of them; each case is
    predicted by a sliding window and metrics are averaged over cases.

    Logged for each stage, once an epoch and over all ranks: `{stage}_loss`,
    `{stage}_dice` (mean over the foreground classes, or regions), `{stage}_dice_{class}`,
    `{stage}_iou`, `{stage}_boundary_f1`, `{stage}_accuracy`; of whole cases also
    `{stage}_seconds_per_case`, which their prediction takes. Logged of the test cases, and by
    class as well: `test_nsd` at `config.surface_tolerance`, `test_hd95` and `test_assd` in mm, and
    `test_hd95_{class}_missing`, the cases in which there was no such distance (see
    `training.metrics`). They are measured on the grid of the cases as they are given, and left
    out where the size of a voxel is not known. `val_nsd` and `val_nsd_{class}` are logged where
    `config.monitor` is one of them. A score is nan where it is not defined in any case.

    Metrics of the user's own (`config.own_metrics`, and `config.monitor` if it is an import path)
    are logged under their import path, for test cases with `test_` before it. The x axis of all
    that is logged once an epoch is the epoch, counted from 1.

    To extend it, override a step, call the inherited one, and `self.log` what you add, under
    names that no field of the config has.

    Args:
        model: Network mapping images `(b, c, *spatial)` to logits `(b, k, *spatial)`; while
            training it may return a list of logits of decreasing resolution.
        config: Settings of the run. With a `target_label` only the channels of background
            and that label are used, as a binary problem.
        voxel_counts: Voxels of each class in the training labels, over all cases or of each;
            needed when `config.class_weights` is a preset other than `uniform`. Left out, they
            are read from `config.data_dir`.
        spacing: Size in mm of a voxel of the evaluation cases along each axis. Left out, it is
            read from `config.data_dir` if that is a preprocessed folder.

    Raises:
        ValueError: if class weights are to be computed and `config.data_dir` is not a
            preprocessed folder; on validation, if `config.monitor` is a surface score and the
            spacing is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelTrainingConfig,
        voxel_counts: VoxelCounts | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        preset = isinstance(config.class_weights, str) and config.class_weights != "uniform"
        if voxel_counts is None and preset:
            from training.data import PreprocessedDataset

            dataset = PreprocessedDataset.load(config.data_dir)
            voxel_counts = dataset.known_counts("train")
        self.loss = build_loss(config, voxel_counts)
        self.training_loss = DeepSupervisionLoss(self.loss)
        self._given_spacing = spacing
        num_classes, labels = config.task_classes, config.score_names
        self.regions = config.label_regions
        self.metrics = nn.ModuleDict(
            {
                f"{stage}_metrics": SegmentationMetrics(
                    num_classes,
                    tolerance=config.boundary_tolerance,
                    labels=labels,
                    regions=self.regions,
                )
                for stage in ("train", "val", "test")
            }
        )
        self.surface_metrics = nn.ModuleDict(
            {
                f"{stage}_surface": SurfaceMetrics(
                    num_classes,
                    config.surface_tolerance,
                    labels,
                    distances=stage == "test",
                    regions=self.regions,
                )
                for stage in ("val", "test")
            }
        )
        # a mapping of modules takes no names with a dot
        self.own_metrics = nn.ModuleDict(
            {
                stage: nn.ModuleList(MeanMetric(nan_strategy="ignore") for _ in own_metrics(config))
                for stage in ("val", "test")
            }
        )
        self.seconds = nn.ModuleDict(
            {f"{stage}_seconds": MeanMetric() for stage in ("val", "test")}
        )
        # Lightning's own mean divides by a truncated count where ranks have unlike shares
        self.losses = nn.ModuleDict(
            {
                f"{stage}_loss": MeanMetric(nan_strategy="disable")
                for stage in ("train", "val", "test")
            }
        )

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> Any:
        """Logits of the network."""
        return self.model(image)

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Log a metric, as Lightning does.

        Raises:
            ValueError: if its name is that of a config field, or taken.
        """
        check_logged_name(name, self.config.monitor)
        super().log(name, *args, **kwargs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch of patches; logs the training metrics."""
        image, label = _image_and_label(batch)
        outputs = self.model(image)
        scales = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        logits = [self._task_logits(scale) for scale in scales]
        return self._step("train", logits, label, _labelled(batch))

    def validation_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Predict whole cases and log the validation metrics."""
        self._evaluation_step("val", batch)

    def test_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Predict whole cases and log the test metrics."""
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Int[Tensor, b * spatial]:
        """Label map of each case in the batch, in the labels of the data."""
        image, _ = _image_and_label(batch)
        return self.to_labels(self.predict_logits(image))

    def predict_logits(
        self, image: Float[Tensor, "b c *spatial"], *, mirror_axes: Sequence[int] = ()
    ) -> Float[Tensor, "b k *spatial"]:
        """Logits of whole cases, by sliding window.

        They have two channels with a target label, and one a region with regions. They are where
        `image` is, which need not be the network's device.

        Args:
            image: Preprocessed cases.
            mirror_axes: Axes that windows are mirrored along as well, see
                `training.inference.mirrored`.
        """
        logits = predict_case(self.model, image, mirror_axes=mirror_axes, **self._windows())
        return self._task_logits(logits)

    def logit_slabs(
        self, image: Float[Tensor, "c *spatial"], *, mirror_axes: Sequence[int] = ()
    ) -> Iterator[Float[Tensor, "k slab *plane"]]:
        """What `predict_logits` gives of a case, slab by slab, see `training.inference`."""
        for slab in logit_slabs(self.model, image, mirror_axes=mirror_axes, **self._windows()):
            yield self._task_logits(slab[None])[0]

    def _windows(self) -> dict[str, Any]:
        return {
            "patch_size": self.config.known_patch_size,
            "overlap": self.config.window_overlap,
            "windows_per_batch": self.config.val_batch_size,
            "window_device": self.device,
        }

    def to_labels(self, logits: Float[Tensor, "b k *spatial"]) -> Int[Tensor, b * spatial]:
        """Label map of logits, with the values of the label files."""
        values = torch.tensor([0, *self.config.foreground_labels], device=logits.device)
        return values[self.classes_of_logits(logits)]

    def probabilities(self, logits: Float[Tensor, "b k *spatial"]) -> Float[Tensor, "b k *spatial"]:
        """Probabilities: softmax over exclusive classes, or the sigmoid of each region."""
        if self.regions is None:
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits)

    def classes(self, probabilities: Float[Tensor, "b k *spatial"]) -> Int[Tensor, "b *spatial"]:
        """Label map of probabilities, by classes: the greatest, or by regions in their order."""
        if self.regions is None:
            return predict_labels(probabilities)
        return classes_of_regions(probabilities, self.regions)

    def classes_of_logits(self, logits: Float[Tensor, "b k *spatial"]) -> Int[Tensor, "b *spatial"]:
        """Label map of logits, by classes."""
        return self.classes(logits if self.regions is None else torch.sigmoid(logits))

    def _evaluation_step(self, stage: Stage, batch: Batch | list[Batch]) -> None:
        several = isinstance(batch, list) and batch and not isinstance(batch[0], Tensor)
        cases = batch if several else [batch]
        for case in cases:
            image, label = _image_and_label(case)
            started = _now(image)
            logits = self.predict_logits(image)
            seconds = (_now(image) - started) / len(image)
            self._seconds_per_case(stage).update(seconds, len(image))
            self._step(stage, [logits], label, _labelled(case))

    def _step(
        self,
        stage: Stage,
        scales: list[Tensor],
        label: Int[Tensor, b * spatial],
        labelled: Bool[Tensor, "b c"] | None,
    ) -> Tensor:
        """Loss and metrics of one batch; the first of `scales` has full resolution."""
        target = self._task_target(label)
        if labelled is not None and self.config.target_class is not None:
            labelled = labelled[:, [0, self.config.target_class]]
        loss: Tensor = self.training_loss(scales, target, labelled)
        with torch.no_grad():
            prediction = self.classes_of_logits(scales[0])
            self._stage_metrics(stage).update(prediction, target, labelled)
            surface = self._stage_surface(stage)
            if surface is not None:
                surface.update(prediction, target, self._spacing, labelled)
            if stage != "train":
                self._measure_own(stage, prediction, target, labelled)
            self._stage_loss(stage).update(loss.detach(), label.shape[0])
        if self.config.debug:
            logger.info(
                "%s step: logits %s in [%.4g, %.4g], target %s, loss %.6g",
                stage,
                tuple(scales[0].shape),
                scales[0].min().item(),
                scales[0].max().item(),
                tuple(target.shape),
                loss.item(),
            )
        return loss

    def _measure_own(
        self,
        stage: Stage,
        prediction: Int[Tensor, b * spatial],
        target: Int[Tensor, b * spatial],
        labelled: Bool[Tensor, "b c"] | None,
    ) -> None:
        num_classes = self.config.task_classes
        if labelled is not None and own_metrics(self.config):
            prediction = hide_missing(prediction, labelled)
        for name, mean in self._own_metrics(stage):
            for one, other in zip(prediction, target, strict=True):
                mean.update(
                    measure(name, one, other, spacing=self._spacing, num_classes=num_classes)
                )

    def on_train_epoch_end(self) -> None:
        """Log the training metrics of the epoch."""
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics of the epoch."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_epoch("test")

    def _log_epoch(self, stage: Stage) -> None:
        metrics, loss = self._stage_metrics(stage), self._stage_loss(stage)
        scores = metrics.compute() | {"loss": loss.compute()}
        surface = self._stage_surface(stage)
        if surface is not None:
            scores |= surface.compute()
        own = self._own_metrics(stage)
        seconds = None if stage == "train" else self._seconds_per_case(stage)
        if seconds is not None:
            scores["seconds_per_case"] = seconds.compute()
        # a state that is reset in inference mode could not be changed by a training after it
        with torch.inference_mode(mode=False):
            of_own = {name: mean.compute() for name, mean in own}
            for accumulated in (metrics, loss, surface, seconds, *(mean for _, mean in own)):
                if accumulated is not None:
                    accumulated.reset()
        # compute() has already gathered the ranks; the values are the same on each
        named = {f"{stage}_{name}": value for name, value in scores.items()}
        named |= {name if stage == "val" else f"{stage}_{name}": of_own[name] for name in of_own}
        self.log_dict(
            {name: value.float() for name, value in named.items()},
            rank_zero_only=False,
            sync_dist=False,
        )
        # a test comes after the last epoch, which is counted already
        epoch = self.current_epoch + (stage != "test")
        super().log(EPOCH, float(epoch), rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and scheduler of the config; plateau with its monitor."""
        each_step = is_stepped_each_step(self.config.scheduler)
        optimizer, scheduler = get_optimizer(
            self.config, self.model, steps_per_epoch=self._steps_per_epoch() if each_step else 1
        )
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": self.config.monitor},
            }
        interval = "step" if each_step else "epoch"
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tell the epoch to a scheduler that the checkpoint's own run did not have."""
        if not checkpoint.get("lr_schedulers"):
            checkpoint["lr_schedulers"] = [{"epoch": checkpoint["epoch"]}]

    def _steps_per_epoch(self) -> int:
        assert self.trainer.max_epochs is not None
        return int(self.trainer.estimated_stepping_batches) // self.trainer.max_epochs

    def _stage_metrics(self, stage: Stage) -> SegmentationMetrics:
        metrics = self.metrics[f"{stage}_metrics"]
        assert isinstance(metrics, SegmentationMetrics)
        return metrics

    def _stage_loss(self, stage: Stage) -> MeanMetric:
        loss = self.losses[f"{stage}_loss"]
        assert isinstance(loss, MeanMetric)
        return loss

    def _seconds_per_case(self, stage: Stage) -> MeanMetric:
        seconds = self.seconds[f"{stage}_seconds"]
        assert isinstance(seconds, MeanMetric)
        return seconds

    def _own_metrics(self, stage: Stage) -> list[tuple[str, MeanMetric]]:
        """Metrics of the user's own that are measured in a stage, and their means."""
        if stage == "train":
            return []
        means = self.own_metrics[stage]
        assert isinstance(means, nn.ModuleList)
        named = []
        for name, mean in zip(own_metrics(self.config), means, strict=True):
            assert isinstance(mean, MeanMetric)
            named.append((name, mean))
        return named

    def _stage_surface(self, stage: Stage) -> SurfaceMetrics | None:
        """Surface metrics of a stage in which they are measured."""
        wanted = stage == "val" and self.config.monitor.startswith("val_nsd")
        if wanted and self._spacing is None:
            raise ValueError(
                f"monitor={self.config.monitor} needs the size of a voxel in mm, but "
                f"data_dir={str(self.config.data_dir)!r} is not a preprocessed folder: give the "
                "spacing to SegmentationLightningModule, or monitor another metric"
            )
        if not wanted and (stage != "test" or self._spacing is None):
            return None
        metrics = self.surface_metrics[f"{stage}_surface"]
        assert isinstance(metrics, SurfaceMetrics)
        return metrics

    @cached_property
    def _spacing(self) -> Sequence[float] | None:
        """Size of a voxel in mm; None if the user's own loaders do not give it."""
        from training.data import PreprocessedDataset
        from training.errors import DatasetError

        if self._given_spacing is not None:
            return self._given_spacing
        try:
            return PreprocessedDataset.load(self.config.data_dir).spacing
        except DatasetError as error:
            logger.info("surface distances are left out: %s", error)
            return None

    def _task_logits(self, logits: Tensor) -> Tensor:
        target = self.config.target_class
        return logits if target is None else logits[:, [0, target]]

    def _task_target(self, label: Tensor) -> Tensor:
        target = self.config.target_class
        if target is None:
            return label
        of_target = (label == target).to(label.dtype)
        # a label map of an unsigned type has no voxel that is left out
        return torch.where(label == IGNORE_INDEX, label, of_target)


def build_module(
    model: nn.Module,
    config: ModelTrainingConfig,
    module: type[SegmentationLightningModule] | None = None,
) -> SegmentationLightningModule:
    """The Lightning module that trains a network: that of the config, or a class given here.

    Raises:
        PluginError: if `config.lightning_module` leads to no subclass of
            `SegmentationLightningModule`.
    """
    name = config.lightning_module
    if module is None:
        module = SegmentationLightningModule if name is None else MODULES.resolve(name)
    if not (isinstance(module, type) and issubclass(module, SegmentationLightningModule)):
        raise PluginError(
            f"lightning_module={name or module!r} must be a subclass of "
            "training.lightning_module.SegmentationLightningModule"
        )
    return module(model, config)


def _now(image: Tensor) -> float:
    """The time, when all work that was given to the image's device is done."""
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter()


def _image_and_label(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["image"], batch["label"]
    image, label = batch
    return image, label


def _labelled(batch: Any) -> Tensor | None:
    """Which classes each case is labelled for; None where all are for all."""
    return batch.get("labelled") if isinstance(batch, Mapping) else None
