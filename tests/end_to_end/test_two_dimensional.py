"""2D networks on pictures and on thick slices, from files to a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_data import make_data

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloaders, prepare_dataset
from training.data.patches.mirroring import trained_mirror_axes
from training.models import build_model
from training.trainer import SegmentationTrainer
from tuner.init.candidates import make_plan
from tuner.init.device import Device
from tuner.init.survey import survey_data

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]

NETWORK: dict[str, Any] = {"model_name": "dynunet", "model_params": {"filters": [4, 8, 8, 8, 8]}}


def discs(seed: int, depth: int, size: int = 40) -> np.ndarray:
    """Label map (right, anterior, superior) with a disc in each slice."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, : size + 6]
    slices = []
    for _ in range(depth):
        row, column = rng.uniform(14, size - 14, 2)
        slices.append(np.hypot(rows - row, columns - column) < rng.uniform(5, 9))
    return np.stack(slices, axis=-1).astype(np.uint8)


def data_of(folder: Path, depth: int, thickness: float = 1.0) -> Path:
    cases = {f"case_{number:02}": discs(number, depth) for number in range(6)}
    affine = np.diag([1.0, 1.0, thickness, 1.0])
    return make_data(folder, cases, names=("background", "disc"), affine=affine)


@pytest.mark.parametrize(("depth", "thickness"), [(1, 1.0), (1, 999.0), (5, 6.0)])
def test_slices_are_learnt_and_predicted(tmp_path: Path, depth: int, thickness: float) -> None:
    raw = data_of(tmp_path / "raw", depth, thickness)
    fields = {
        **NETWORK,
        "spatial_dims": 2,
        "num_classes": 2,
        "patch_size": (16, 32, 32),
        "steps_per_epoch": 2,
        "max_epochs": 1,
        "gpus": 0,
        "num_workers": 0,
        "val_batch_size": 8,
        "test_fraction": 0.2,
        "log_dir": tmp_path / "logs",
        "checkpoint_dir": tmp_path / "checkpoints",
    }
    folder = prepare_dataset(raw, ModelTrainingConfig(**fields), cache_dir=tmp_path / "cache")
    dataset = PreprocessedDataset.load(folder)
    assert {entry.shape for entry in dataset.cases.values()} == {(1, depth, 46, 40)}
    config = ModelTrainingConfig(**fields, data_dir=folder)
    train, val, test = get_dataloaders(config)
    batch = next(iter(train))
    assert batch["image"].shape == (2, 1, 1, 32, 32)
    trainer = SegmentationTrainer(config, build_model(config), train, val, test, progress_bar=False)
    metrics = trainer.fit()
    assert np.isfinite(metrics["val_loss"])
    scores = trainer.test()
    assert {"test_dice", "test_nsd"} <= scores.keys()
    image = torch.from_numpy(np.array(dataset.image(dataset.splits["val"][0])))[None]
    module = trainer.module.eval()
    with torch.no_grad():
        logits = module.predict_logits(image)
        assert logits.shape == (1, 2, depth, 46, 40)
        alone = module.predict_logits(image[:, :, :1])
    torch.testing.assert_close(alone, logits[:, :, :1], rtol=1e-4, atol=1e-5)


def test_a_slice_is_never_resampled_across(tmp_path: Path) -> None:
    """Files of one slice may say anything of its thickness."""
    thin, thick = (data_of(tmp_path / str(size), 1, size) for size in (1.0, 300.0))
    # nnU-Net writes 999 mm where there is no thickness
    for source in (thick / "imagesTr", thick / "labelsTr"):
        for path in list(source.iterdir())[:2]:
            path.replace(thin / source.name / path.name)
    folder = prepare_dataset(thin, ModelTrainingConfig(num_classes=2), cache_dir=tmp_path / "cache")
    cases = PreprocessedDataset.load(folder).cases
    assert {entry.shape[1] for entry in cases.values()} == {1}


def test_prediction_is_mirrored_within_slices_alone() -> None:
    names = ["background", "disc"]
    for dims, axes in ((2, (1, 2)), (3, (0, 1, 2))):
        config = ModelTrainingConfig(spatial_dims=dims)
        assert trained_mirror_axes(config, names) == axes
    assert trained_mirror_axes(ModelTrainingConfig(patch_size=(1, 8, 8)), names) == (1, 2)


def test_init_plans_2d_networks_for_pictures_alone(tmp_path: Path, private_cache: Path) -> None:
    device = Device("cuda", 8e9, 1, 4, False, "a GPU")
    pictures = survey_data(data_of(tmp_path / "pictures", 1))
    assert pictures.base_config().spatial_dims == 2
    plan = make_plan(pictures, device)
    assert plan.patch.patch_size == (1, 48, 40)
    assert pictures.base_config().known_patch_size[0] == 1
    volumes = survey_data(data_of(tmp_path / "volumes", 12))
    assert volumes.base_config().spatial_dims == 3
