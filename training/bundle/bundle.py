"""The exported model: a folder that predicts NIfTI files without Ray or the training data.

A bundle holds `weights.pt` (a state dict that loads with `weights_only=True`),
`config.yaml` (the training config), `preprocessing.json`, and `bundle.json` (labels,
channels, metrics, provenance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import yaml
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from training.bundle.case_prediction import Tell, case_probabilities, probabilities_within_memory
from training.bundle.folder import CONFIG, MANIFEST, PREPROCESSING, WEIGHTS, replaced_bundle
from training.bundle.label_file import write_label_map
from training.bundle.portable import portable_config, without_paths
from training.bundle.trust import check_code, path_without
from training.checkpoints import read_checkpoint
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.errors import BundleError, CheckpointError, PluginError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from training.registry import is_plugin

FORMAT_VERSION = 1

READ_ERRORS = (OSError, RuntimeError, CheckpointError)
"""What damaged files raise, and `load_state_dict` for other networks."""


class Manifest(BaseModel):
    """The content of `bundle.json`.

    Attributes:
        format_version: Version of this layout.
        labels: Name of each label value, background first.
        channels: Name of each image channel.
        metrics: Metrics of the exported checkpoint, on the validation and test cases.
        provenance: Data fingerprint, versions, seed, commit and study of the training.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    labels: list[str]
    channels: list[str]
    metrics: dict[str, float | None]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A model that is ready to predict.

    Attributes:
        folder: Where it was read from.
        config: The config it was trained with.
        preprocessing: How an image becomes the network's input, and back.
        manifest: Labels, channels, metrics and provenance.
        module: The network, on its device, in evaluation mode.
        tell: Called with each warning about an image's header, and when a case
            is predicted on the CPU because memory runs out.
    """

    folder: Path
    config: ModelTrainingConfig
    preprocessing: Preprocessing
    manifest: Manifest
    module: SegmentationLightningModule
    tell: Tell = field(default=lambda line: None, repr=False, compare=False)

    @classmethod
    def load(
        cls, folder: Path | str, device: str | None = None, *, trust_code: bool = False
    ) -> Bundle:
        """Read a bundle from `folder`.

        Nothing in the folder is ever run. A network of somebody's own is named by its import path
        alone; its module is imported from this machine's Python path, if that is allowed.

        Args:
            folder: What `write_bundle` wrote.
            device: Torch device; a GPU if there is one, by default.
            trust_code: Whether the module of a network that is not of this package may be
                imported, and so run.

        Raises:
            BundleError: if the folder is not a complete bundle, or needs code that is not allowed.
            PluginError: if that code cannot be imported.

        Example:
            >>> bundle = Bundle.load("export")
            >>> bundle.predict("case.nii.gz").shape  # the label map, in the image's own grid
            (35, 51, 35)
            >>> bundle.predict("case.nii.gz", "predictions/case.nii.gz")
            PosixPath('predictions/case.nii.gz')
        """
        folder = Path(folder)
        missing = [
            name
            for name in (WEIGHTS, CONFIG, PREPROCESSING, MANIFEST)
            if not (folder / name).is_file()
        ]
        if missing:
            raise BundleError(
                f"{folder} is not an exported model: it lacks {', '.join(missing)}; "
                "make one with `tune export NAME -o DIR`"
            )
        try:
            config = ModelTrainingConfig(**yaml.safe_load((folder / CONFIG).read_text()))
            preprocessing = Preprocessing.model_validate_json((folder / PREPROCESSING).read_text())
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
            state = read_checkpoint(folder / WEIGHTS)
            check_code(folder, config, trust_code=trust_code)
            module = _trained_network(folder, config, state)
        except (ValidationError, yaml.YAMLError, TypeError, *READ_ERRORS) as error:
            raise BundleError(
                f"the exported model {folder} is damaged: {_first_line(error)}; export it again"
            ) from error
        if manifest.format_version != FORMAT_VERSION:
            raise BundleError(
                f"{folder} has format {manifest.format_version}, this version reads "
                f"{FORMAT_VERSION}: export it again"
            )
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(folder, config, preprocessing, manifest, module.to(chosen).eval())

    def probabilities(self, image: Float[Tensor, "c d h w"]) -> Float[Tensor, "k d h w"]:
        """Class probabilities of one preprocessed case; two classes with a target label."""
        return case_probabilities(self.module, image)

    def label_map(
        self, images: Path | str | Sequence[Path]
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]:
        """Label map of one case, in the voxel grid of its image file.

        It is uint8, or uint16 for more than 256 classes. Out of GPU memory it goes on with the
        CPU, see `training.bundle.case_prediction`.

        Args:
            images: The case's file, or its files, one a channel.

        Raises:
            ValueError: if the files are not a readable volume with the right channels.
        """
        images = _as_paths(images)
        case = self.preprocessing.apply(images)
        for warning in case.warnings:
            self.tell(f"warning: {warning}")
        if case.image.shape[0] != self.config.input_channels:
            raise BundleError(
                f"{images[0]} has {case.image.shape[0]} channels, but the model was trained on "
                f"{self.config.input_channels} ({', '.join(self.manifest.channels)})"
            )
        image = torch.from_numpy(case.image)
        probabilities = probabilities_within_memory(
            self.module,
            image,
            lambda line: self.tell(f"{images[0]}: {line}"),
            lambda: self.probabilities(image),
        )
        label = self.preprocessing.invert(probabilities.cpu().numpy(), case.info)
        kind = np.min_scalar_type(self.preprocessing.num_classes - 1)
        # in the wider type first: the target may be above what the two classes 0 and 1 need
        typed: np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]] = label.astype(kind)
        typed *= kind.type(self.config.target_label or 1)
        return typed

    @overload
    def predict(
        self, images: Path | str | Sequence[Path]
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]: ...

    @overload
    def predict(self, images: Path | str | Sequence[Path], output: Path | str) -> Path: ...

    def predict(
        self, images: Path | str | Sequence[Path], output: Path | str | None = None
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]] | Path:
        """Segment one case; with an `output` write its label map as NIfTI.

        The label map is in the image's own grid and geometry. A file is there in full or not at
        all; an older one of its name is replaced. It takes over the image's geometry and nothing
        else, see `training.bundle.label_file`.

        Args:
            images: The case's file, or its files, one a channel.
            output: NIfTI file to write; its folder is made.

        Returns:
            The label map (i, j, k) as an array, or `output` where one was given.

        Raises:
            ValueError: if the files are not a readable volume with the right channels.
        """
        images = _as_paths(images)
        label = self.label_map(images)
        if output is None:
            return label
        output = Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(label, images[0], output)
        return output


def _as_paths(images: Path | str | Sequence[Path]) -> list[Path]:
    if isinstance(images, Path | str):
        return [Path(images)]
    return [Path(image) for image in images]


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
            f"the checkpoint {checkpoint} cannot be read: {_first_line(error)}"
        ) from error
    return module.eval()


def write_bundle(
    folder: Path,
    *,
    module: SegmentationLightningModule,
    config: ModelTrainingConfig,
    preprocessing: Preprocessing,
    manifest: Manifest,
    verify: Callable[[Path], str] | None = None,
) -> str:
    """Write a bundle, whole or not at all; an older bundle in its place is replaced.

    It holds no absolute path of this machine, see `training.bundle.portable`.

    Args:
        folder: Where it goes.
        module: The network.
        config: The config that it was trained with.
        preprocessing: How an image becomes its input.
        manifest: What the bundle says of itself.
        verify: Given the new bundle, before it takes the place of an older one; what it raises
            leaves that where it is.

    Returns:
        What `verify` returned, empty without it.

    Raises:
        BundleError: if `folder` holds other files than a bundle's, or cannot be written.
    """
    portable = manifest.model_copy(update={"provenance": without_paths(manifest.provenance)})
    with replaced_bundle(folder) as new:
        torch.save(module.model.state_dict(), new / WEIGHTS)
        (new / CONFIG).write_text(yaml.safe_dump(portable_config(config), sort_keys=False))
        (new / PREPROCESSING).write_text(preprocessing.model_dump_json(indent=2))
        (new / MANIFEST).write_text(portable.model_dump_json(indent=2))
        if verify is None:
            return ""
        try:
            return verify(new)
        except BundleError as error:
            # that folder no longer exists when the user reads the message
            raise BundleError(str(error).replace(str(new), str(folder))) from error


def verify_bundle(
    folder: Path,
    module: SegmentationLightningModule,
    images: Sequence[Path],
    cached: Float[Tensor, "c d h w"] | None = None,
    label: Path | None = None,
) -> None:
    """Check that the written bundle predicts what the trial's model predicts.

    The bundle is read back and segments the case from its image files; the trial's model
    segments the same case from the preprocessed cache. The cache keeps what carries a label
    outside the body, so it was made with the label map `label`.

    Args:
        folder: The bundle.
        module: The trial's model.
        images: Image files of the case.
        cached: The preprocessed case; without it the trial's model gets what the bundle makes of
            the files.
        label: The case's label map, where the preprocessed case was made with it.

    Raises:
        BundleError: if the two differ.
        DatasetError: if the files cannot be read.
    """
    bundle = Bundle.load(folder, device="cpu", trust_code=True)
    case = torch.from_numpy(bundle.preprocessing.apply(images, label).image)
    _check_alike(bundle, module, case, case if cached is None else cached, str(images[0]))


def verify_network(
    folder: Path, module: SegmentationLightningModule, cached: Float[Tensor, "c d h w"], name: str
) -> None:
    """Check a written bundle as `verify_bundle` does, on a case that is preprocessed already.

    Args:
        folder: The bundle.
        module: The trial's model.
        cached: The preprocessed case.
        name: What it is, for the message of an error.

    Raises:
        BundleError: if the two differ.
    """
    _check_alike(Bundle.load(folder, device="cpu", trust_code=True), module, cached, cached, name)


def _check_alike(
    bundle: Bundle,
    module: SegmentationLightningModule,
    case: Float[Tensor, "c d h w"],
    cached: Float[Tensor, "c2 d2 h2 w2"],
    name: str,
) -> None:
    expected = case_probabilities(module, cached)
    written = bundle.probabilities(case)
    if written.shape != expected.shape:
        raise BundleError(
            f"the exported model {bundle.folder} predicts a grid of {tuple(written.shape)} for "
            f"{name}, the trial's model {tuple(expected.shape)}: the data has changed "
            "since it was preprocessed"
        )
    difference = float((written - expected).abs().max())
    if not difference <= 1e-4:
        raise BundleError(
            f"the exported model {bundle.folder} does not predict what its trial predicted for "
            f"{name}: probabilities differ by {difference:.3g} (limit 1e-4)"
        )


def _module(config: ModelTrainingConfig) -> SegmentationLightningModule:
    """An untrained module of `config`; its loss is not used, so it needs no data."""
    plain = config.model_copy(update={"class_weights": "uniform"})
    return SegmentationLightningModule(build_model(plain), plain)


def _module_of_network(config: ModelTrainingConfig) -> SegmentationLightningModule:
    """An untrained module of the network alone: what was only trained with is not imported."""
    trained_with = {"loss": "cross_entropy", "monitor": "val_dice", "own_metrics": []}
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
            f"may be another version than it was trained with: {_first_line(error)}"
        ) from error
    return module


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def clean_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: null for a value that is not defined."""
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}
