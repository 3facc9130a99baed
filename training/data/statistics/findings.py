"""What a check of a dataset can find: kinds of faults, and the way out of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        severity: `error` if a study refuses the data or learns what is wrong; `warning` if a person
            should look.
        title: What it is.
        way_out: What to do about it.
    """

    severity: Severity
    title: str
    way_out: str


KINDS: dict[str, Kind] = {
    "description": Kind(
        "error", "dataset.json cannot be used", "correct it: docs, Your own data, has an example"
    ),
    "files": Kind(
        "error",
        "files that are missing, or that belong to no case",
        "add the file, or take the case out of its folders and of `training` in dataset.json",
    ),
    "header": Kind(
        "error",
        "files whose header cannot be used",
        "export the file again or correct its header, or leave out the case",
    ),
    "channels": Kind(
        "error",
        "cases with another number of channels",
        "give each case the channels that dataset.json declares, or correct `channel_names`",
    ),
    "grid": Kind(
        "error",
        "files of one case that do not lie on one grid",
        "resample one onto the other, label maps by nearest neighbour; if the voxels do fit, copy "
        "the header of the image",
    ),
    "spacing": Kind("error", "spacings that must be wrong", "correct the header"),
    "image": Kind(
        "error",
        "images whose voxels cannot be used",
        "export the file again; set NaN and infinite voxels to the value of air",
    ),
    "label": Kind(
        "error",
        "label maps whose values cannot be used",
        "name every value in `labels` of dataset.json, or correct the file",
    ),
    "swapped": Kind("error", "images that are label maps", "exchange the two files"),
    "constant image": Kind(
        "error", "images without content", "export them again, or leave them out"
    ),
    "nothing to learn": Kind(
        "error", "no label map has foreground", "are these the right label maps?"
    ),
    "like a label map": Kind(
        "warning", "channels that look like label maps", "is it a mask that is meant as an input?"
    ),
    "not used": Kind("warning", "what is there and not used", "list it, or leave it where it is"),
    "doubtful header": Kind(
        "warning", "headers that contradict themselves", "compare image and label map in a viewer"
    ),
    "no foreground": Kind(
        "warning",
        "cases whose label map is all background",
        "they are learnt as cases without any structure; leave out those that nobody labelled",
    ),
    "absent class": Kind(
        "warning",
        "classes that no case has",
        "take them out of `labels` in dataset.json, or label them",
    ),
    "rare class": Kind(
        "warning",
        "classes of fewer than three cases",
        "training, validation and test need a case of each: label more cases, or join classes",
    ),
    "constant channel": Kind(
        "warning", "channels without content", "export them again, or leave out the case"
    ),
    "label in the air": Kind(
        "warning",
        "label maps that lie mostly where the image is empty",
        "do image and label map belong to one patient? Look at both in a viewer",
    ),
    "duplicate": Kind(
        "warning",
        "one image in several cases",
        "remove the copies, or put them into one group (`groups`): otherwise one is trained on "
        "and another one tests it",
    ),
    "one patient": Kind(
        "warning",
        "several cases of one patient",
        "keep them on one side of the split by a rule, such as `groups: '(patient[0-9]+)_'`",
    ),
    "modality": Kind(
        "warning",
        "intensities that do not fit the name of the channel",
        "`CT` in `channel_names` means Hounsfield units; every other name is normalised by itself",
    ),
    "orientation": Kind(
        "warning",
        "cases whose axes are stored in another order than those of most",
        "nothing needs to be done if the headers are right: all are reoriented; look at one",
    ),
    "mirrored": Kind(
        "warning",
        "cases that seem to be mirrored",
        "a header that was lost or changed by a conversion mirrors a case: compare with the "
        "original",
    ),
    "unusual spacing": Kind(
        "warning",
        "spacings far from those of most cases",
        "they are resampled; leave out those that nobody would predict on",
    ),
    "oblique": Kind(
        "warning",
        "oblique volumes",
        "they are processed along their own axes, not along those of the scanner",
    ),
    "small": Kind(
        "warning", "volumes of very few voxels", "is it a scout view, or a wrong series?"
    ),
    "unusual volume": Kind(
        "warning",
        "structures whose size is far from that of most cases",
        "look at the label map: is it complete, and is the spacing right?",
    ),
}
"""Kinds of faults by name, errors first, in the order in which they are shown."""


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: A key of `KINDS`.
        message: What was found, and where.
        case: The case, None for the data as a whole.
    """

    kind: str
    message: str
    case: str | None = None

    @property
    def severity(self) -> Severity:
        """Whether it is an error or a warning."""
        return KINDS[self.kind].severity
