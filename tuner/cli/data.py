"""The commands `tune data ...`: their options, and the functions that run them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.command import Command
from tuner.cli.exit_codes import DONE, NO_RESULT
from tuner.cli.options import add_output

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
)
"""All commands of `tune data`."""
