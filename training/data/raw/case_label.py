"""The label map of a labelled case."""

from __future__ import annotations

from training.data.raw.layouts import RawCase, RawDataset
from training.data.raw.volume import Volume, read_label


def read_case_label(case: RawCase, dataset: RawDataset) -> Volume:
    """Read the label map of a case as the classes of its dataset, see `read_label`.

    Raises:
        DatasetError: if the file is unreadable, or holds values that dataset.json does not name.
    """
    return read_label(
        case.label,
        dataset.label_values,
        dataset.ignore,
        image=case.images[0],
        names=dataset.labels,
    )
