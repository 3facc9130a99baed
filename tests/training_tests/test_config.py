from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.config import ModelTrainingConfig


def test_documented_call_works_as_written() -> None:
    config = ModelTrainingConfig(
        model_name="dformer3d",
        data_dir="data_preprocessed",
        max_epochs=100,
        learning_rate=1e-4,
        optimizer="adamw",
        gpus=1,
    )
    config.target_label = 2
    config.precision = "16-mixed"
    config.gpus = 4
    config.debug = True
    assert config.target_label == 2
    assert config.data_dir == Path("data_preprocessed")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gpus", -1, "greater than or equal to 0"),
        ("gpus", True, "not true or false"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("optimizer", "adamm", "'adam', 'adamw' or 'sgd'"),
        ("model_name", "unet", "'dformer3d'"),
        ("target_label", 3, "below num_classes=3 (the default; give your own)"),
        ("class_weights", [1.0, 2.0], "2 entries"),
        ("class_weights", [1.0, -1.0, 2.0], "greater than or equal to 0"),
        ("class_weights", [0.0, 0.0, 0.0], "at least one class"),
        ("class_weights", "equal", "'uniform', 'inverse_frequency', 'median"),
        ("patch_size", (32, 64), "Field required"),
        ("patch_size", (32, 64, 0), "greater than or equal to 1"),
        ("momentum", 1.0, "less than 1"),
        ("intensity_window", (200, -100), "low < high"),
        ("val_fraction", 0.9, "leave no case for training"),
        ("precision", "fp16", "'16-mixed'"),
    ],
)
def test_wrong_assignment_is_refused_and_changes_nothing(
    field: str, value: Any, message: str
) -> None:
    config = ModelTrainingConfig()
    before = config.model_dump()
    with pytest.raises(ValidationError) as raised:
        setattr(config, field, value)
    assert message in str(raised.value)
    assert config.model_dump() == before
    with pytest.raises(ValidationError):
        ModelTrainingConfig(**{field: value})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        ModelTrainingConfig(learning_rat=1e-3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="learning_rat"):
        ModelTrainingConfig().learning_rat = 1e-3  # type: ignore[attr-defined]


def test_fields_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov=true needs momentum"):
        ModelTrainingConfig(optimizer="sgd", nesterov=True, momentum=0)
    with pytest.raises(ValidationError, match="warmup_epochs=10 must be below max_epochs=10"):
        ModelTrainingConfig(scheduler="cosine", warmup_epochs=10, max_epochs=10)
    config = ModelTrainingConfig(target_label=2)
    with pytest.raises(ValidationError, match="target_label=2"):
        config.num_classes = 2
    assert config.num_classes == 3


def test_every_field_is_documented() -> None:
    undocumented = [
        name
        for name, field in ModelTrainingConfig.model_fields.items()
        if not field.description or not field.description.strip().endswith(".")
    ]
    assert not undocumented


def test_flat_values_make_the_same_config_again() -> None:
    config = ModelTrainingConfig(class_weights=[1, 2, 3], model_params={"embed_dim": 24})
    assert ModelTrainingConfig.from_flat(config.flat()) == config


def test_dotted_keys_set_single_entries() -> None:
    config = ModelTrainingConfig.from_flat(
        {"class_weights.2": 5.0, "model_params": {"embed_dim": 12}, "model_params.mlp_ratio": 2}
    )
    assert config.class_weights == [1.0, 1.0, 5.0]
    assert config.model_params == {"embed_dim": 12, "mlp_ratio": 2}
    config = ModelTrainingConfig.from_flat(
        {"class_weights": [1, 2], "class_weights.0": 0.5, "num_classes": 2}
    )
    assert config.class_weights == [0.5, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weights.3": 1.0}, "classes are 0 to 2"),
        ({"class_weights.x": 1.0}, "names no class"),
        ({"class_weights": "inverse_frequency", "class_weights.1": 1.0}, "preset"),
        ({"optimizer.name": "sgd"}, "only model_params and class_weights"),
    ],
)
def test_dotted_keys_that_fit_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelTrainingConfig.from_flat(values)


def test_importing_the_config_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys, training.config; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'monai', 'optuna')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
