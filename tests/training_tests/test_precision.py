"""What `precision: auto` is on a machine."""

from __future__ import annotations

import pytest

from training import trainer
from training.config import ModelTrainingConfig
from training.models.precision import FASTER_IN_BF16
from training.registry import MODELS


@pytest.mark.parametrize(
    ("model_name", "has_bf16", "expected"),
    [
        ("dynunet", True, "bf16-mixed"),
        ("dynunet", False, "32-true"),
        ("dformer3d", True, "32-true"),
        ("dformer3d", False, "32-true"),
    ],
)
def test_a_cpu_trains_in_bf16_where_it_can_and_the_network_gains(
    monkeypatch: pytest.MonkeyPatch, model_name: str, has_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(trainer, "cpu_computes_in_bf16", lambda: has_bf16)
    config = ModelTrainingConfig(model_name=model_name, gpus=0)
    assert trainer.choose_precision(config) == expected


def test_a_precision_that_is_named_is_used() -> None:
    for precision in ("32-true", "16-mixed", "bf16-mixed"):
        config = ModelTrainingConfig(model_name="dynunet", precision=precision, gpus=0)
        assert trainer.choose_precision(config) == precision


def test_every_network_that_gains_is_one_of_ours() -> None:
    assert set(MODELS) >= FASTER_IN_BF16
