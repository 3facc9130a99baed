"""Estimates the memory of a training step without allocating it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.config import ModelTrainingConfig
from training.models import build_model
from training.models.precision import FASTER_IN_BF16
from training.models.recompute import activations_kept, recomputed_blocks

FLOAT_BYTES = 4

COPIES_OF_OPTIMIZER: dict[str, int] = {"adam": 2, "adamw": 2, "sgd": 1}
"""Moments that an optimizer keeps of each weight; of a plug-in that is not known."""


def training_bytes(config: ModelTrainingConfig) -> int:
    """Bytes that a training step of one process takes, at least.

    Weights, gradients, the optimizer's moments, the moving average of the weights, and the
    activations of a batch of patches that autograd keeps for the backward pass, half as large in
    mixed precision; precision `auto` counts as mixed where it may be. They are counted on
    torch's device `meta`, so nothing is allocated or computed.
    What a library needs for its own
    work (cuDNN, the allocator's blocks, the CUDA context) comes on top.

    Raises:
        ValueError: if the network cannot be built, see `build_model`.

    Example:
        >>> params = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4]}
        >>> small = ModelTrainingConfig(model_params=params, patch_size=(16, 32, 32))
        >>> larger = small.model_copy(update={"train_batch_size": 4})
        >>> training_bytes(small) < training_bytes(larger) < 2 * training_bytes(small)
        True
    """
    with torch.device("meta"):
        model = build_model(config).train()
        image = torch.zeros(
            config.known_batch_size, config.input_channels, *config.known_patch_size
        )
        weights = sum(parameter.numel() for parameter in model.parameters()) * FLOAT_BYTES
        copies = 2 + COPIES_OF_OPTIMIZER.get(config.optimizer, 0) + (config.ema_decay is not None)
        activations = _activation_bytes(model, image)
    on_cpu = config.precision == "auto" and config.gpus == 0
    full = config.precision == "32-true" or (on_cpu and config.model_name not in FASTER_IN_BF16)
    return weights * copies + (activations if full else activations // 2)


def _activation_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes of all tensors but the weights that there are at the peak of the backward pass.

    They are those that autograd keeps between the two passes; with gradient checkpointing these are
    fewer, and those of the block that has the most are added, which are computed again one block
    at a time.
    """
    kept = _kept(model, image)
    blocks = recomputed_blocks(model)
    if not blocks:
        return kept
    with activations_kept(model):
        return kept + max(_kept_in(model, blocks, image))


def _kept(model: nn.Module, image: Tensor) -> int:
    """Bytes that autograd keeps of all that a network and a loss compute."""
    counter = _Counter(model)
    with counter:
        outputs = model(image)
        for logits in outputs if isinstance(outputs, list | tuple) else [outputs]:
            target = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.int64)
            cross_entropy(logits, target)
    return counter.bytes


def _kept_in(model: nn.Module, blocks: Sequence[nn.Module], image: Tensor) -> list[int]:
    """Bytes that autograd keeps in each of some blocks."""
    found: list[int] = []
    counters: dict[nn.Module, _Counter] = {}

    def enter(block: nn.Module, inputs: Any) -> None:
        counters[block] = _Counter(model)
        counters[block].__enter__()

    def leave(block: nn.Module, inputs: Any, output: Any) -> None:
        counter = counters.pop(block)
        counter.__exit__()
        found.append(counter.bytes)

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Counter:
    """Counts what autograd keeps, but for the weights.

    Args:
        model: Its weights do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._of_weights = {one.untyped_storage()._cdata for one in model.parameters()}
        # the storage is kept beside its size: the address of one that is gone may be given again
        self._kept: dict[int, tuple[int, torch.UntypedStorage]] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """Bytes of what was kept."""
        return sum(size for size, _ in self._kept.values())

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._of_weights:
            self._kept[storage._cdata] = (storage.nbytes(), storage)
        return tensor
