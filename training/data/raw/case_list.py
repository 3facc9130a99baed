"""The list of cases in a dataset.json: `training`, in the Decathlon and nnU-Net v1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.raw.file_names import CaseFiles
from training.data.raw.formats.file_format import image_stem


@dataclass(frozen=True)
class ListedCase:
    """Names of the files of one case, relative to the data folder.

    Attributes:
        images: One file, or one a channel.
        label: The label map.
    """

    images: tuple[str, ...]
    label: str

    def image_files(
        self,
        folder: Path,
        case_id: str,
        by_channels: Mapping[str, CaseFiles],
        images: Mapping[str, Path],
    ) -> CaseFiles | None:
        """The image files that the names stand for, None where there are none.

        Args:
            folder: The data folder.
            case_id: Name of the case.
            by_channels: Cases of the folder of images, judged by their names.
            images: All files of the folder of images, by stem.
        """
        # a broken link is there too, and is reported as one
        paths = [
            path if os.path.lexists(path) else images.get(image_stem(path) or "", path)
            for path in (folder / name for name in self.images)
        ]
        if len(paths) > 1:
            return CaseFiles(tuple(paths), tuple(range(len(paths))))
        # one file of several channels stands for all of them
        for files in by_channels.values():
            if files.numbers is not None and paths[0] in files.paths:
                return files
        if os.path.lexists(paths[0]):
            return CaseFiles((paths[0],))
        # nnU-Net v1 lists CASE.nii.gz where its channels CASE_0000.nii.gz, ... are
        return by_channels.get(image_stem(paths[0]) or case_id)


def read_case_list(
    description: Mapping[str, Any], path: Path, problems: list[str]
) -> list[ListedCase] | None:
    """The cases that a dataset.json lists; None where it lists none (nnU-Net v2).

    Args:
        description: What is in the file.
        path: The file.
        problems: Collects entries that are not cases.
    """
    given = description.get("training")
    if not given:
        return None
    listed = []
    for item in given if isinstance(given, list) else [given]:
        files = item if isinstance(item, dict) else {}
        images, label = files.get("image"), files.get("label")
        images = [images] if isinstance(images, str) else images
        given_names = [*images, label] if isinstance(images, list) and images else []
        # lists that were made on Windows have its separators
        names = [name.replace("\\", "/") for name in given_names if isinstance(name, str)]
        if names and len(names) == len(given_names):
            listed.append(ListedCase(tuple(names[:-1]), names[-1]))
        else:
            problems.append(
                f"{path}: `training` must list mappings of image and label, but has {item!r}"
            )
    return listed
