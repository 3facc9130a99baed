from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from training.data import get_dataloaders, prepare_dataset, resolve_data_dir
from training.inference import predict_case
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from training.optimizers import get_optimizer
from tuner.spec.load import load_spec, parse_spec

FOLDER = Path(__file__).parents[3] / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))

VARIED = {
    "optimizer",
    "learning_rate",
    "weight_decay",
    "momentum",
    "scheduler",
    "class_weights",
    "loss",
}


def test_the_files_are_there() -> None:
    names = [path.name for path in FILES]
    assert names == [
        "dformer.yaml",
        "dformer_hippocampus.yaml",
        "dformer_liver.yaml",
        "networks.yaml",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_space_is_valid_and_covers_what_matters(path: Path) -> None:
    spec = load_spec(path)
    names = dict(spec.space.items())
    # each network has an optimizer and a schedule of its own, by its recipe
    own = {"optimizer", "scheduler"} if "model_name" in names else set()
    assert set(names) >= VARIED - own
    assert spec.rungs()
    assert spec.expected_epochs() < spec.search.num_trials * spec.max_epochs
    rng = random.Random(0)
    for _ in range(20):
        config = spec.trial_config(spec.space.sample(rng))
        with torch.device("meta"):
            model = build_model(config)
        get_optimizer(config, model)
        SegmentationLightningModule(model, config, voxel_counts=[1000] * config.num_classes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_space_says_how_to_run_it(path: Path) -> None:
    assert f"tune run search_spaces/{path.name}" in path.read_text()


def test_each_network_of_the_space_of_networks_has_its_recipe_and_its_ranges() -> None:
    spec = load_spec(FOLDER / "networks.yaml")
    rng = random.Random(0)
    optimizers, ranges = {}, {}
    for _ in range(60):
        values = spec.space.sample(rng)
        name = values["model_name"]
        optimizers[name] = spec.trial_config(values).optimizer
        ranges[name] = {field for field in values if field.startswith("model_params.")}
    sgd = {name for name, optimizer in optimizers.items() if optimizer == "sgd"}
    assert sgd == {"resenc_unet", "dynunet"}
    assert set(optimizers) == {"resenc_unet", "dynunet", "mednext", "segresnet", "dformer3d"}
    assert all(ranges.values())
    assert not ranges["mednext"] & ranges["dynunet"]


PATCHES = """\
metric: val_dice
config:
  data_dir: phantom
  model_params: {embed_dim: 8, depths: [1, 1], num_heads: [1, 2], group_size: [2, 4, 4]}
  steps_per_epoch: 1
  window_overlap: 0
space:
  augmentation: {choice: [none, flip, default, nnunet]}
  augmentation_strength: {uniform: [0.5, 1.5], when: {augmentation: [default, nnunet]}}
  patch_size: {choice: {small: [10, 24, 24], odd: [13, 33, 27], flat: [4, 40, 40]}}
"""


def test_patch_size_and_augmentation_can_be_searched() -> None:
    spec = parse_spec(PATCHES, source="patches.yaml")
    data_dir = prepare_dataset(resolve_data_dir("phantom"), spec.base_config())
    rng = random.Random(0)
    seen = set()
    for _ in range(12):
        values = spec.space.sample(rng)
        config = spec.trial_config(values)
        assert ("augmentation_strength" in values) == (config.augmentation in ("default", "nnunet"))
        seen.add((config.patch_size, config.augmentation))
        config.data_dir = data_dir
        train, val, _ = get_dataloaders(config)
        batch = next(iter(train))
        assert batch["image"].shape[2:] == batch["label"].shape[1:] == config.patch_size
        network = build_model(config).eval()
        with torch.no_grad():
            assert network(batch["image"]).shape[2:] == config.patch_size
            whole = next(iter(val))[0]["image"][..., :40, :40]
            logits = predict_case(network, whole, patch_size=config.patch_size, overlap=0)
        assert logits.shape[2:] == whole.shape[2:]
    assert {size for size, _ in seen} == {(10, 24, 24), (13, 33, 27), (4, 40, 40)}
    assert len({name for _, name in seen}) >= 3
