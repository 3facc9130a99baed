"""The exported model: written, read, verified, predicting, converted.

Its parts load on first use: who asks where a bundle may be written needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from training.errors import BundleError

if TYPE_CHECKING:
    from training.bundle.bundle import Bundle, Manifest, write_bundle
    from training.bundle.network_export import export_network
    from training.bundle.prediction import predict_images

__all__ = [
    "Bundle",
    "BundleError",
    "Manifest",
    "export_network",
    "predict_images",
    "write_bundle",
]

_HOMES = {
    "Bundle": "training.bundle.bundle",
    "Manifest": "training.bundle.bundle",
    "export_network": "training.bundle.network_export",
    "predict_images": "training.bundle.prediction",
    "write_bundle": "training.bundle.bundle",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
