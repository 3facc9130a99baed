"""The compute type under autocast, also on devices without autocast (meta)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type that autocast would compute in; the tensor's own without autocast."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


FASTER_IN_BF16 = frozenset({"dynunet", "resenc_unet", "segresnet", "segresnet_ds"})
"""Networks whose training step takes about half the time in bf16 on a CPU that computes in it:
those of plain convolutions. D-Former's attention takes as long."""


def cpu_computes_in_bf16() -> bool:
    """Whether the CPU has instructions for bf16 (AVX512-BF16 or AMX); others imitate it, slowly."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which types stay as they are."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
