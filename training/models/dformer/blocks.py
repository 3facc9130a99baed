"""Parts of D-Former: grouped attention, its block and stage, patch merging and expansion.

Tokens are channels-last, (batch, depth, height, width, channels), so that every linear
layer and every norm runs without a transposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.models.dformer.kernels import DepthwiseConv3d, Perceptron
from training.models.precision import without_autocast

Size = tuple[int, int, int]
Scope = Literal["local", "global"]
Tokens = Float[Tensor, "batch depth height width channels"]

# A strided group is less than twice the nominal group size on each axis, hence at most this
# many times as many tokens; a group that covers a whole grid is held to the same bound.
LARGEST_GROUP_FACTOR = 8


@dataclass(frozen=True)
class Grouping:
    """How a grid of tokens is cut into attention groups that are equal in size.

    Local scope cuts the grid into windows of the group size. Global scope takes every n-th
    token of the whole grid, with n = grid // group on each axis, so that a group spans the
    grid. A grid smaller than the group on some axis is one group.

    Attributes:
        size: tokens of the grid per axis.
        group: tokens of one group per axis.
        count: groups per axis; `group * count` is the padded size.
        scope: whether a group is a window or a strided set.
    """

    size: Size
    group: Size
    count: Size
    scope: Scope

    @classmethod
    def of(cls, size: Size, nominal: Size, scope: Scope) -> Grouping:
        """The grouping of a grid of `size` tokens for the nominal group size."""
        smaller = any(n < g for n, g in zip(size, nominal, strict=True))
        if smaller and math.prod(size) <= LARGEST_GROUP_FACTOR * math.prod(nominal):
            return cls(size, size, (1, 1, 1), scope)
        axes = [_axis(n, min(n, g), scope) for n, g in zip(size, nominal, strict=True)]
        (g0, c0), (g1, c1), (g2, c2) = axes
        return cls(size, (g0, g1, g2), (c0, c1, c2), scope)

    @property
    def padded(self) -> Size:
        """Tokens per axis once the grid is padded to whole groups."""
        (g0, g1, g2), (c0, c1, c2) = self.group, self.count
        return (g0 * c0, g1 * c1, g2 * c2)

    def split(self, tokens: Tokens) -> Float[Tensor, "groups tokens channels"]:
        """Pad with zeros at the far ends and gather the tokens of each group."""
        tokens = _pad(tokens, self.padded)
        if self.count != (1, 1, 1):
            shape, order = self._cut()
            tokens = tokens.reshape(tokens.shape[0], *shape, tokens.shape[-1])
            tokens = tokens.permute(0, *order, 7)
        return tokens.reshape(-1, math.prod(self.group), tokens.shape[-1])

    def join(self, groups: Float[Tensor, "groups tokens channels"]) -> Tokens:
        """Undo `split`: put the tokens back in place and drop the padding."""
        _, order = self._cut()
        tokens = groups.reshape(-1, *self.count, *self.group, groups.shape[-1])
        # The axes of `split` go back to where they came from: the inverse permutation
        inverse = [1 + order.index(axis) for axis in range(1, 7)]
        tokens = tokens.permute(0, *inverse, 7).reshape(-1, *self.padded, groups.shape[-1])
        depth, height, width = self.size
        return tokens[:, :depth, :height, :width]

    def mask(self, device: torch.device) -> Bool[Tensor, "groups 1 1 tokens"] | None:
        """True where a key is a token of the grid; None where nothing is padded."""
        if self.padded == self.size:
            return None
        depth, height, width = (
            torch.arange(padded, device=device) < size
            for size, padded in zip(self.size, self.padded, strict=True)
        )
        grid = depth[:, None, None] & height[:, None] & width
        shape, order = self._cut()
        cut = grid.reshape(shape).permute(*(axis - 1 for axis in order))
        return cut.reshape(-1, 1, 1, math.prod(self.group))

    def _cut(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The grid's shape with each axis cut in two, and the order that puts groups first."""
        pairs = list(zip(self.count, self.group, strict=True))
        if self.scope == "local":
            return tuple(n for pair in pairs for n in pair), (1, 3, 5, 2, 4, 6)
        return tuple(n for count, group in pairs for n in (group, count)), (2, 4, 6, 1, 3, 5)


def _axis(size: int, group: int, scope: Scope) -> tuple[int, int]:
    """Tokens in a group and number of groups along one axis."""
    if scope == "local":
        return group, -(-size // group)
    stride = size // group
    return -(-size // stride), stride


def _pad(tokens: Tokens, size: Sequence[int]) -> Tokens:
    """Zeros at the far ends up to `size` tokens per axis."""
    missing = [have - want for have, want in zip(size, tokens.shape[1:4], strict=True)]
    if not any(missing):
        return tokens
    return F.pad(tokens, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))


class GroupedAttention(nn.Module):
    """Multi-head self-attention within the groups of a `Grouping`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        group_size: Size,
        scope: Scope,
        *,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.group_size = group_size
        self.scope: Scope = scope
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.projection = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, tokens: Tokens) -> Tokens:
        """Let each token attend to the grid's tokens of its group."""
        _, depth, height, width, dim = tokens.shape
        grouping = Grouping.of((depth, height, width), self.group_size, self.scope)
        groups = grouping.split(tokens)
        projected = self.qkv(groups)
        device = tokens.device.type
        if device == "cpu" and projected.requires_grad:
            # on a CPU the gradient of attention takes five times as long in bf16 as in fp32
            projected = projected.to(groups.dtype)
        qkv = projected.unflatten(-1, (3, self.num_heads, dim // self.num_heads))
        # unbound before the heads come first: one copy puts the three gradients together
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        mask = grouping.mask(tokens.device)
        if mask is not None:
            mask = mask.repeat(tokens.shape[0], 1, 1, 1)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        # autocast would bring it back to bf16
        with without_autocast(device):
            attended = F.scaled_dot_product_attention(query, key, value, mask, drop_rate)
        joined = grouping.join(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.dropout(self.projection(joined))
        return mixed


class DropPath(nn.Module):
    """Stochastic depth: skips a residual branch for whole samples (Huang et al., 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tokens) -> Tokens:
        """Zero the branch of random samples and scale the others up, in training alone."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = torch.rand(branch.shape[0], 1, 1, 1, 1, device=branch.device) < keep
        return branch * (kept.to(branch.dtype) / keep)


class DFormerBlock(nn.Module):
    """Pre-norm transformer block: grouped attention, then a GELU perceptron."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        group_size: Size,
        scope: Scope,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = GroupedAttention(
            dim,
            num_heads,
            group_size,
            scope,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Perceptron(dim, int(dim * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: Tokens) -> Tokens:
        """Mix tokens, then channels."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        mixed: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return mixed


class Stage(nn.Module):
    """Blocks of one resolution, opened by a residual depthwise convolution.

    The convolution is the position encoding: its zero padding tells a token where the
    border of the grid is.
    """

    def __init__(self, dim: int, blocks: Sequence[DFormerBlock]) -> None:
        super().__init__()
        self.position = DepthwiseConv3d(dim)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode positions and run the blocks."""
        tokens = tokens + self.position(tokens.movedim(-1, 1)).movedim(1, -1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class PatchMerging(nn.Module):
    """Halve each axis: the 2x2x2 neighbours' channels are normed and reduced 8C -> 2C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * dim)
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, tokens: Tokens) -> Tokens:
        """Merge neighbours; an odd axis gets a last layer of zeros, as in a convolution."""
        tokens = _pad(tokens, [size + size % 2 for size in tokens.shape[1:4]])
        batch, depth, height, width, dim = tokens.shape
        cut = tokens.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, dim)
        merged: Tensor = self.reduction(self.norm(cut.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)))
        return merged


class PatchExpansion(nn.Module):
    """Double each axis: a linear layer C -> 8 * C/2, whose parts become the neighbours."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 4 * dim, bias=False)
        self.norm = nn.LayerNorm(dim // 2)

    def forward(self, tokens: Tokens, size: Sequence[int]) -> Tokens:
        """Expand and crop to `size` tokens per axis, the size before the merging."""
        cut = self.expand(tokens).unflatten(-1, (2, 2, 2, -1))
        expanded = cut.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        normed: Tensor = self.norm(expanded[:, : size[0], : size[1], : size[2]])
        return normed


def linear_of_both(linear: nn.Module, first: Tokens, second: Tokens) -> Tokens:
    """A linear layer of two sets of tokens, concatenated over channels, without the copy."""
    assert isinstance(linear, nn.Linear)
    width = first.shape[-1]
    of_first = F.linear(first, linear.weight[:, :width], linear.bias)
    return of_first + F.linear(second, linear.weight[:, width:])
