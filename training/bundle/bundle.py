"""The exported model: a folder that predicts images without Ray or the training data.

A bundle of one network holds `weights.pt` (a state dict that loads with `weights_only=True`) and
`config.yaml` (the training config), one of several has both in a folder a network, `members/0`,
`members/1`, ... Beside them are `preprocessing.json`, which all of them share, and `bundle.json`
(labels, channels, metrics, provenance, weights of the members).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import yaml
from jaxtyping import Float
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from torch import Tensor

from training.bundle.case_prediction import Tell
from training.bundle.channel_check import check_image_files, check_intensities
from training.bundle.folder import (
    MANIFEST,
    MEMBER_FILES,
    PREPROCESSING,
    member_folder,
    replaced_bundle,
)
from training.bundle.label_file import check_label_file, write_label_map
from training.bundle.manifest import FORMAT_OF_PLAIN_LABELS, FORMAT_VERSION, Manifest, MemberEntry
from training.bundle.member import (
    READ_ERRORS,
    Member,
    check_alike,
    first_line,
    label_map_of,
    mean_probabilities,
    read_network,
)
from training.bundle.memory import check_predicting, check_preparing
from training.bundle.portable import without_paths
from training.bundle.probability_file import room_for_probabilities, write_probabilities
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.raw.file_names import channel_numbers
from training.data.raw.header import open_volume
from training.data.raw.label_values import label_dtype, to_values
from training.data.raw.volume import voxels_in_header
from training.errors import BundleError, PluginError
from training.lightning_module import SegmentationLightningModule


@dataclass(frozen=True)
class Bundle:
    """A model that is ready to predict.

    Attributes:
        folder: Where it was read from.
        members: Its networks, in evaluation mode. Several rest on the CPU, and are taken to the
            device for each case.
        preprocessing: How an image becomes the networks' input, and back.
        manifest: Labels, channels, metrics and provenance.
        tell: Called with each warning about an image's header, and when a case
            is predicted on the CPU because memory runs out.
        check_channels: Whether images that cannot be of the model's channels are refused.
    """

    folder: Path
    members: tuple[Member, ...]
    preprocessing: Preprocessing
    manifest: Manifest
    tell: Tell = field(default=lambda line: None, repr=False, compare=False)
    check_channels: bool = True

    @classmethod
    def load(
        cls,
        folder: Path | str,
        device: str | None = None,
        *,
        trust_code: bool = False,
        mirroring: bool = True,
        check_channels: bool = True,
    ) -> Bundle:
        """Read a bundle from `folder`.

        Nothing in the folder is ever run. A network of somebody's own is named by its import path
        alone; its module is imported from this machine's Python path, if that is allowed.

        Args:
            folder: What `write_bundle` wrote.
            device: Torch device; a GPU if there is one, by default.
            trust_code: Whether the module of a network that is not of this package may be
                imported, and so run.
            mirroring: Whether networks predict mirrored images as well, where the bundle says so;
                without it is up to eight times as fast, and a little worse.
            check_channels: Whether images that cannot be of the channels which the model was
                trained on are refused, see `training.bundle.channel_check`.

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
        _check_files(folder, (PREPROCESSING, MANIFEST))
        try:
            manifest = Manifest.read(folder)
            _check_files(
                folder,
                [f"{entry.folder}/{file}" for entry in manifest.members for file in MEMBER_FILES],
            )
            preprocessing = Preprocessing.model_validate_json((folder / PREPROCESSING).read_text())
            chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            members = [
                _read_member(folder, entry, chosen, trust_code=trust_code)
                for entry in manifest.members
            ]
            check_alike([member.config for member in members])
        except (BundleError, PluginError):
            raise
        except (ValueError, yaml.YAMLError, TypeError, *READ_ERRORS) as error:
            raise BundleError(
                f"the exported model {folder} is damaged: {first_line(error)}; export it again"
            ) from error
        if not mirroring:
            members = [replace(member, mirror_axes=()) for member in members]
        if len(members) == 1:
            members[0].module.to(chosen)
        return cls(folder, tuple(members), preprocessing, manifest, check_channels=check_channels)

    @property
    def config(self) -> ModelTrainingConfig:
        """The config of its first network; all of them have its classes and channels."""
        return self.members[0].config

    @property
    def module(self) -> SegmentationLightningModule:
        """Its network, where it has one.

        Raises:
            BundleError: if it has several.
        """
        if len(self.members) > 1:
            raise BundleError(
                f"the exported model {self.folder} has {len(self.members)} networks, see `members`"
            )
        return self.members[0].module

    def probabilities(self, image: Float[Tensor, "c d h w"]) -> Float[Tensor, "k d h w"]:
        """Probabilities of one preprocessed case: of classes, two with a target label, or regions.

        Those of several networks are averaged by their weights. Out of GPU memory it goes on with
        the CPU, see `training.bundle.case_prediction`.
        """
        return mean_probabilities(self.members, image, self.tell)

    def label_map(
        self, images: Path | str | Sequence[Path], *, probabilities: Path | str | None = None
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]:
        """Label map of one case, in the voxel grid of its image file.

        It has the values of the label files, in uint8, or uint16 for values above 255. Out of GPU
        memory it goes on with the CPU, see `training.bundle.case_prediction`.

        Args:
            images: The case's file, or its files, one a channel. Where the model may do without
                channels, names that end in `_0000`, `_0001`, ... say which there are.
            probabilities: NIfTI file to write the class probabilities to, before postprocessing;
                see `training.bundle.probability_file`. Its folder is made.

        Raises:
            ValueError: if the files are not a readable volume with the right channels, or there is
                too little memory.
        """
        images = _as_paths(images)
        _, header = open_volume(images[0])
        check_preparing(images[0], sum(voxels_in_header(image) for image in images))
        present = self._present(images, header.channels)
        inspect = self._channel_check(images, present) if self.check_channels else None
        case = self.preprocessing.apply(images, channels=present, inspect=inspect)
        for warning in case.warnings:
            self.tell(f"warning: {warning}")
        if case.image.shape[0] != self.config.input_channels:
            raise BundleError(
                f"{images[0]} has {case.image.shape[0]} channels, but the model was trained on "
                f"{self.config.input_channels} ({', '.join(self.manifest.channels)})"
            )
        channels = self.config.task_channels
        patches = [member.config.known_patch_size for member in self.members]
        check_predicting(images[0], case.image.shape, patches, channels)

        def predict(stored: NDArray[np.uint16] | None) -> NDArray[np.unsignedinteger[Any]]:
            return label_map_of(
                self.members,
                self.preprocessing,
                case,
                lambda line: self.tell(f"{images[0]}: {line}"),
                stored,
            )

        if probabilities is None:
            label = predict(None)
        else:
            output = Path(probabilities)
            output.parent.mkdir(parents=True, exist_ok=True)
            with room_for_probabilities(output.parent, header.shape, channels) as stored:
                label = predict(stored)
                write_probabilities(stored, images[0], output)
        cleaned = self.manifest.postprocessing.apply(label, voxel_sizes(header.affine))
        if self.config.target_class is not None:
            # in the wider type first: the target may be above what the two classes 0 and 1 need
            kind = label_dtype(self.config.num_classes)
            cleaned = cleaned.astype(kind) * kind.type(self.config.target_class)
        return to_values(cleaned, self.preprocessing.values)

    def _channel_check(
        self, images: Sequence[Path], present: Sequence[int] | None
    ) -> Callable[[NDArray[np.float32]], None]:
        """Check what is said of the files of a case; a check of their voxels.

        Raises:
            BundleError: if they are other channels than the model was trained on; the check, too.
        """
        names = self.manifest.channels
        for line in check_image_files(names, images, present):
            self.tell(line)

        def inspect(voxels: NDArray[np.float32]) -> None:
            found = check_intensities(names, self.preprocessing, images[0], voxels, present)
            for line in found:
                self.tell(line)

        return inspect

    def _present(self, images: Sequence[Path], in_first: int) -> tuple[int, ...] | None:
        """Channels that a case has, None for all of them.

        Args:
            images: Its files.
            in_first: Channels in the first of them.

        Raises:
            BundleError: if channels are missing and nothing says which.
        """
        names = self.manifest.channels
        given = in_first if len(images) == 1 else len(images)
        if given >= len(names) or not self.preprocessing.missing_channels:
            return None
        present = channel_numbers(images, len(names))
        if present is None or len(present) != given:
            raise BundleError(
                f"{images[0]}: {given} of {len(names)} channels ({', '.join(names)}), and nothing "
                "says which: let the name of each file end in the number of its channel, "
                f"_0000 for {names[0]}, _0001 for {names[1]}, ..."
            )
        lacking = [name for number, name in enumerate(names) if number not in present]
        self.tell(f"{images[0]}: predicted without {', '.join(lacking)}")
        return present

    @overload
    def predict(
        self,
        images: Path | str | Sequence[Path],
        *,
        probabilities: Path | str | None = None,
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]: ...

    @overload
    def predict(
        self,
        images: Path | str | Sequence[Path],
        output: Path | str,
        *,
        probabilities: Path | str | None = None,
        file_format: str | None = None,
    ) -> Path: ...

    def predict(
        self,
        images: Path | str | Sequence[Path],
        output: Path | str | None = None,
        *,
        probabilities: Path | str | None = None,
        file_format: str | None = None,
    ) -> np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]] | Path:
        """Segment one case; with an `output` write its label map.

        The label map is in the image's own grid and geometry. A file is there in full or not at
        all; an older one of its name is replaced. It takes over the image's geometry and nothing
        else, see `training.bundle.label_file`.

        Args:
            images: The case's file, or its files, one a channel.
            output: File to write, in the format of its ending; its folder is made.
            probabilities: NIfTI file to write the class probabilities to, `.nii.gz`.
            file_format: Format of the file where several have its ending: `.dcm` is DICOM-SEG, or
                `rtstruct`.

        Returns:
            The label map (i, j, k) as an array, or `output` where one was given.

        Raises:
            ValueError: if the files are not a readable volume with the right channels, or there is
                too little memory.
        """
        images = _as_paths(images)
        if output is not None:
            check_label_file(Path(output))
        label = self.label_map(images, probabilities=probabilities)
        if output is None:
            return label
        output = Path(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(
            label, images[0], output, names=self._names_of_values(), file_format=file_format
        )
        return output

    def _names_of_values(self) -> dict[int, str]:
        """Name of each value that a label map can have, but of the background."""
        named = dict(zip(self.preprocessing.values, self.manifest.labels, strict=False))
        target = self.config.target_label
        return {value: name for value, name in named.items() if value and target in {None, value}}


def _as_paths(images: Path | str | Sequence[Path]) -> list[Path]:
    if isinstance(images, Path | str):
        return [Path(images)]
    return [Path(image) for image in images]


def _check_files(folder: Path, names: Sequence[str]) -> None:
    missing = [str(Path(name)) for name in names if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            f"{folder} is not an exported model: it lacks {', '.join(missing)}; "
            "make one with `tune export NAME -o DIR`"
        )


def _read_member(
    folder: Path, entry: MemberEntry, device: torch.device, *, trust_code: bool
) -> Member:
    config, module = read_network(folder, folder / entry.folder, trust_code=trust_code)
    return Member(config, module, entry.weight, entry.mirror_axes, device)


def write_bundle(
    folder: Path,
    *,
    members: Sequence[Member],
    preprocessing: Preprocessing,
    manifest: Manifest,
    verify: Callable[[Path], str] | None = None,
) -> str:
    """Write a bundle, whole or not at all; an older bundle in its place is replaced.

    It holds no absolute path of this machine, see `training.bundle.portable`.

    Args:
        folder: Where it goes.
        members: Its networks; their weights sum to 1.
        preprocessing: How an image becomes their input.
        manifest: What the bundle says of itself; its format, its label values, its regions and
            its entry of members are filled in.
        verify: Given the new bundle, before it takes the place of an older one; what it raises
            leaves that where it is.

    Returns:
        What `verify` returned, empty without it.

    Raises:
        BundleError: if `folder` holds other files than a bundle's or cannot be written, or the
            networks do not predict the same classes from the same channels.
    """
    check_alike([member.config for member in members])
    folders = ["."] if len(members) == 1 else [member_folder(n) for n in range(len(members))]
    entries = [
        MemberEntry(folder=place, weight=member.weight, mirror_axes=member.mirror_axes)
        for place, member in zip(folders, members, strict=True)
    ]
    provenance = without_paths(manifest.provenance)
    values, regions = preprocessing.label_values, members[0].module.regions
    config = members[0].config
    known_by_2 = (
        values is None
        and regions is None
        and not (preprocessing.ignore or preprocessing.label_names)
    )
    portable = Manifest(
        **{
            **dict(manifest),
            "format_version": FORMAT_OF_PLAIN_LABELS if known_by_2 else FORMAT_VERSION,
            "label_values": None if values is None else list(values),
            "regions": config.regions if regions is not None else None,
            "regions_class_order": (
                None if regions is None else [preprocessing.values[one] for one in regions.order]
            ),
            "provenance": provenance,
            "members": entries,
        }
    )
    with replaced_bundle(folder) as new:
        for place, member in zip(folders, members, strict=True):
            member.write(new / place)
        (new / PREPROCESSING).write_text(preprocessing.model_dump_json(indent=2))
        (new / MANIFEST).write_text(portable.model_dump_json(indent=2))
        if verify is None:
            return ""
        try:
            return verify(new)
        except BundleError as error:
            # that folder no longer exists when the user reads the message
            raise BundleError(str(error).replace(str(new), str(folder))) from error
