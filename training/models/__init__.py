"""The networks that can be trained: `MODELS` by name, and `build_model` from a config."""

from __future__ import annotations

from training.models.build import build_model
from training.registry import MODELS

__all__ = ["MODELS", "build_model"]
