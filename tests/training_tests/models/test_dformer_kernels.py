"""D-Former's steps in parts, against the same steps of plain operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.models.dformer import kernels as dformer_kernels
from training.models.dformer.kernels import Buffer, DepthwiseConv3d, Perceptron


def gradients(
    function: Callable[[Tensor], Tensor], module: nn.Module, inputs: Tensor
) -> tuple[Tensor, ...]:
    """Output, and gradients of the input and all parameters for a fixed output gradient."""
    inputs = inputs.detach().requires_grad_()
    output = function(inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    wanted = (inputs, *module.parameters())
    found = torch.autograd.grad((output * weights.to(output)).sum(), wanted)
    return (output.detach(), *found)


@pytest.mark.parametrize("at_once", [1, 100, 2**20])
def test_perceptron_is_its_layers_in_turn(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dformer_kernels, "HIDDEN_AT_ONCE", at_once)
    torch.manual_seed(0)
    perceptron = Perceptron(6, 20, 0.0).double()
    tokens = torch.randn(2, 3, 4, 5, 6, dtype=torch.double)

    def layers(inputs: Tensor) -> Tensor:
        first, _, _, second, _ = perceptron
        return second(nn.functional.gelu(first(inputs)))

    found = gradients(perceptron, perceptron, tokens)
    for one, other in zip(found, gradients(layers, perceptron, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_perceptron_in_bf16_sums_gradients_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    perceptron = Perceptron(8, 32, 0.0)
    tokens = torch.randn(4096, 8)
    exact = gradients(perceptron, perceptron, tokens)
    monkeypatch.setattr(dformer_kernels, "HIDDEN_AT_ONCE", 32 * 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(perceptron, perceptron, tokens)
    assert found[0].dtype is torch.bfloat16
    for one, other in zip(found, exact, strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()


def test_perceptron_drops_units_in_training_alone() -> None:
    torch.manual_seed(0)
    perceptron = Perceptron(6, 20, 0.5)
    tokens = torch.randn(10, 6)
    assert not torch.equal(perceptron(tokens), perceptron(tokens))
    perceptron.eval()
    assert torch.equal(perceptron(tokens), perceptron(tokens))


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (4, 6, 7)])
def test_depthwise_convolution_is_torchs(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv3d(6).double()
    plain = nn.Conv3d(6, 6, 3, padding=1, groups=6).double()
    plain.load_state_dict(ours.state_dict())
    # channels last, as the network has them
    grid = torch.randn(2, *size, 6, dtype=torch.double).movedim(-1, 1)
    found = gradients(ours, ours, grid)
    for one, other in zip(found, gradients(plain, plain, grid), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_buffer_lends_the_same_memory_again() -> None:
    buffer = Buffer()
    first = buffer.mm(torch.ones(4, 2), torch.ones(2, 3))
    second = buffer.mm(torch.ones(3, 2), torch.zeros(2, 3))
    assert second.shape == (3, 3)
    assert first.data_ptr() == second.data_ptr()
    assert not second.any()
