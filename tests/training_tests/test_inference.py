"""Prediction of whole cases by sliding window, with and without mirroring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from training.inference import logit_slabs, mirrored, predict_case


def lopsided(spatial_dims: int = 3) -> nn.Module:
    """A network whose output at a voxel depends on which side its neighbours are."""
    torch.manual_seed(0)
    convolution = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
    return nn.Sequential(convolution(2, 3, 3, padding=1), nn.ReLU()).eval()


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 1), (2, 0), (0, 1, 2)])
@torch.inference_mode()
def test_logits_are_the_mean_over_all_combinations_of_mirrored_axes(axes: Sequence[int]) -> None:
    network, windows = lopsided(), torch.randn(2, 2, 5, 6, 7)
    turned = []
    for choice in product([False, True], repeat=len(axes)):
        flips = [axis + 2 for axis, chosen in zip(axes, choice, strict=True) if chosen]
        turned.append(network(windows.flip(flips)).flip(flips))
    assert len(turned) == 2 ** len(axes)
    torch.testing.assert_close(mirrored(network, axes)(windows), torch.stack(turned).mean(0))


@torch.inference_mode()
def test_a_case_of_one_window_is_predicted_alike_when_it_is_mirrored_itself() -> None:
    network, image = lopsided(), torch.randn(1, 2, 6, 6, 6)

    def predict(case: Tensor, axes: Sequence[int]) -> Tensor:
        return predict_case(network, case, patch_size=(6, 6, 6), mirror_axes=axes)

    for axis in range(3):
        plain = predict(image, ())
        assert not torch.allclose(predict(image.flip(axis + 2), ()).flip(axis + 2), plain)
        both = predict(image, (axis,))
        torch.testing.assert_close(predict(image.flip(axis + 2), (axis,)).flip(axis + 2), both)


@torch.inference_mode()
def test_a_slice_has_height_and_width() -> None:
    network, image = lopsided(spatial_dims=2), torch.randn(1, 2, 6, 8)
    found = predict_case(network, image, patch_size=(1, 6, 8), mirror_axes=(1,))
    expected = (network(image) + network(image.flip(2)).flip(2)) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "shape", [(9, 8, 8), (33, 12, 9), (4, 14, 5), (8, 8, 8), (21, 7, 7)], ids=str
)
@pytest.mark.parametrize(("overlap", "batch"), [(0.5, 1), (0.25, 3), (0, 2), (0.8, 4)])
@torch.inference_mode()
def test_slabs_are_the_whole_case_of_monai(
    shape: tuple[int, ...], overlap: float, batch: int
) -> None:
    network, image = lopsided(), torch.randn(2, 2, *shape)
    expected = sliding_window_inference(image, (8, 8, 8), batch, network, overlap, mode="gaussian")
    options: dict[str, Any] = {"overlap": overlap, "windows_per_batch": batch}
    found = predict_case(network, image, patch_size=(8, 8, 8), **options)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    planes = [
        slab.shape[1] for slab in logit_slabs(network, image[0], patch_size=(8, 8, 8), **options)
    ]
    assert sum(planes) == shape[0]
    # never more than a window is deep, however long the case is
    assert max(planes) <= 8
