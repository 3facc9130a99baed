"""The networks of a bundle: one, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt
from numpy.typing import NDArray
from torch import Tensor

from training.bundle.case_prediction import (
    Tell,
    probabilities_within_memory,
    probability_slabs,
    within_memory,
)
from training.bundle.folder import CONFIG, WEIGHTS
from training.bundle.portable import portable_config
from training.bundle.trust import check_code, path_without
from training.checkpoints import read_checkpoint
from training.config import LOSS_OF_REGIONS, ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.preprocessing import PreprocessedCase
from training.data.raw.label_values import label_dtype
from training.errors import BundleError, CheckpointError, PluginError
from training.inference import whole_case
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from training.registry import is_plugin

READ_ERRORS = (OSError, RuntimeError, CheckpointError)
"""What damaged files raise, and `load_state_dict` for other networks."""

SHARED_FIELDS = (
    *("num_classes", "input_channels", "label_values", "target_label"),
    *("regions", "regions_class_order"),
)
"""Fields of the config in which the members of an ensemble agree."""


@dataclass(frozen=True)
class Member:
    """A trained network of a bundle.

    Attributes:
        config: The config that it was trained with.
        module: The network, in evaluation mode.
        weight: Its share of the mean of probabilities.
        mirror_axes: Axes that its predictions are averaged over with the image mirrored: 0 depth,
            1 height, 2 width.
        device: Where it predicts: the network is taken there for each case, and back. None for
            where it is.
    """

    config: ModelTrainingConfig
    module: SegmentationLightningModule
    weight: float = 1.0
    mirror_axes: tuple[int, ...] = ()
    device: torch.device | None = None

    def probabilities(
        self, image: Float[Tensor, "c d h w"], tell: Tell = lambda line: None
    ) -> Float[Tensor, "k d h w"]:
        """Class probabilities of one preprocessed case, with as little GPU memory as it takes."""
        with _on_their_devices([self]):
            return probabilities_within_memory(
                self.module, image, tell, mirror_axes=self.mirror_axes
            )

    def write(self, folder: Path) -> None:
        """Write its weights and its config, without paths of this machine."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.module.model.state_dict(), folder / WEIGHTS)
        (folder / CONFIG).write_text(yaml.safe_dump(portable_config(self.config), sort_keys=False))


def mean_probabilities(
    members: Sequence[Member],
    image: Float[Tensor, "c d h w"],
    tell: Tell = lambda line: None,
) -> Float[Tensor, "k d h w"]:
    """The weighted mean of the members' class probabilities of one preprocessed case.

    Args:
        members: The networks; their weights sum to 1.
        image: The case.
        tell: Called with a line when they fall back to the CPU.
    """

    def predict(blend_device: torch.device | None) -> Tensor:
        return whole_case(_mean_slabs(members, image, blend_device), image.shape[1])

    with _on_their_devices(members):
        return within_memory([member.module for member in members], predict, tell)


def label_map_of(
    members: Sequence[Member],
    preprocessing: Preprocessing,
    case: PreprocessedCase,
    tell: Tell = lambda line: None,
    stored: UInt[np.ndarray, "i j k c"] | None = None,
) -> UInt[np.ndarray, "i j k"]:
    """The members' label map of one case, on the grid of its file.

    Probabilities are made, averaged, resampled and compared a few planes at a time; they are never
    whole in memory.

    Args:
        members: The networks; their weights sum to 1.
        preprocessing: How the case was preprocessed.
        case: The case.
        tell: Called with a line when they fall back to the CPU.
        stored: An array that gets the probabilities on the file's grid, see
            `Preprocessing.invert_slabs`.
    """
    image = torch.from_numpy(case.image)

    def predict(blend_device: torch.device | None) -> NDArray[np.unsignedinteger[Any]]:
        slabs = (slab.cpu() for slab in _mean_slabs(members, image, blend_device))
        regions = members[0].module.regions
        return preprocessing.invert_slabs(slabs, image.shape[1], case.info, stored, regions)

    with _on_their_devices(members):
        return within_memory([member.module for member in members], predict, tell)


def preprocessed_label_map_of(
    members: Sequence[Member],
    image: Float[Tensor, "c d h w"],
    tell: Tell = lambda line: None,
) -> UInt[np.ndarray, "d h w"]:
    """The members' label map of one preprocessed case on its own grid, as `label_map_of`."""

    def predict(blend_device: torch.device | None) -> NDArray[np.unsignedinteger[Any]]:
        slabs = _mean_slabs(members, image, blend_device)
        # a byte or two for each voxel, not eight, and never all probabilities
        kind = label_dtype(members[0].config.num_classes)
        classes = members[0].module.classes
        planes = [classes(slab[None])[0].cpu().numpy().astype(kind) for slab in slabs]
        return np.concatenate(planes)

    with _on_their_devices(members):
        return within_memory([member.module for member in members], predict, tell)


def _mean_slabs(
    members: Sequence[Member],
    image: Float[Tensor, "c d h w"],
    blend_device: torch.device | None,
) -> Iterator[Float[Tensor, "k slab h w"]]:
    """The members' mean, as far as all of them have come."""
    streams = [
        probability_slabs(
            member.module, image, blend_device=blend_device, mirror_axes=member.mirror_axes
        )
        for member in members
    ]
    if len(members) == 1:
        yield from streams[0]
        return
    held = [next(stream) for stream in streams]
    done = 0
    while True:
        planes = min(slab.shape[1] for slab in held)
        mean = held[0][:, :planes] * members[0].weight
        for member, slab in zip(members[1:], held[1:], strict=True):
            mean += slab[:, :planes] * member.weight
        yield mean
        done += planes
        if done == image.shape[1]:
            return
        held = [
            slab[:, planes:] if slab.shape[1] > planes else next(stream)
            for slab, stream in zip(held, streams, strict=True)
        ]


@contextmanager
def _on_their_devices(members: Sequence[Member]) -> Iterator[None]:
    """Take networks to where they predict, and back."""
    resting = [member.module.device for member in members]
    try:
        for member in members:
            member.module.to(member.device or member.module.device)
        yield
    finally:
        for member, device in zip(members, resting, strict=True):
            member.module.to(device)


def load_checkpoint(checkpoint: Path, config: ModelTrainingConfig) -> SegmentationLightningModule:
    """The module of a training checkpoint, in evaluation mode on the CPU.

    Raises:
        BundleError: if the checkpoint is missing, damaged, or of another network.
    """
    module = _module(config)
    prefix = "model."
    try:
        state = read_checkpoint(checkpoint)["state_dict"]
        module.model.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
        )
    except (KeyError, *READ_ERRORS) as error:
        raise BundleError(
            f"the checkpoint {checkpoint} cannot be read: {first_line(error)}"
        ) from error
    return module.eval()


def read_network(
    bundle: Path, folder: Path, *, trust_code: bool
) -> tuple[ModelTrainingConfig, SegmentationLightningModule]:
    """A network of a bundle with its config, in evaluation mode on the CPU.

    Args:
        bundle: Folder of the bundle, from which no code is imported.
        folder: Folder of the network, in it.
        trust_code: Whether code that is not of this package may be imported, and so run.

    Raises:
        BundleError: if it needs code that is not allowed, or that does not fit.
        PluginError: if that code cannot be imported.
        ValueError: if the config is damaged.
        OSError, RuntimeError, CheckpointError: if the weights are.
    """
    config = ModelTrainingConfig(**yaml.safe_load((folder / CONFIG).read_text()))
    state = read_checkpoint(folder / WEIGHTS)
    check_code(bundle, config, trust_code=trust_code)
    return config, _trained_network(bundle, config, state).eval()


def check_alike(configs: Sequence[ModelTrainingConfig]) -> None:
    """Check that networks predict the same classes from the same channels.

    Raises:
        BundleError: if they do not.
    """
    for config in configs[1:]:
        for name in SHARED_FIELDS:
            one, other = getattr(configs[0], name), getattr(config, name)
            # the order of regions is that of the channels
            alike = one == other and (not isinstance(one, dict) or list(one) == list(other))
            if not alike:
                raise BundleError(
                    f"the networks of an ensemble need one {name}, but they have {one} and {other}"
                )


def _module(config: ModelTrainingConfig) -> SegmentationLightningModule:
    """An untrained module of `config`; its loss is not used, so it needs no data."""
    plain = config.model_copy(update={"class_weights": "uniform"})
    return SegmentationLightningModule(build_model(plain), plain)


def _module_of_network(config: ModelTrainingConfig) -> SegmentationLightningModule:
    """An untrained module of the network alone: what was only trained with is not imported."""
    loss = "cross_entropy" if config.regions is None else LOSS_OF_REGIONS
    trained_with = {"loss": loss, "monitor": "val_dice", "own_metrics": []}
    return _module(config.model_copy(update=trained_with))


def _trained_network(
    folder: Path, config: ModelTrainingConfig, state: Mapping[str, Any]
) -> SegmentationLightningModule:
    """The module of a bundle's network, with its weights."""
    if not is_plugin(config.model_name):
        module = _module_of_network(config)
        module.model.load_state_dict(state)
        return module
    try:
        with path_without(folder):
            module = _module_of_network(config)
        module.model.load_state_dict(state)
    except PluginError:
        raise
    except Exception as error:
        # whatever a user's code does
        raise BundleError(
            f"the exported model {folder} does not fit {config.model_name} of this machine, which "
            f"may be another version than it was trained with: {first_line(error)}"
        ) from error
    return module


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
