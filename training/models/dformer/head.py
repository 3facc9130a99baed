"""D-Former's final expansion: logits of every voxel, without the voxels' features.

The published head turns a token x of C channels into z_v = E_v x for each voxel v of its
patch, norms z_v and classifies it. At full resolution the features z are far larger than
anything else in the network (patch volume x C numbers a token), and moving them to and from
memory costs more than computing them. Written out,

    logits_v = W (γ * (z_v - mean(z_v)) / σ_v + β)
             = (A_v x) / σ_v + W β    with  A_v = W diag(γ) P E_v,  σ_v² = |P E_v x|² / C + ε

where P subtracts the mean over channels. So the logits need a product with A (classes instead
of channels wide) and one number σ_v a voxel; the features live in cache, a few tokens at a
time. The gradient of σ_v² = xᵀ G_v x, G_v = E_vᵀ P E_v / C, needs no features at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.models.dformer.kernels import Buffer
from training.models.precision import compute_dtype, without_autocast

Size = tuple[int, int, int]

# Features computed at once: on a CPU they stay in its cache, on a GPU they are many enough
# to fill it
FEATURES_AT_ONCE = {"cpu": 2**21}
FEATURES_AT_ONCE_ELSEWHERE = 2**27


class SegmentationHead(nn.Module):
    """Expand each token to the voxels of a patch and classify every voxel.

    Args:
        dim: channels of a token.
        num_classes: classes of the logits.
        patch_size: voxels of a token (depth, height, width).
    """

    def __init__(self, dim: int, num_classes: int, patch_size: Size) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.expand = nn.Linear(dim, math.prod(patch_size) * dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, num_classes, bias=False)

    def forward(
        self, tokens: Float[Tensor, "batch depth height width channels"]
    ) -> Float[Tensor, "batch classes _d _h _w"]:
        """Logits at `patch_size` times the grid's resolution."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            # plain operators: a compiler fuses them itself, and any format can hold them
            voxels = self.expand(tokens).unflatten(-1, (*self.patch_size, -1))
            logits: Tensor = _placed(self.classify(self.norm(voxels)))
        else:
            logits = self._fused(tokens)
        return logits.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _fused(self, tokens: Tensor) -> Tensor:
        dim = tokens.shape[-1]
        dtype = compute_dtype(tokens)
        with without_autocast(tokens.device.type):
            features = self.expand.weight.reshape(-1, dim, dim)
            centered = features - features.mean(dim=1, keepdim=True)
            classify = torch.matmul(self.classify.weight * self.norm.weight, centered)
            offset = self.classify.weight @ self.norm.bias
            logits: Tensor = _VoxelLogits.apply(  # type: ignore[no-untyped-call]
                tokens.to(dtype),
                centered.to(dtype),
                classify.to(dtype),
                offset.to(dtype),
                self.patch_size,
                self.norm.eps,
            )
            return logits


class _VoxelLogits(torch.autograd.Function):
    """Logits (A_v x) / σ_v + W β of tokens x; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Float[Tensor, "batch depth height width channels"],
        centered: Float[Tensor, "voxels channels channels"],
        classify: Float[Tensor, "voxels classes channels"],
        offset: Float[Tensor, " classes"],
        patch: Size,
        eps: float,
    ) -> Float[Tensor, "batch classes depth _d height _h width _w"]:
        voxels, classes, dim = classify.shape
        wide = torch.promote_types(tokens.dtype, torch.float32)
        grid = tokens.shape[:-1]
        sizes = [n for pair in zip(grid[1:], patch, strict=True) for n in pair]
        logits = tokens.new_empty(grid[0], classes, *sizes)
        inverse_std = tokens.new_empty(*grid, voxels, dtype=wide)
        expand, assign = centered.flatten(0, 1).t(), classify.flatten(0, 1).t()
        features, products = Buffer(), Buffer()
        for part in _parts(grid, voxels * dim, tokens.device.type):
            here = tokens[part].shape[:-1]
            x = tokens[part].reshape(-1, dim)
            found = features.mm(x, expand).view(-1, voxels, dim)
            norm = torch.linalg.vector_norm(found, dim=-1, dtype=wide)
            scale = torch.rsqrt(norm.square_().div_(dim).add_(eps))
            inverse_std[part] = scale.view(*here, voxels)
            found = products.mm(x, assign).view(-1, voxels, classes)
            found = found.mul_(scale[:, :, None]).add_(offset)
            _at(logits, part).copy_(_placed(found.view(*here, *patch, classes)))
        ctx.save_for_backward(tokens, centered, classify, inverse_std)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        tokens, centered, classify, inverse_std = ctx.saved_tensors
        voxels, classes, dim = classify.shape
        covariance = torch.bmm(centered.transpose(1, 2), centered).div_(dim).flatten(0, 1)
        of_tokens = torch.empty_like(tokens)
        wide = inverse_std.dtype
        of_classify = classify.new_zeros(voxels * classes, dim, dtype=wide)
        of_offset = classify.new_zeros(classes, dtype=wide)
        moments = centered.new_zeros(voxels * dim, dim, dtype=wide)
        outer, products, of_products = Buffer(), Buffer(), Buffer()
        for part in _parts(tokens.shape[:-1], voxels * dim, tokens.device.type):
            x = tokens[part].reshape(-1, dim)
            scale = inverse_std[part].reshape(-1, voxels)
            of_logits = of_products.copy(_taken(_at(gradient, part))).view(-1, voxels, classes)
            of_offset += of_logits.sum((0, 1), dtype=wide)
            found = products.mm(x, classify.flatten(0, 1).t()).view(-1, voxels, classes)
            strength = found.mul_(of_logits).sum(-1, dtype=wide)
            # gradient of σ², twice: d(1/σ) = -1/2 σ⁻³ d(σ²), and d(xᵀ G x) = 2 G x
            of_variance = strength.mul_(scale.pow(3)).neg_().to(x.dtype)
            scaled = outer.mul(of_variance[:, :, None], x[:, None]).flatten(1)
            of_found = of_logits.mul_(scale[:, :, None]).flatten(1)
            of_part = (scaled @ covariance).addmm_(of_found, classify.flatten(0, 1))
            of_tokens[part] = of_part.view(tokens[part].shape)
            of_classify += of_found.t() @ x
            moments += scaled.t() @ x
        of_centered = torch.bmm(centered.to(wide), moments.reshape(voxels, dim, dim)).div_(dim)
        return (
            of_tokens,
            of_centered.to(centered.dtype),
            of_classify.reshape(classify.shape).to(classify.dtype),
            of_offset.to(classify.dtype),
            None,
            None,
        )


Part = tuple[slice, slice, slice]


def _placed(
    logits: Float[Tensor, "batch depth height width _d _h _w classes"],
) -> Float[Tensor, "batch classes depth _d height _h width _w"]:
    """Voxels of each token where they lie in the volume."""
    return logits.permute(0, 7, 1, 4, 2, 5, 3, 6)


def _taken(
    volume: Float[Tensor, "batch classes depth _d height _h width _w"],
) -> Float[Tensor, "batch depth height width _d _h _w classes"]:
    """Undo `_placed`."""
    return volume.permute(0, 2, 4, 6, 3, 5, 7, 1)


def _at(
    volume: Float[Tensor, "batch classes depth _d height _h width _w"], part: Part
) -> Float[Tensor, "_b classes _depth _d _height _h width _w"]:
    batch, depth, height = part
    return volume[batch, :, depth, :, height]


def _parts(grid: Sequence[int], features: int, device: str) -> Iterator[Part]:
    """Tokens in parts whose features are held at once: items, slabs of one, or rows of a slab.

    Args:
        grid: Tokens along (batch, depth, height, width).
        features: Features of a token.
        device: Where they are computed.
    """
    batch, depth, height, width = grid
    if torch.compiler.is_compiling():
        yield (slice(None),) * 3  # a compiler plans its own loops
        return
    at_once = FEATURES_AT_ONCE.get(device, FEATURES_AT_ONCE_ELSEWHERE)
    rows = max(1, at_once // max(1, features * width))
    steps = (max(1, rows // (depth * height)), max(1, rows // height), min(rows, height))
    yield from itertools.product(
        *(
            [slice(start, start + step) for start in range(0, size, step)]
            for size, step in zip((batch, depth, height), steps, strict=True)
        )
    )
