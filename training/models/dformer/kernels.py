"""Steps of D-Former that a CPU does faster in parts: the parts stay in its cache.

Written with plain operators, a perceptron on a fine grid moves its hidden units to and from
memory many times, and most of that memory is new to the process in every step. Here the hidden
units are computed a few tokens at a time, and only what enters the GELU is kept for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HIDDEN_AT_ONCE = 2**20
"""Hidden units computed at once: 4 MB of fp32."""


def in_parts(tensor: Tensor) -> bool:
    """Whether a step on `tensor` is done in parts: on a CPU, unless something records operators."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    recording = tracing or torch.compiler.is_compiling()
    return tensor.device.type == "cpu" and not recording


class Buffer:
    """Memory for results of one kind, the first of them the largest, reused from part to part.

    Under a compiler every result is new memory: it plans its own reuse.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def mm(self, first: Float[Tensor, "n k"], second: Float[Tensor, "k m"]) -> Tensor:
        """The matrix product."""
        return torch.mm(first, second, out=self.like((len(first), second.shape[1]), first))

    def mul(self, first: Tensor, second: Tensor) -> Tensor:
        """The product with broadcasting."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        return torch.mul(first, second, out=self.like(shape, first))

    def copy(self, source: Tensor) -> Tensor:
        """The same entries, contiguous."""
        memory = self.like(source.shape, source)
        return source.contiguous() if memory is None else memory.copy_(source)

    def like(self, shape: Sequence[int], source: Tensor) -> Tensor | None:
        """This memory in a shape, of the type of `source`; None under a compiler."""
        if torch.compiler.is_compiling():
            return None
        if self._memory is None:
            self._memory = source.new_empty(math.prod(shape))
        return self._memory[: math.prod(shape)].view(*shape)


class Perceptron(nn.Sequential):
    """Linear layer, GELU, linear layer, with dropout after each of the two."""

    def __init__(self, dim: int, hidden: int, drop_rate: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, dim),
            nn.Dropout(drop_rate),
        )
        self.drop_rate = drop_rate

    def forward(self, tokens: Float[Tensor, "*grid channels"]) -> Float[Tensor, "*grid channels"]:
        """Mix the channels of each token."""
        if not in_parts(tokens) or (self.training and self.drop_rate):
            mixed: Tensor = super().forward(tokens)  # type: ignore[no-untyped-call]
            return mixed
        dtype = tokens.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        first, second = self[0], self[3]
        weights = (first.weight, first.bias, second.weight, second.bias)
        with torch.autocast("cpu", enabled=False):
            rows: Tensor = _Perceptron.apply(  # type: ignore[no-untyped-call]
                tokens.reshape(-1, tokens.shape[-1]).to(dtype), *(w.to(dtype) for w in weights)
            )
        return rows.view(tokens.shape)


class _Perceptron(torch.autograd.Function):
    """W2 gelu(W1 x + b1) + b2 of tokens x."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Float[Tensor, "tokens channels"],
        weight1: Float[Tensor, "hidden channels"],
        bias1: Float[Tensor, " hidden"],
        weight2: Float[Tensor, "channels hidden"],
        bias2: Float[Tensor, " channels"],
    ) -> Float[Tensor, "tokens channels"]:
        hidden = tokens.new_empty(len(tokens), len(weight1))
        mixed = torch.empty_like(tokens)
        active = Buffer()
        for part in _parts(hidden):
            before = torch.addmm(bias1, tokens[part], weight1.t(), out=hidden[part])
            after = _gelu(before, active)
            torch.addmm(bias2, after, weight2.t(), out=mixed[part])
        ctx.save_for_backward(tokens, weight1, weight2, hidden)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        gradient = gradient.contiguous()
        tokens, weight1, weight2, hidden = ctx.saved_tensors
        wide = torch.promote_types(tokens.dtype, torch.float32)
        of_tokens = torch.empty_like(tokens)
        of_weight1 = of_weight2 = None
        of_bias1 = weight1.new_zeros(len(weight1), dtype=wide)
        active, of_active = Buffer(), Buffer()
        for part in _parts(hidden):
            before, of_mixed = hidden[part], gradient[part]
            of_weight2 = _plus_product(of_weight2, of_mixed.t(), _gelu(before, active))
            of_after = of_active.mm(of_mixed, weight2)
            of_before = torch.ops.aten.gelu_backward.grad_input(
                of_after, before, grad_input=of_after
            )
            of_bias1 += of_before.sum(0, dtype=wide)
            of_weight1 = _plus_product(of_weight1, of_before.t(), tokens[part])
            torch.mm(of_before, weight1, out=of_tokens[part])
        assert of_weight1 is not None
        assert of_weight2 is not None
        return (
            of_tokens,
            of_weight1.to(weight1.dtype),
            of_bias1.to(weight1.dtype),
            of_weight2.to(weight2.dtype),
            gradient.sum(0, dtype=wide).to(weight2.dtype),
        )


def _gelu(before: Tensor, memory: Buffer) -> Tensor:
    after: Tensor = torch.ops.aten.gelu.out(before, out=memory.like(before.shape, before))
    return after


def _plus_product(total: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    """A product added to a total; the total is fp32 whatever the factors' type."""
    if total is None:
        return (first @ second).to(torch.promote_types(first.dtype, torch.float32))
    if total.dtype == first.dtype:
        return total.addmm_(first, second)
    return total.add_(first @ second)


def _parts(hidden: Float[Tensor, "tokens hidden"]) -> list[slice]:
    step = max(1, HIDDEN_AT_ONCE // hidden.shape[1])
    return [slice(start, start + step) for start in range(0, len(hidden), step)]


class DepthwiseConv3d(nn.Conv3d):
    """A 3x3x3 convolution of each channel by itself that keeps the grid's size.

    The gradient of its input is a convolution by the mirrored kernel; the library's own
    routine for it takes ten times as long on a CPU.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(
        self, grid: Float[Tensor, "batch channels depth height width"]
    ) -> Float[Tensor, "batch channels depth height width"]:
        """Convolve."""
        if not in_parts(grid):
            return super().forward(grid)
        assert self.bias is not None
        # in bf16 the library's routine for the kernel's gradient takes ten times as long
        with torch.autocast("cpu", enabled=False):
            convolved: Tensor = _DepthwiseConv3d.apply(  # type: ignore[no-untyped-call]
                grid.to(self.weight.dtype), self.weight, self.bias
            )
        return convolved


class _DepthwiseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(grid, weight)
        return F.conv3d(grid, weight, bias, padding=1, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        grid, weight = ctx.saved_tensors
        of_grid = F.conv3d(gradient, weight.flip((2, 3, 4)), padding=1, groups=len(weight))
        _, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, grid, weight, None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3,
            len(weight), [False, True, False],
        )  # fmt: skip
        return of_grid, of_weight, gradient.sum((0, 2, 3, 4))
