"""DICOM: folders of series, with segmentations of them as DICOM-SEG or RTSTRUCT.

Files may lie anywhere below the folder, and are told by their headers. A case is a segmentation,
with the image series that it refers to.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from training.data.raw.formats.dicom_files import is_dicom
from training.data.sources.source import Request, Source, SourceCase, mask_labels
from training.errors import DatasetError, reason_of, suggestion

LOOKED_FOR = "DICOM files of image series, and of segmentations (DICOM-SEG or RTSTRUCT)"

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"

LOOKED_AT = 500
"""Files of a folder that are looked at to recognise it."""

HEADER = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "SeriesInstanceUID",
    "Rows",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "SegmentSequence",
    "StructureSetROISequence",
)
"""What is read of each file."""


Files = list[tuple[Path, Any]]
"""Files with their headers."""


def fits(path: Path) -> bool:
    """Whether a folder has DICOM files among the first files in it and below."""
    if not path.is_dir():
        return False
    files = (file for file in path.rglob("*") if file.is_file())
    return any(is_dicom(file) for file in islice(files, LOOKED_AT))


def read(path: Path, request: Request) -> Source:
    """The segmentations of a folder, each with its series.

    Raises:
        DatasetError: if pydicom is missing, a segmentation refers to no series or to several, the
            series are of several modalities, or a class that is asked for is in none.
    """
    if request.scratch is None:
        raise ValueError("a series is read from a folder of its own, which needs a scratch folder")
    series, segmentations, notes = _survey(path)
    # segments are told by their names, in capitals or not
    folded: dict[str, str] = {}
    for _, header in segmentations:
        for name in names_of(header):
            folded.setdefault(name.casefold(), name)
    names = sorted(folded.values())
    for name in request.classes or ():
        if name not in names:
            raise DatasetError(f"{path} has no segment {name!r}{suggestion(name, names)}")
    chosen = request.classes or tuple(names)
    found = _pairs(path, series, segmentations, {name.casefold() for name in chosen}, notes)
    modalities = Counter(str(series[uid][0][1].get("Modality", "")) for _, uid, _ in found)
    if len(modalities) > 1:
        counted = ", ".join(f"{count} of {name}" for name, count in modalities.items())
        raise DatasetError(
            f"{path}: the series are {counted}: convert a folder of one modality alone"
        )
    patients: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for file, uid, patient in found:
        patients[patient].append((file, uid))
    cases = []
    for patient, of_patient in sorted(patients.items()):
        for number, (file, uid) in enumerate(of_patient, start=1):
            case_id = patient if len(of_patient) == 1 else f"{patient}_{number}"
            files = [each for each, _ in series[uid]]
            folder = _staged(request.scratch / case_id, files)
            cases.append(
                SourceCase(case_id, (folder,), segmentation=file, origin=(min(files), file))
            )
    return Source(
        path.name,
        request.channels or (next(iter(modalities), "CT"),),
        request.labels or mask_labels(chosen),
        tuple(cases),
        notes=tuple(notes),
    )


def _pairs(
    path: Path,
    series: Mapping[str, Files],
    segmentations: Files,
    classes: set[str],
    notes: list[str],
) -> list[tuple[Path, str, str]]:
    """Each segmentation with its series and the name of its patient."""
    found = []
    problems = []
    for file, header in segmentations:
        there = sorted(set(_referred(header)) & set(series))
        if len(there) != 1:
            what = "no image series that is there" if not there else f"{len(there)} image series"
            problems.append(f"{file}: refers to {what}")
        elif not {name.casefold() for name in names_of(header)} & classes:
            notes.append(f"{file}: has none of the classes, and is left out")
        else:
            patient = _plain(str(header.get("PatientID") or file.parent.name))
            found.append((file, there[0], patient))
    if problems:
        raise DatasetError.of(path, problems)
    return found


def names_of(header: Any) -> list[str]:
    """Names of the segments of a DICOM-SEG, or of the structures of an RTSTRUCT."""
    if header.SOPClassUID == SEGMENTATION:
        return [str(segment.SegmentLabel).strip() for segment in header.SegmentSequence]
    return [str(roi.ROIName).strip() for roi in header.get("StructureSetROISequence", ())]


def _survey(path: Path) -> tuple[Mapping[str, Files], Files, list[str]]:
    """Images by series, segmentations, and notes about files that cannot be read."""
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise DatasetError("DICOM is read with pydicom: pip install 'segtune[dicom]'") from error
    series: dict[str, Files] = defaultdict(list)
    segmentations: Files = []
    notes = []
    for file in sorted(path.rglob("*")):
        if file.name.startswith(".") or file.name.upper() == "DICOMDIR" or not file.is_file():
            continue
        if not is_dicom(file):
            continue
        try:
            header = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=list(HEADER)
            )
        except Exception as error:
            # damaged files make pydicom fail in ways of many types
            notes.append(f"{file}: cannot be read ({reason_of(error)}), and is left out")
            continue
        if header.get("SOPClassUID") in (SEGMENTATION, STRUCTURES):
            segmentations.append((file, header))
        elif "Rows" in header and "SeriesInstanceUID" in header:
            series[str(header.SeriesInstanceUID)].append((file, header))
    return series, segmentations, notes


def _referred(header: Any) -> list[str]:
    """Series that a segmentation refers to."""
    if header.SOPClassUID == SEGMENTATION:
        return [str(each.SeriesInstanceUID) for each in header.get("ReferencedSeriesSequence", ())]
    return [
        str(one.SeriesInstanceUID)
        for frame in header.get("ReferencedFrameOfReferenceSequence", ())
        for study in frame.get("RTReferencedStudySequence", ())
        for one in study.get("RTReferencedSeriesSequence", ())
    ]


def _plain(name: str) -> str:
    """A name that a file can have."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "case"


def _staged(folder: Path, files: list[Path]) -> Path:
    """A folder of links to the files of one series, which may lie among those of others."""
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        (folder / f"{number:05}.dcm").symlink_to(file.resolve())
    return folder
