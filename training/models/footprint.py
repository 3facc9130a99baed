"""Estimates the memory of a training step without allocating it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.config import ModelTrainingConfig
from training.models import build_model
from training.models.precision import FASTER_IN_BF16

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
        image = torch.zeros(config.train_batch_size, config.input_channels, *config.patch_size)
        weights = sum(parameter.numel() for parameter in model.parameters()) * FLOAT_BYTES
        copies = 2 + COPIES_OF_OPTIMIZER.get(config.optimizer, 0) + (config.ema_decay is not None)
        activations = _activation_bytes(model, image)
    on_cpu = config.precision == "auto" and config.gpus == 0
    full = config.precision == "32-true" or (on_cpu and config.model_name not in FASTER_IN_BF16)
    return weights * copies + (activations if full else activations // 2)


def _activation_bytes(model: torch.nn.Module, image: Tensor) -> int:
    """Bytes of all tensors but the weights that autograd keeps between the two passes."""
    of_weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    # the storage is kept beside its size: the address of one that is gone may be given again
    kept: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in of_weights:
            kept[storage._cdata] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(image)
        for logits in outputs if isinstance(outputs, list | tuple) else [outputs]:
            target = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.int64)
            cross_entropy(logits, target)
    return sum(size for size, _ in kept.values())
