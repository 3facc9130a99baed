"""Gradient checkpointing: blocks whose activations are recomputed for the backward pass.

A block then keeps its input alone (Chen et al., 2016, arXiv:1604.06174). Names and values of
weights, outputs and gradients stay what they are: dropout draws the same again, and running
statistics of batch norms take a batch in once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_MARK = "_recomputed"


def recompute_blocks(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Let blocks of a network recompute their activations in the backward pass.

    Outside of training they compute as they did, so the network can be traced and exported.

    Args:
        network: It is changed, but its weights and their names are not.
        kinds: Classes of the blocks; of blocks within blocks the outermost is taken.

    Raises:
        ValueError: if the network has no such block.
    """
    if not _wrap(network, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"gradient_checkpointing=true finds no block to recompute in {type(network).__name__} "
            f"(looked for {names}): turn it off"
        )


def recomputed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network that recompute their activations."""
    return [module for module in network.modules() if _MARK in module.__dict__]


@contextmanager
def activations_kept(network: nn.Module) -> Iterator[None]:
    """Let the blocks of a network keep their activations for a while, to count them."""
    blocks = recomputed_blocks(network)
    for block in blocks:
        block.__dict__[_MARK] = False
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__[_MARK] = True


def _wrap(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    """Wrap the blocks in a module; how many there are."""
    if isinstance(module, kinds):
        # a bound method of the module itself: a deep copy of a network binds it to the copy
        module.__dict__["forward"] = MethodType(_forward, module)
        module.__dict__[_MARK] = True
        return 1
    return sum(_wrap(child, kinds) for child in module.children())


def _forward(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What a block gives, recomputed for the gradient in training."""
    forward: Callable[..., Any] = type(block).forward
    if not (block.__dict__[_MARK] and block.training and torch.is_grad_enabled()):
        return forward(block, *inputs, **named)
    return checkpoint(
        forward,
        block,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_unchanged(block)),
        **named,
    )


@contextmanager
def _statistics_unchanged(block: nn.Module) -> Iterator[None]:
    """A context in which batch norms normalise as in training, and learn no statistics."""
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        # a count of its own: that of the norm stays what it is
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
