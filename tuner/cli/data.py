"""The commands `tune data ...`: their options, and the functions that run them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.command import Command
from tuner.cli.exit_codes import DONE, NO_RESULT
from tuner.cli.options import add_output
from tuner.errors import SpecError
from tuner.report.numbers import number_of

if TYPE_CHECKING:
    from rich.console import Console


def _check_options(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="leave voxels unread: takes seconds, but checks no label values and no intensities",
    )
    parser.add_argument(
        "--all", action="store_true", help="show every warning, not only the first of each kind"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, for other programs"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DIR",
        help="folder of the data, in Decathlon or nnU-Net layout, or its address",
    )


def check(options: argparse.Namespace, out: Console) -> int:
    """`tune data check`."""
    from tuner.api.data import check_data
    from tuner.report.data_check import print_data_check

    result = check_data(
        options.data, headers_only=options.headers_only, progress=False if options.json else out
    )
    if options.json:
        # a program reads it: no line is wrapped, no character coloured
        print(json.dumps(result.to_dict(), indent=2, allow_nan=False), file=out.file, flush=True)
    else:
        print_data_check(out, result, every=options.all)
    return DONE if result.ok else NO_RESULT


def _report_options(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    add_output(parser, "FILE.html", "web page to write", default=Path("report.html"))
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def report(options: argparse.Namespace, out: Console) -> int:
    """`tune data report`."""
    from tuner.api.data import report_data
    from tuner.report.data_check import summary_line

    found = report_data(options.data, options.output, overwrite=options.overwrite, progress=out)
    out.print(summary_line(found), markup=False)
    out.print(f"wrote {options.output}", markup=False)
    return DONE if found.ok else NO_RESULT


def _convert_options(parser: argparse.ArgumentParser) -> None:
    from training.data.sources.kinds import SOURCES

    add = parser.add_argument
    add(
        "data",
        type=Path,
        metavar="SOURCE",
        help="folder of TotalSegmentator, BIDS or DICOM, a CSV of image and label paths, or a "
        "MONAI datalist (JSON)",
    )
    add_output(parser, "DIR", "folder to write, in nnU-Net's layout")
    add(
        "--from",
        dest="kind",
        choices=tuple(SOURCES),
        help="layout of the source (default: recognised)",
    )
    add(
        "--channels",
        metavar="NAME,...",
        help="names of the channels, e.g. CT, which decide how intensities are normalised; of BIDS "
        "which images are taken (default: as the source says)",
    )
    add(
        "--labels",
        metavar="NAME=VALUE,...",
        help="value of each class, e.g. liver=1,tumour=2 (default: as the source says)",
    )
    add(
        "--classes",
        metavar="NAME,...",
        help="masks to take, in the order of their values (default: all)",
    )
    add(
        "--overlap",
        choices=("error", "first", "last"),
        default="error",
        help="class of a voxel of two masks",
    )
    add("--link", action="store_true", help="link to files that stay as they are, without a copy")


def convert(options: argparse.Namespace, out: Console) -> int:
    """`tune data convert`."""
    from tuner.api.data import convert_data
    from tuner.report.data_check import shown_names

    converted = convert_data(
        options.data,
        options.output,
        kind=options.kind,
        channels=_names(options.channels),
        labels=_values(options.labels),
        classes=_names(options.classes),
        overlap=options.overlap,
        link=options.link,
        progress=out,
    )
    for note in converted.notes:
        out.print(f"note    {note}", markup=False)
    folds = f", {number_of(converted.folds, 'fold')} in splits_final.json" * bool(converted.folds)
    out.print(
        f"wrote {converted.folder}: {number_of(len(converted.cases), 'case')}, channels "
        f"{', '.join(converted.channels)}, labels {shown_names(list(converted.labels))}{folds}",
        markup=False,
    )
    out.print(f"next    tune data check {shlex.quote(str(converted.folder))}", markup=False)
    return DONE


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise SpecError(f"{text!r} has an empty name: write names with commas between them")
    return names


def _values(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    values: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not name or not equals or not value.isdecimal():
            raise SpecError(f"--labels {text}: write NAME=VALUE,..., e.g. liver=1,tumour=2")
        if name in values or int(value) in values.values():
            raise SpecError(f"--labels {text}: {part.strip()} comes twice")
        values[name] = int(value)
    return values


DATA_COMMANDS: tuple[Command, ...] = (
    Command(
        "data check",
        "list all that is wrong or doubtful about data",
        (
            "tune data check Task03_Liver",
            "tune data check Task03_Liver --headers-only",
            "tune data check Task03_Liver --json > findings.json",
        ),
        _check_options,
        check,
    ),
    Command(
        "data report",
        "write a web page about data: sizes, intensities, classes, outliers, pictures",
        (
            "tune data report Task03_Liver -o report.html",
            "tune data report phantom -o phantom.html --overwrite",
        ),
        _report_options,
        report,
    ),
    Command(
        "data convert",
        "bring data from another layout into the one that a study reads",
        (
            "tune data convert Totalsegmentator_dataset -o Organs --classes liver,spleen,pancreas",
            "tune data convert archive -o Lungs --from dicom",
            "tune data convert my_bids -o Lesions --channels T1w,FLAIR",
            "tune data convert cases.csv -o Liver --channels CT --labels liver=1,tumour=2 --link",
            "tune data convert datalist.json -o Prostate --channels T2,ADC",
        ),
        _convert_options,
        convert,
    ),
)
"""All commands of `tune data`."""
