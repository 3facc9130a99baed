"""The known good default of each network."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import ModelName, ModelTrainingConfig, OptimizerName
from training.registry import MODELS, OPTIMIZERS
from tuner.errors import SpecError
from tuner.spec.load import load_resolved_spec, parse_spec
from tuner.spec.recipes import RECIPES, recipe_values

WIDE = """
config: {{model_name: {name}, max_epochs: {epochs}}}
space:
  learning_rate: {{loguniform: [1e-6, 1]}}
  optimizer: {{choice: [adam, adamw, sgd]}}
  momentum: {{uniform: [0.5, 0.995], when: {{optimizer: sgd}}}}
  nesterov: {{choice: [false, true], when: {{optimizer: sgd}}}}
  weight_decay: {{loguniform: [1e-7, 1e-1]}}
  scheduler: {{choice: [none, step, cosine, poly]}}
  warmup_epochs: {{randint: [0, 20], when: {{scheduler: [cosine, poly]}}}}
  poly_power: {{uniform: [0.5, 2], when: {{scheduler: poly}}}}
  loss: {{choice: [cross_entropy, dice_ce]}}
"""


def test_every_network_has_a_recipe_with_its_source() -> None:
    assert set(RECIPES) == set(MODELS)
    for recipe in RECIPES.values():
        assert "et al." in recipe.source or "MONAI" in recipe.source
        assert recipe.optimizer in recipe.optimizers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epochs", [1, 3, 300])
def test_a_recipe_is_a_valid_config(name: ModelName, optimizer: OptimizerName, epochs: int) -> None:
    values = recipe_values(name, optimizer, epochs)
    ModelTrainingConfig(model_name=name, optimizer=optimizer, max_epochs=epochs, **values)


def test_the_default_of_nnunets_network_is_nnunets_training() -> None:
    """Isensee et al., 2021: SGD 0.01, Nesterov momentum 0.99, 3e-5, poly 0.9, Dice + CE."""
    point = parse_spec(WIDE.format(name="dynunet", epochs=1000), source="s").default_point()
    assert point == {
        "learning_rate": 0.01,
        "optimizer": "sgd",
        "momentum": 0.99,
        "nesterov": True,
        "weight_decay": 3e-5,
        "scheduler": "poly",
        "warmup_epochs": 0,
        "poly_power": 0.9,
        "loss": "dice_ce",
    }


def test_the_default_of_a_transformer_warms_up_and_decays() -> None:
    point = parse_spec(WIDE.format(name="dformer3d", epochs=100), source="s").default_point()
    assert point == {
        "learning_rate": 8e-4,
        "optimizer": "adamw",
        "weight_decay": 1e-5,
        "scheduler": "cosine",
        "warmup_epochs": 5,
        "loss": "dice_ce",
    }


@pytest.mark.parametrize(
    ("fixed", "learning_rate"), [("optimizer: sgd", 0.01), ("optimizer: adamw", 8e-4), ("", 8e-4)]
)
def test_the_learning_rate_is_that_of_the_optimizer_which_is_used(
    fixed: str, learning_rate: float
) -> None:
    text = f"config: {{{fixed}}}\nspace: {{learning_rate: {{loguniform: [1e-6, 1]}}}}"
    spec = parse_spec(text, source="s")
    assert spec.default_point() == {"learning_rate": learning_rate}


def test_a_point_that_names_its_optimizer_has_the_learning_rate_of_it() -> None:
    text = WIDE.format(name="dformer3d", epochs=30) + "search: {start_from: [{optimizer: sgd}]}"
    (point,) = parse_spec(text, source="s").start_points()
    assert (point["optimizer"], point["learning_rate"], point["momentum"]) == ("sgd", 0.01, 0.99)


def test_what_the_file_fixes_stays() -> None:
    text = """
config: {model_name: dynunet, loss: focal}
space: {momentum: {uniform: [0.5, 0.9]}, scheduler: {choice: [cosine, step]}}
"""
    spec = parse_spec(text, source="s")
    # the nearest of momentum; of the scheduler, whose recipe is no option, the first
    assert spec.default_point() == {"momentum": 0.9, "scheduler": "cosine"}
    assert spec.trial_config(spec.default_point()).loss == "focal"


FEW = "config: {{model_name: {name}}}\nspace: {{seed: {{randint: [0, 9]}}}}\n"


def test_what_a_space_does_not_name_is_the_recipe_of_the_trials_network() -> None:
    text = """
config: {max_epochs: 100, weight_decay: 0.5}
space:
  model_name: {choice: [dynunet, segresnet]}
  scheduler: {choice: [none, step], when: {model_name: segresnet}}
"""
    spec = parse_spec(text, source="s")
    plain = spec.trial_config({"model_name": "dynunet"})
    assert (plain.optimizer, plain.learning_rate, plain.nesterov) == ("sgd", 0.01, True)
    assert (plain.loss, plain.augmentation, plain.gradient_clip) == ("dice_ce", "nnunet", 12)
    other = spec.trial_config({"model_name": "segresnet", "scheduler": "step"})
    assert (other.optimizer, other.learning_rate, other.warmup_epochs) == ("adamw", 2e-4, 5)
    # what is named stays, also where it takes no part
    assert plain.weight_decay == other.weight_decay == 0.5
    assert other.scheduler == "step"
    assert plain.scheduler == ModelTrainingConfig().scheduler


def test_the_first_trial_of_a_space_of_networks_has_the_optimizer_of_its_own() -> None:
    text = """
space:
  model_name: {choice: [dynunet, segresnet]}
  learning_rate: {loguniform: [1e-5, 1]}
"""
    spec = parse_spec(text, source="s")
    assert spec.default_point() == {"model_name": "dynunet", "learning_rate": 0.01}
    assert spec.trial_config(spec.default_point()).optimizer == "sgd"


def test_the_recipe_is_that_of_the_optimizer_which_is_named() -> None:
    text = FEW.format(name="dynunet, optimizer: adamw")
    assert parse_spec(text, source="s").base_config().learning_rate == 1e-3
    # no momentum has no Nesterov's form
    still = parse_spec(FEW.format(name="dynunet, momentum: 0"), source="s").base_config()
    assert (still.optimizer, still.momentum, still.nesterov) == ("sgd", 0, False)


def test_a_config_that_names_nothing_is_nnunets_training() -> None:
    config = ModelTrainingConfig()
    assert (config.loss, config.scheduler, config.poly_power) == ("dice_ce", "poly", 0.9)
    assert (config.augmentation, config.gradient_clip) == ("nnunet", 12)
    assert config.precision == "auto"


def test_a_study_of_an_earlier_version_keeps_the_defaults_of_then(tmp_path: Path) -> None:
    resolved = tmp_path / "spec.resolved.yaml"
    resolved.write_text(FEW.format(name="dynunet, scheduler: cosine"))
    spec = load_resolved_spec(resolved)
    config = spec.trial_config({"seed": 3})
    assert (config.loss, config.augmentation, config.precision) == (
        "cross_entropy",
        "default",
        "32-true",
    )
    assert (config.optimizer, config.learning_rate, config.scheduler) == ("adamw", 1e-4, "cosine")
    assert config.gradient_clip is None
    # channels that are named after a scheme of nnU-Net were z-scored
    assert config.normalisation == "modality"
    older = parse_spec(FEW.format(name="dynunet") + "format: 2\n", source="s").base_config()
    assert (older.normalisation, older.loss) == ("modality", "dice_ce")
    assert parse_spec(FEW.format(name="dynunet"), source="s").base_config().normalisation == "auto"
    # and a study that goes on is written as what it is
    resolved.write_text(spec.to_yaml())
    assert load_resolved_spec(resolved).trial_config({"seed": 3}) == config
    with pytest.raises(SpecError, match="format=4 is not one that this version reads, 1 to 3"):
        parse_spec(FEW.format(name="dynunet") + "format: 4\n", source="s")
