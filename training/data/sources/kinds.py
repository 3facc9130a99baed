"""The layouts that are converted, by name; nothing heavy is imported to know them."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "totalsegmentator": "training.data.sources.totalsegmentator",
    "bids": "training.data.sources.bids",
    "dicom": "training.data.sources.dicom",
    "csv": "training.data.sources.table",
    "datalist": "training.data.sources.datalist",
}
"""Modules of the layouts, by the names that `--from` has for them, in the order of recognition."""
