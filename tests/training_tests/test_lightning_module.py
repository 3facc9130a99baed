from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.callbacks import StopOnDivergence, get_callbacks
from training.class_weights import CLASS_WEIGHTS
from training.config import ModelTrainingConfig
from training.errors import TrainingDivergedError
from training.inference import predict_case
from training.lightning_module import SegmentationLightningModule
from training.lr_schedules import LR_SCHEDULES
from training.metrics import dice_coefficient, surface_scores
from training.models import build_model
from training.optimizers import OPTIMIZERS
from training.trainer import SegmentationTrainer, choose_devices

STAGE_METRICS = ("loss", "dice", "dice_1", "dice_2", "iou", "boundary_f1", "accuracy")


class Blobs(Dataset[dict[str, Tensor]]):
    """Cubes of two classes in noise; `whole` cases differ in shape."""

    def __init__(self, count: int, *, whole: bool) -> None:
        self.count = count
        self.whole = whole

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        shape = (8, 16 + (index % 3) * self.whole, 16)
        label = torch.zeros(shape, dtype=torch.int64)
        label[2:6, 3:9, 3:13] = 1
        label[3:5, 4:7, 5:9] = 2
        image = label[None] * 1.5 + 0.3 * torch.randn((1, *shape), generator=generator)
        return {"image": image, "label": label}


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    train = DataLoader(Blobs(6, whole=False), batch_size=2)
    cases = DataLoader(
        Blobs(3, whole=True),
        batch_size=1,
        collate_fn=lambda cases: [
            {"image": case["image"][None], "label": case["label"][None]} for case in cases
        ],
    )
    return train, cases


def tiny_config(folder: Path, **values: Any) -> ModelTrainingConfig:
    settings: dict[str, Any] = {
        "model_name": "unet3d",
        "model_params": {"channels": [4, 8], "strides": [2], "num_res_units": 0},
        "patch_size": (8, 16, 16),
        "max_epochs": 2,
        "learning_rate": 1e-2,
        "gpus": 0,
        "log_dir": folder / "logs",
        "checkpoint_dir": folder / "checkpoints",
    }
    return ModelTrainingConfig(**{**settings, **values})


def tiny_trainer(config: ModelTrainingConfig, **options: Any) -> SegmentationTrainer:
    train, cases = loaders()
    return SegmentationTrainer(
        config, build_model(config), train, cases, cases, progress_bar=False, **options
    )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Lightning advises more loader workers; these tests want none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        yield


def test_fit_and_test_log_every_metric(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, max_epochs=8))
    metrics = trainer.fit()
    for stage in ("train", "val"):
        assert {f"{stage}_{name}" for name in STAGE_METRICS} <= set(metrics)
    assert metrics["val_dice"] > 0.3
    tested = trainer.test()
    assert {f"test_{name}" for name in STAGE_METRICS} <= set(tested)
    assert trainer.best_checkpoint.is_file()
    assert trainer.last_checkpoint.is_file()
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_validation_metrics_are_means_over_whole_cases(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=3, loss="cross_entropy")
    trainer = tiny_trainer(config)
    metrics = trainer.fit()
    module = trainer.module.eval()
    expected = []
    losses = []
    for index in range(3):
        case = Blobs(3, whole=True)[index]
        image, label = case["image"][None], case["label"][None]
        with torch.no_grad():
            logits = predict_case(module.model, image, patch_size=config.patch_size)
        expected.append(dice_coefficient(logits, label, num_classes=3, reduction="none")[0, 1:])
        losses.append(nn.functional.cross_entropy(logits, label))
    by_class = torch.stack(expected).nanmean(dim=0)
    assert metrics["val_dice_1"] == pytest.approx(float(by_class[0]), abs=1e-5)
    assert metrics["val_dice_2"] == pytest.approx(float(by_class[1]), abs=1e-5)
    assert metrics["val_dice"] == pytest.approx(float(by_class.nanmean()), abs=1e-5)
    assert metrics["val_loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def with_spacing(config: ModelTrainingConfig) -> SegmentationTrainer:
    train, cases = loaders()
    module = SegmentationLightningModule(build_model(config), config, spacing=(2.0, 1.0, 1.0))
    return SegmentationTrainer(config, module, train, cases, cases, progress_bar=False)


@pytest.mark.parametrize("weights", ["uniform", [1, 2, 4], *CLASS_WEIGHTS])
def test_class_weights_of_every_kind_reach_the_loss(tmp_path: Path, weights: Any) -> None:
    config = tiny_config(tmp_path, class_weights=weights)
    counts = None if isinstance(weights, list) or weights == "uniform" else [100, 20, 5]
    module = SegmentationLightningModule(build_model(config), config, voxel_counts=counts)
    if weights == "uniform":
        assert module.loss.weight is None
    else:
        background, first, second = module.loss.weight.tolist()
        assert background < first < second


def test_surface_scores_of_test_cases_are_in_mm(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_epochs=3, surface_tolerance=1.5)
    trainer = with_spacing(config)
    assert not any("nsd" in name or "hd95" in name for name in trainer.fit())
    tested = trainer.test(checkpoint=trainer.last_checkpoint)
    module = trainer.module.eval()
    found = []
    for case in (Blobs(3, whole=True)[index] for index in range(3)):
        with torch.no_grad():
            logits = module.predict_logits(case["image"][None])
        found.append(
            surface_scores(logits, case["label"][None], tolerance=1.5, spacing=(2.0, 1.0, 1.0))
        )
    for label in (1, 2):
        for name in ("nsd", "hd95", "assd"):
            by_case = torch.cat([getattr(scores, name)[:, label] for scores in found])
            expected = float(by_case.nanmean())
            assert tested[f"test_{name}_{label}"] == pytest.approx(expected, nan_ok=True)
        missing = sum(int(scores.missing[0, label]) for scores in found)
        assert tested[f"test_hd95_{label}_missing"] == missing


def test_surface_scores_need_the_size_of_a_voxel(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, max_epochs=1))
    trainer.fit()
    assert not any("nsd" in name for name in trainer.test())
    config = tiny_config(tmp_path, max_epochs=1, monitor="val_nsd")
    with pytest.raises(ValueError, match="monitor=val_nsd needs the size of a voxel"):
        tiny_trainer(config).fit()


def test_surface_dice_can_be_monitored(tmp_path: Path) -> None:
    metrics = with_spacing(tiny_config(tmp_path, monitor="val_nsd", target_label=2)).fit()
    assert 0 <= metrics["val_nsd"] <= 1
    assert metrics["val_nsd"] == metrics["val_nsd_2"]
    assert not any("hd95" in name for name in metrics)


def test_a_module_is_trained_after_it_was_validated(tmp_path: Path) -> None:
    expected = tiny_trainer(tiny_config(tmp_path / "a", max_epochs=1)).fit()
    trainer = tiny_trainer(tiny_config(tmp_path / "b", max_epochs=1))
    trainer.lightning.validate(trainer.module, trainer.val_loader, verbose=False)
    assert trainer.fit()["val_dice"] == pytest.approx(expected["val_dice"], nan_ok=True)


def test_same_seed_gives_the_same_metrics(tmp_path: Path) -> None:
    first = tiny_trainer(tiny_config(tmp_path / "a")).fit()
    again = tiny_trainer(tiny_config(tmp_path / "b")).fit()
    other = tiny_trainer(tiny_config(tmp_path / "c", seed=1)).fit()
    assert first == pytest.approx(again, nan_ok=True, abs=0)
    assert first["train_loss"] != other["train_loss"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    schedule = {"scheduler": "step", "step_size": 1, "lr_decay": 0.5}
    whole = tiny_trainer(tiny_config(tmp_path / "a", max_epochs=4, **schedule)).fit()

    class CutOff(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("cut off")

    config = tiny_config(tmp_path / "b", max_epochs=4, **schedule)
    with pytest.raises(RuntimeError, match="cut off"):
        tiny_trainer(config, callbacks=[CutOff()]).fit()
    resumed = tiny_trainer(config)
    assert resumed.fit(resume=True) == pytest.approx(whole, nan_ok=True, abs=1e-6)
    learning_rate = resumed.lightning.optimizers[0].param_groups[0]["lr"]
    assert learning_rate == pytest.approx(1e-2 * 0.5**4)


def test_max_epochs_of_a_finished_run_can_be_raised(tmp_path: Path) -> None:
    tiny_trainer(tiny_config(tmp_path, max_epochs=1)).fit()
    longer = tiny_trainer(tiny_config(tmp_path, max_epochs=3))
    longer.fit(resume=True)
    assert longer.lightning.current_epoch == 3


def test_a_moved_run_keeps_its_best(tmp_path: Path) -> None:
    before = tiny_trainer(tiny_config(tmp_path / "a", max_epochs=8))
    before.fit()
    best = torch.load(before.best_checkpoint, weights_only=True)
    (tmp_path / "a").rename(tmp_path / "b")
    after = tiny_trainer(tiny_config(tmp_path / "b", max_epochs=10, learning_rate=50.0))
    # what a wild learning rate makes of it is worse
    assert after.fit(resume=True)["val_dice"] < before.lightning.callback_metrics["val_dice"]
    kept = torch.load(after.best_checkpoint, weights_only=True)
    assert kept["epoch"] == best["epoch"]
    checkpoint = after.lightning.checkpoint_callback
    assert isinstance(checkpoint, pl.callbacks.ModelCheckpoint)
    assert Path(checkpoint.best_model_path) == after.best_checkpoint


def test_resuming_from_a_missing_checkpoint_names_it(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        trainer.fit(resume=tmp_path / "nowhere.ckpt")


def test_target_label_trains_a_binary_problem(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, target_label=2, max_epochs=8))
    metrics = trainer.fit()
    assert "val_dice_2" in metrics
    assert "val_dice_1" not in metrics
    assert metrics["val_dice"] == metrics["val_dice_2"]
    module = trainer.module.eval()
    case = Blobs(1, whole=True)[0]
    with torch.no_grad():
        logits = module.predict_logits(case["image"][None])
        labels = module.to_labels(logits)
        every_channel = module.model(case["image"][None])
    assert logits.shape[1] == 2
    assert every_channel.shape[1] == 3
    assert torch.allclose(logits, every_channel[:, [0, 2]], atol=1e-5)
    assert set(labels.unique().tolist()) <= {0, 2}


def test_a_step_can_be_extended(tmp_path: Path) -> None:
    class WithBackgroundShare(SegmentationLightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("background_share", (batch["label"] == 0).float().mean())
            return loss

    config = tiny_config(tmp_path, max_epochs=1)
    train, cases = loaders()
    module = WithBackgroundShare(build_model(config), config)
    trainer = SegmentationTrainer(config, module, train, cases, progress_bar=False)
    assert 0.5 < trainer.fit()["background_share"] < 1
    with pytest.raises(ValueError, match="test_loader is None"):
        trainer.test()


def test_deep_supervision_trains_every_scale(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        model_name="dformer3d",
        model_params={
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2],
            "deep_supervision": True,
        },
        max_epochs=1,
    )
    trainer = tiny_trainer(config)
    metrics = trainer.fit()
    assert metrics["train_loss"] > 0
    fresh = build_model(config).state_dict()
    trained = trainer.module.model.state_dict()
    heads = [name for name in fresh if "head" in name and name.endswith("weight")]
    assert heads
    assert all(not torch.equal(fresh[name], trained[name]) for name in heads)


@pytest.mark.parametrize("scheduler", sorted(LR_SCHEDULES))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("warmup", [0, 1])
def test_every_optimizer_and_scheduler_trains(
    tmp_path: Path, optimizer: str, scheduler: str, warmup: int
) -> None:
    config = tiny_config(tmp_path, optimizer=optimizer, scheduler=scheduler, warmup_epochs=warmup)
    trainer = tiny_trainer(config)
    assert "val_dice" in trainer.fit()


def test_plateau_reaches_lightning_with_its_monitor(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, scheduler="plateau", monitor="val_loss", monitor_mode="min")
    module = SegmentationLightningModule(build_model(config), config)
    schedule: Any = module.configure_optimizers()
    assert schedule["lr_scheduler"]["monitor"] == "val_loss"


def test_divergence_ends_the_run_with_its_place(tmp_path: Path) -> None:
    class Explode(pl.Callback):
        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    next(pl_module.parameters()).fill_(float("nan"))

    with pytest.raises(TrainingDivergedError, match=r"training loss is nan at step 4 \(epoch 2\)"):
        tiny_trainer(tiny_config(tmp_path), callbacks=[Explode()]).fit()


def test_callbacks_are_those_of_the_config(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, early_stopping_patience=7, monitor="val_loss", monitor_mode="min"
    )
    checkpoint, early_stopping, learning_rate = get_callbacks(config)
    assert isinstance(checkpoint, pl.callbacks.ModelCheckpoint)
    assert (checkpoint.monitor, checkpoint.mode) == ("val_loss", "min")
    assert isinstance(early_stopping, pl.callbacks.EarlyStopping)
    assert early_stopping.patience == 7
    assert isinstance(learning_rate, pl.callbacks.LearningRateMonitor)
    config.early_stopping_patience = None
    assert len(get_callbacks(config)) == 2
    assert not any(isinstance(callback, StopOnDivergence) for callback in get_callbacks(config))


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, max_epochs=20, early_stopping_patience=2, learning_rate=1e-12, optimizer="sgd"
    )
    trainer = tiny_trainer(config)
    trainer.fit()
    assert trainer.lightning.current_epoch < 6


def test_debug_logs_shapes_and_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="training"):
        tiny_trainer(tiny_config(tmp_path, debug=True, max_epochs=1)).fit()
    assert "train step: logits (2, 3, 8, 16, 16)" in caplog.text
    assert "val step" in caplog.text


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_on_the_cpu(tmp_path: Path, precision: str) -> None:
    assert "val_dice" in tiny_trainer(tiny_config(tmp_path, precision=precision)).fit()


def test_gradient_clipping_reaches_lightning(tmp_path: Path) -> None:
    trainer = tiny_trainer(tiny_config(tmp_path, gradient_clip=0.5))
    assert trainer.lightning.gradient_clip_val == 0.5


def test_devices_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelTrainingConfig(gpus=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_devices(config) == {"accelerator": "gpu", "devices": 4, "strategy": "ddp"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="gpus=4 but this machine has 1"):
        choose_devices(config)
    config.gpus = 0
    assert choose_devices(config)["accelerator"] == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config.gpus = 1
    assert choose_devices(config) == {"accelerator": "cpu", "devices": 1, "strategy": "auto"}


def test_two_dimensional_images_are_predicted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    module = SegmentationLightningModule(nn.Conv2d(1, 3, 3, padding=1), config)
    logits = module.predict_logits(torch.randn(2, 1, 20, 30))
    assert logits.shape == (2, 3, 20, 30)
