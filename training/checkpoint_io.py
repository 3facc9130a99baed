"""How checkpoints are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from training.durable_write import durable_file


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, synced to the disk before they take the place of older ones."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint in full or not at all."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(path) as file:
            file.write(buffer.getbuffer())
