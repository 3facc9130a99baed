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

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Size = tuple[int, int, int]

# Features computed at once: on a CPU they stay in its last-level cache, on a GPU they are
# many enough to fill it
FEATURES_AT_ONCE = {"cpu": 2**22}
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
            logits: Tensor = self.classify(self.norm(voxels))
        else:
            logits = self._fused(tokens)
        return logits.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _fused(self, tokens: Tensor) -> Tensor:
        *grid, dim = tokens.shape
        device = tokens.device.type
        dtype = tokens.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            features = self.expand.weight.reshape(-1, dim, dim)
            centered = features - features.mean(dim=1, keepdim=True)
            classify = torch.matmul(self.classify.weight * self.norm.weight, centered)
            offset = self.classify.weight @ self.norm.bias
            logits: Tensor = _VoxelLogits.apply(  # type: ignore[no-untyped-call]
                tokens.reshape(-1, dim).to(dtype),
                centered.to(dtype),
                classify.to(dtype),
                self.norm.eps,
            )
            return (logits + offset.to(dtype)).reshape(*grid, *self.patch_size, -1)


class _VoxelLogits(torch.autograd.Function):
    """Scaled products (A_v x) / σ_v of tokens x; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Float[Tensor, "tokens channels"],
        centered: Float[Tensor, "voxels channels channels"],
        classify: Float[Tensor, "voxels classes channels"],
        eps: float,
    ) -> Float[Tensor, "tokens voxels classes"]:
        voxels, classes, dim = classify.shape
        wide = torch.promote_types(tokens.dtype, torch.float32)
        logits = tokens.new_empty(len(tokens), voxels, classes)
        inverse_std = tokens.new_empty(len(tokens), voxels, dtype=wide)
        expand = centered.flatten(0, 1).t()
        for part in _parts(tokens, voxels):
            features = (tokens[part] @ expand).reshape(-1, voxels, dim)
            norm = torch.linalg.vector_norm(features, dim=-1, dtype=wide)
            inverse_std[part] = torch.rsqrt(norm.square_().div_(dim).add_(eps))
            logits[part] = _classified(tokens[part], classify) * inverse_std[part, :, None]
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
        moments = centered.new_zeros(voxels * dim, dim, dtype=wide)
        for part in _parts(tokens, voxels):
            x, scale, of_logits = tokens[part], inverse_std[part], gradient[part]
            products = (of_logits * _classified(x, classify)).sum(-1, dtype=wide)
            # gradient of σ², twice: d(1/σ) = -1/2 σ⁻³ d(σ²), and d(xᵀ G x) = 2 G x
            of_variance = (products * scale.pow(3)).neg_().to(x.dtype)
            scaled = (of_variance[:, :, None] * x[:, None]).flatten(1)
            of_products = (of_logits * scale[:, :, None]).to(x.dtype).flatten(1)
            of_tokens[part] = (scaled @ covariance).addmm_(of_products, classify.flatten(0, 1))
            of_classify += of_products.t() @ x
            moments += scaled.t() @ x
        of_centered = torch.bmm(centered.to(wide), moments.reshape(voxels, dim, dim)).div_(dim)
        return (
            of_tokens,
            of_centered.to(centered.dtype),
            of_classify.reshape(classify.shape).to(classify.dtype),
            None,
        )


def _classified(tokens: Tensor, classify: Tensor) -> Tensor:
    products: Tensor = F.linear(tokens, classify.flatten(0, 1))
    return products.reshape(-1, *classify.shape[:2])


def _parts(tokens: Tensor, voxels: int) -> list[slice]:
    """Tokens in parts whose features are held at once."""
    at_once = FEATURES_AT_ONCE.get(tokens.device.type, FEATURES_AT_ONCE_ELSEWHERE)
    step = max(1, at_once // (voxels * tokens.shape[1]))
    if torch.compiler.is_compiling():
        step = max(1, len(tokens))  # one part: a compiler plans its own loops
    return [slice(start, start + step) for start in range(0, len(tokens), step)]
