"""D-Former, a U-shaped dilated transformer for volumes (Wu et al., 2022; arXiv 2201.00462)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from training.models.dformer.blocks import (
    DFormerBlock,
    PatchExpansion,
    PatchMerging,
    Size,
    Stage,
    linear_of_both,
)
from training.models.dformer.head import SegmentationHead
from training.models.recompute import recompute_blocks

__all__ = ["SegNetwork"]


class SegNetwork(nn.Module):
    """D-Former: volumes in, logits of the same size out, for any size from one voxel up.

    An encoder halves the token grid and doubles the width from stage to stage; a decoder
    mirrors it, joined by skip connections. Blocks alternate attention inside windows with
    attention among strided tokens of the whole grid. Where a size does not divide, grids are
    padded with zeros that no token attends to, and the logits are cropped.

    Args:
        num_classes: classes of the logits, background included.
        in_chan: channels of the image.
        embed_dim: width of the first stage; stage i has `embed_dim * 2**i`.
        depths: blocks in each encoder stage; the decoder mirrors all but the last.
        num_heads: attention heads in each stage, a divisor of its width.
        patch_size: voxels of a token (depth, height, width).
        group_size: tokens of an attention group (depth, height, width).
        mlp_ratio: hidden width of a block's perceptron, as a multiple of its width.
        qkv_bias: whether query, key and value have a bias.
        drop_path_rate: stochastic depth of the deepest block; it grows from 0 linearly.
        drop_rate: dropout after the embedding, the attention and in the perceptron.
        attn_drop_rate: dropout of the attention weights.
        deep_supervision: add heads at 1/2, 1/4, ... resolution, used in training alone.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        ValueError: for settings that make no network, with the value and the reason.

    Example:
        >>> model = SegNetwork(3, 1, embed_dim=12, depths=(1, 1), num_heads=(2, 4))
        >>> model(torch.zeros(1, 1, 5, 9, 7)).shape
        torch.Size([1, 3, 5, 9, 7])
    """

    def __init__(
        self,
        num_classes: int,
        in_chan: int,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_size: Sequence[int] = (2, 4, 4),
        group_size: Sequence[int] = (2, 8, 8),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        deep_supervision: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(num_classes=num_classes, in_chan=in_chan, embed_dim=embed_dim)
        _check_stages(embed_dim, depths, num_heads)
        _check_rates(
            drop_path_rate=drop_path_rate, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate
        )
        _check_mlp_ratio(mlp_ratio, embed_dim)
        _check_flags(
            qkv_bias=qkv_bias,
            deep_supervision=deep_supervision,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.num_classes = num_classes
        self.in_chan = in_chan
        self.num_stages = len(depths)
        self.patch_size = _triple("patch_size", patch_size)
        self.deep_supervision = deep_supervision
        self.gradient_checkpointing = gradient_checkpointing

        groups = _triple("group_size", group_size)
        last_block = sum(depths) - 1
        block_rates = [drop_path_rate * index / last_block for index in range(sum(depths))]

        def stage(level: int) -> Stage:
            before = sum(depths[:level])
            rates = block_rates[before : before + depths[level]]
            blocks = [
                DFormerBlock(
                    embed_dim * 2**level,
                    num_heads[level],
                    groups,
                    "local" if index % 2 == 0 else "global",
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=rate,
                )
                for index, rate in enumerate(rates)
            ]
            return Stage(embed_dim * 2**level, blocks)

        # Lists are indexed by level: 0 is the finest grid, in the decoder too
        widths = [embed_dim * 2**level for level in range(len(depths))]
        self.embedding = nn.Conv3d(in_chan, embed_dim, self.patch_size, self.patch_size)
        self.embedding_norm = nn.LayerNorm(embed_dim)
        self.embedding_dropout = nn.Dropout(drop_rate)
        self.encoder = nn.ModuleList(stage(level) for level in range(len(depths)))
        self.mergings = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.encoder_norm = nn.LayerNorm(widths[-1])
        self.expansions = nn.ModuleList(PatchExpansion(width) for width in widths[1:])
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for width in widths[:-1])
        self.decoder = nn.ModuleList(stage(level) for level in range(len(depths) - 1))
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.heads = nn.ModuleList(
            SegmentationHead(width, num_classes, self.patch_size)
            for width in (widths[:-1] if deep_supervision else widths[:1])
        )
        self.apply(_initialise)
        if gradient_checkpointing:
            recompute_blocks(self, DFormerBlock)

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> (
        Float[Tensor, "batch classes depth height width"]
        | list[Float[Tensor, "batch classes _d _h _w"]]
    ):
        """Logits of every voxel.

        Args:
            image: volumes of any size.

        Returns:
            Logits at the image's size. In training with deep supervision a list of logits at
            full, half, quarter, ... size, each size rounded up.

        Raises:
            ValueError: for anything but a batch of volumes with `in_chan` channels.
        """
        _check_image(image, self.in_chan)
        features = self._decode(self._encode(image))
        if not self.training:
            features = features[:1]
        logits = []
        for level, (head, tokens) in enumerate(zip(self.heads, features, strict=False)):
            depth, height, width = (-(-size // 2**level) for size in image.shape[2:])
            voxels = head(tokens)
            logits.append(voxels[:, :, :depth, :height, :width])
        return logits if self.training and self.deep_supervision else logits[0]

    def _encode(self, image: Tensor) -> list[Tensor]:
        """Tokens that enter each stage, finest first; the last are those that leave it."""
        missing = [
            -size % patch for size, patch in zip(image.shape[2:], self.patch_size, strict=True)
        ]
        if any(missing):
            image = F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0]))
        tokens = self.embedding_norm(self.embedding(image).movedim(1, -1))
        tokens = self.embedding_dropout(tokens)
        grids = []
        for stage, merging in zip(self.encoder, self.mergings, strict=False):
            grids.append(tokens)
            tokens = merging(stage(tokens))
        return [*grids, self.encoder_norm(self.encoder[-1](tokens))]

    def _decode(self, grids: list[Tensor]) -> list[Tensor]:
        """Features for the heads, finest first.

        The finest are the decoder's output; the others are the expanded tokens of their
        level before the skip connection joins them, as published.
        """
        tokens = grids[-1]
        features: list[Tensor] = []
        for level in reversed(range(self.num_stages - 1)):
            expanded = self.expansions[level](tokens, grids[level].shape[1:4])
            features.insert(0, expanded)
            joined = linear_of_both(self.skips[level], expanded, grids[level])
            tokens = self.decoder[level](joined)
        features[0] = self.decoder_norm(tokens)
        return features


def _initialise(module: nn.Module) -> None:
    """Truncated normal weights and zero biases for linear layers; the rest is torch's own."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")


def _check_sequence(name: str, values: Any) -> None:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}={values!r} must be a list of positive integers")
    for index, value in enumerate(values):
        _check_positive(**{f"{name}[{index}]": value})


def _triple(name: str, values: Sequence[int]) -> Size:
    _check_sequence(name, values)
    if len(values) != 3:
        raise ValueError(f"{name}={list(values)} needs three entries: depth, height and width")
    depth, height, width = values
    return depth, height, width


def _check_stages(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    _check_sequence("depths", depths)
    _check_sequence("num_heads", num_heads)
    if len(depths) != len(num_heads):
        raise ValueError(
            f"depths={list(depths)} has {len(depths)} stages but num_heads={list(num_heads)} "
            f"has {len(num_heads)}: give one entry a stage in both"
        )
    if len(depths) < 2:
        raise ValueError(f"depths={list(depths)} needs at least two stages, e.g. [2, 2, 6, 2]")
    for level, heads in enumerate(num_heads):
        width = embed_dim * 2**level
        if width % heads:
            raise ValueError(
                f"num_heads[{level}]={heads} does not divide the stage's width {width} "
                f"(embed_dim={embed_dim} * 2**{level})"
            )


def _check_rates(**rates: Any) -> None:
    for name, rate in rates.items():
        if not _is_number(rate) or not 0 <= rate < 1:
            raise ValueError(f"{name}={rate!r} must be a number of at least 0 and below 1")


def _check_mlp_ratio(mlp_ratio: Any, embed_dim: int) -> None:
    if not _is_number(mlp_ratio) or not 1 <= mlp_ratio * embed_dim < math.inf:
        raise ValueError(
            f"mlp_ratio={mlp_ratio!r} must be a number that leaves a hidden unit at "
            f"embed_dim={embed_dim}, e.g. 4"
        )


def _check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"{name}={flag!r} must be true or false")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_image(image: Tensor, in_chan: int) -> None:
    if image.ndim == 4:
        raise ValueError(
            f"D-Former got a 4D input of shape {tuple(image.shape)}, but a 2D mode does not "
            "exist: give volumes (batch, channels, depth, height, width); a slice is a volume "
            "of depth 1"
        )
    if image.ndim != 5:
        raise ValueError(
            f"D-Former needs (batch, channels, depth, height, width), but got an input of "
            f"shape {tuple(image.shape)}"
        )
    if image.shape[1] != in_chan:
        raise ValueError(
            f"D-Former was built for in_chan={in_chan}, but the input of shape "
            f"{tuple(image.shape)} has {image.shape[1]} channels"
        )
