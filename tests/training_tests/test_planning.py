"""Numbers for `patch_size: auto` and `train_batch_size: auto`."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.config import ModelTrainingConfig
from training.data import generate_phantom, get_dataloaders, prepare_dataset
from training.errors import NoFitError
from training.models import build_model
from training.models.footprint import training_bytes
from training.models.patch_plan import CPU_BATCH, CPU_LARGEST, LIBRARIES
from training.planning import CaseSizes, Memory, memory_at_hand, planned_config, planned_values

NARROW = {"filters": [4, 8, 8, 8, 8, 8, 8]}
CASES = CaseSizes((96.0, 160.0, 160.0), (2.0, 1.0, 1.0), 1000 * 96 * 160 * 160)


def config_of(**fields: Any) -> ModelTrainingConfig:
    values = {"model_name": "dynunet", "model_params": NARROW, "precision": "32-true", **fields}
    return ModelTrainingConfig(**values)


def gpu(gigabytes: float) -> Memory:
    return Memory(gigabytes * 1e9, False, "a GPU")


def test_a_config_without_numbers_says_how_to_get_them() -> None:
    config = config_of(patch_size="auto", train_batch_size="auto")
    assert config.flat()["patch_size"] == config.flat()["train_batch_size"] == "auto"
    with pytest.raises(ValueError, match="patch_size=auto has no number yet: plan it"):
        build_model(config)
    with pytest.raises(ValueError, match="train_batch_size=auto has no number yet"):
        training_bytes(config.model_copy(update={"patch_size": (16, 32, 32)}))


@pytest.mark.parametrize(
    ("field", "wrong", "way_out"),
    [
        ("patch_size", "atuo", "write auto, or three sizes"),
        ("patch_size", [8, 8], "patch_size"),
        ("train_batch_size", "all", "write auto, or a whole number"),
        ("train_batch_size", 0, "greater than or equal to 1"),
    ],
)
def test_wrong_words_and_numbers_are_refused(field: str, wrong: Any, way_out: str) -> None:
    with pytest.raises(ValueError, match=way_out):
        ModelTrainingConfig(**{field: wrong})


def test_more_memory_gives_larger_patches_and_then_more_of_them() -> None:
    config = config_of(patch_size="auto", train_batch_size="auto")
    plans = [planned_values(config, CASES, gpu(size)) for size in (0.1, 0.5, 8)]
    voxels = [math.prod(plan["patch_size"]) for plan in plans]
    assert voxels[0] < voxels[1] < voxels[2]
    assert [plan["train_batch_size"] for plan in plans][:2] == [2, 2]
    assert plans[2]["train_batch_size"] > 2
    # the network is planned by the spacing of the data, as the patch was
    assert {tuple(plan["target_spacing"]) for plan in plans} == {(2.0, 1.0, 1.0)}
    for plan, size in zip(plans, (0.1, 0.5, 8), strict=True):
        planned = config_of(**plan)
        assert training_bytes(planned) <= size * 1e9


def test_what_is_given_stays_and_the_rest_is_planned_around_it() -> None:
    memory = gpu(0.5)
    four = planned_values(config_of(patch_size="auto", train_batch_size=4), CASES, memory)
    two = planned_values(config_of(patch_size="auto", train_batch_size=2), CASES, memory)
    assert "train_batch_size" not in {*four, *two}
    assert math.prod(four["patch_size"]) < math.prod(two["patch_size"])
    few, many = (
        planned_values(config_of(patch_size=patch, train_batch_size="auto"), CASES, memory)
        for patch in ((64, 96, 96), (16, 32, 32))
    )
    assert set(few) == set(many) == {"train_batch_size"}
    assert 1 <= few["train_batch_size"] < many["train_batch_size"]
    assert planned_values(config_of(), CASES, memory) == {}


def test_recomputed_activations_make_room() -> None:
    sizes = [
        math.prod(planned_values(config, CASES, gpu(0.15))["patch_size"])
        for given in (False, True)
        for config in [config_of(patch_size="auto", gradient_checkpointing=given)]
    ]
    assert sizes[0] < sizes[1]


def test_patches_of_unetr_are_multiples_of_its_tokens() -> None:
    params = {"hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "feature_size": 4}
    config = config_of(model_name="unetr", model_params=params, patch_size="auto")
    sizes = CaseSizes((36.0, 50.0, 35.0), (1.0, 1.0, 1.0), 1e9)
    values = planned_values(config, sizes, gpu(1))
    assert values["patch_size"] == [48, 64, 48]
    build_model(config.model_copy(update={"patch_size": (48, 64, 48)}))


@pytest.mark.parametrize("fields", [{"patch_size": "auto"}, {"train_batch_size": "auto"}])
def test_where_nothing_fits_network_memory_and_way_out_are_named(fields: dict[str, Any]) -> None:
    for given, way_out in ((False, "set gradient_checkpointing: true, or choose a smaller"),
                           (True, ": choose a smaller network")):  # fmt: skip
        config = config_of(gradient_checkpointing=given, **fields)
        with pytest.raises(NoFitError) as error:
            planned_values(config, CASES, gpu(0.0001))
        assert "a training step of dynunet takes more than 0.0001 GB" in str(error.value)
        assert way_out in str(error.value)
        # a trial ends as out of memory by it
        assert isinstance(error.value, MemoryError)


def test_the_memory_is_the_trials_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = memory_at_hand(config_of(gpus=0))
    assert on_cpu.on_cpu
    assert 0 < on_cpu.bytes <= 3 * 2**30
    assert memory_at_hand(config_of(gpus=0), most=1e8).bytes == 1e8
    card = SimpleNamespace(total_memory=24e9, name="Card")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    found = {share: memory_at_hand(config_of(gpus=1), share).bytes for share in (0.5, 1.0, 2.0)}
    assert found == {0.5: 12e9 - LIBRARIES, 1.0: 24e9 - LIBRARIES, 2.0: 24e9 - LIBRARIES}
    assert memory_at_hand(config_of(gpus=1), 1.0, 8e9).bytes == 8e9 - LIBRARIES
    assert memory_at_hand(config_of(gpus=0)).on_cpu


def test_a_planned_config_trains_on_prepared_data(tmp_path: Path) -> None:
    raw = generate_phantom(tmp_path / "raw", num_cases=5, seed=0)
    folder = prepare_dataset(raw, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    config = config_of(
        data_dir=folder, patch_size="auto", train_batch_size="auto", gpus=0, num_workers=0
    )
    planned = planned_config(config)
    assert config.patch_size == "auto"
    assert math.prod(planned.known_patch_size) <= CPU_LARGEST
    assert planned.known_batch_size == CPU_BATCH
    batch = next(iter(get_dataloaders(planned)[0]))
    assert batch["image"].shape == (CPU_BATCH, 1, *planned.known_patch_size)
    assert build_model(planned).eval()(batch["image"]).shape[2:] == planned.known_patch_size
