"""The exported model: written, read, verified, predicting, converted.

Its parts load on first use: who asks where a bundle may be written needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.errors import BundleError
from training.lazy_names import lazy_names

if TYPE_CHECKING:
    from training.bundle.bundle import Bundle, write_bundle
    from training.bundle.manifest import Manifest
    from training.bundle.member import Member
    from training.bundle.network_export import export_network
    from training.bundle.prediction import predict_images

__all__ = [
    "Bundle",
    "BundleError",
    "Manifest",
    "Member",
    "export_network",
    "predict_images",
    "write_bundle",
]

_MODULES = {
    "Bundle": "training.bundle.bundle",
    "Manifest": "training.bundle.manifest",
    "Member": "training.bundle.member",
    "export_network": "training.bundle.network_export",
    "predict_images": "training.bundle.prediction",
    "write_bundle": "training.bundle.bundle",
}

__getattr__ = lazy_names(__name__, _MODULES)
