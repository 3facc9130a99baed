from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.class_weights import CLASS_WEIGHTS, class_weight_tensor
from training.config import ClassWeightPreset, ModelTrainingConfig
from training.losses import build_loss

COUNTS = st.lists(st.lists(st.integers(1, 10**8), min_size=3, max_size=3), min_size=1, max_size=4)


def weights(preset: Any, counts: Any, **fields: Any) -> list[float]:
    config = ModelTrainingConfig(**{"num_classes": 3, "class_weights": preset, **fields})
    found = class_weight_tensor(config, counts)
    assert found is not None
    return [float(weight) for weight in found]


def test_the_presets_are_those_of_the_config() -> None:
    for preset in ("uniform", *CLASS_WEIGHTS):
        assert ModelTrainingConfig(class_weights=preset).class_weights == preset


def test_given_weights() -> None:
    assert class_weight_tensor(ModelTrainingConfig(num_classes=3), None) is None
    assert weights([1, 2, 5], None) == [1, 2, 5]
    assert weights([1, 2, 5], None, target_label=2) == [1, 5]


def test_inverse_frequency() -> None:
    inverse = np.array([1 / 0.8, 1 / 0.15, 1 / 0.05])
    found = weights("inverse_frequency", [800, 150, 50])
    assert found == pytest.approx(inverse / inverse.mean())
    binary = np.array([1 / 0.85, 1 / 0.15])
    found = weights("inverse_frequency", [800, 150, 50], target_label=1)
    assert found == pytest.approx(binary / binary.mean())


def test_median_frequency_counts_the_cases_that_hold_a_class() -> None:
    # the second class is a tenth of the one case that has it, the third a fifth of both
    cases = [[70, 10, 20], [160, 0, 40]]
    frequencies = [230 / 300, 10 / 100, 60 / 300]
    expected = [0.2 / frequency for frequency in frequencies]
    assert weights("median_frequency", cases) == pytest.approx(expected)
    # of two frequencies the median is their mean
    target = [0.5 * (290 / 300 + 10 / 100) / (290 / 300), 0.5 * (290 / 300 + 0.1) / 0.1]
    assert weights("median_frequency", cases, target_label=1) == pytest.approx(target)


def test_effective_number() -> None:
    beta = 0.999
    effective = np.array([(1 - beta**count) / (1 - beta) for count in (9000, 700, 30)])
    expected = (1 / effective) / (1 / effective).mean()
    found = weights("effective_number", [9000, 700, 30], effective_number_beta=beta)
    assert found == pytest.approx(expected, rel=1e-6)
    assert weights("effective_number", [9000, 700, 30], effective_number_beta=0) == [1, 1, 1]


@given(counts=COUNTS)
@settings(deadline=None, max_examples=50)
def test_effective_number_tends_to_inverse_frequency(counts: list[list[int]]) -> None:
    found = weights("effective_number", counts, effective_number_beta=1 - 1e-13)
    assert found == pytest.approx(weights("inverse_frequency", counts), rel=1e-4)


@given(counts=COUNTS, target=st.sampled_from([None, 1, 2]))
@pytest.mark.parametrize("preset", CLASS_WEIGHTS)
@settings(deadline=None, max_examples=50)
def test_a_rarer_class_weighs_no_less(
    preset: ClassWeightPreset, counts: list[list[int]], target: int | None
) -> None:
    total = np.array(counts).sum(axis=0)
    if target is not None:
        total = np.array([total.sum() - total[target], total[target]])
    found = np.array(weights(preset, counts, target_label=target))
    assert (np.diff(found[np.argsort(total)]) <= 1e-5 * found.max()).all()
    assert (found > 0).all()


@pytest.mark.parametrize("preset", CLASS_WEIGHTS)
def test_a_class_without_voxels_does_not_count(preset: ClassWeightPreset) -> None:
    with_absent = weights(preset, [[900, 100, 0]])
    assert with_absent[2] == 0
    assert with_absent[:2] == pytest.approx(weights(preset, [[900, 100]], num_classes=2))


@pytest.mark.parametrize("preset", CLASS_WEIGHTS)
def test_missing_counts_say_what_to_do(preset: ClassWeightPreset) -> None:
    config = ModelTrainingConfig(class_weights=preset)
    with pytest.raises(ValueError, match=f"{preset}.*there are no voxel counts: give them"):
        build_loss(config)
    with pytest.raises(ValueError, match="2 classes, but num_classes=3"):
        build_loss(config, [10, 20])
    with pytest.raises(ValueError, match="they have no voxels: give a list"):
        build_loss(config, [0, 0, 0])
    built = build_loss(config, [10, 20, 30]).weight
    assert isinstance(built, torch.Tensor)
    assert built.shape == (3,)
