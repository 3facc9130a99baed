"""Options that several commands share, and their translation to overrides of a search space."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import SpecError, StudyError

if TYPE_CHECKING:
    from tuner.spec.yaml_source import Override

NAMED_OPTIONS: dict[str, str] = {
    "data_dir": "config.data_dir",
    "max_epochs": "config.max_epochs",
    "num_trials": "search.num_trials",
    "time_budget": "search.time_budget",
    "epoch_budget": "search.epoch_budget",
    "gpu_hours": "search.gpu_hours",
    "seed": "search.seed",
    "max_concurrent": "resources.max_concurrent",
    "gpus_per_trial": "resources.gpu",
    "cpus_per_trial": "resources.cpu",
}
"""Options that are short for `--set KEY=VALUE`, and their keys."""

DEFAULT_HOURS = 8.0
"""Hours that a space is written for."""

POSITIONAL = ("space", "data", "bundle", "images")
"""Paths that are positional arguments."""

AT_ADDRESSES = ("studies_dir", "data", "data_dir", "space")
"""Paths that may be addresses; a space is then a folder of data."""


def add_study_name(parser: argparse.ArgumentParser) -> None:
    """The argument NAME; a shell completes it from the studies that are there."""
    action = parser.add_argument("name", metavar="NAME", help="name of the study")
    action.completer = study_names  # type: ignore[attr-defined]


def study_names(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Names of the studies in `--studies-dir`, for the completion of shells."""
    from tuner.study.open import study_folders
    from tuner.study.remote.place import local_studies_dir

    return [folder.name for folder in study_folders(local_studies_dir(parsed_args.studies_dir))]


def field_names(prefix: str, **_: object) -> list[str]:
    """Names that `tune fields` explains, for the completion of shells."""
    from tuner.spec.reference import all_fields, sections

    return [*(row.key for row in all_fields()), *sections()]


def add_studies_dir(parser: argparse.ArgumentParser) -> None:
    """The option for the folder of the studies."""
    parser.add_argument(
        "--studies-dir",
        type=Path,
        default=Path("studies"),
        metavar="DIR",
        help="folder of the studies, or an address such as s3://bucket/studies",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """The option that names a Ray cluster."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to join, e.g. auto (default: RAY_ADDRESS; without it a cluster of this "
        "machine is started)",
    )


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """Options for the budgets, which `tune resume` may change as well."""
    add = parser.add_argument
    add("--num-trials", metavar="N", help="trials of the study (default: as in the space)")
    add(
        "--epoch-budget",
        metavar="N",
        help="end after N epochs of all trials (default: as in the space)",
    )
    add(
        "--gpu-hours",
        metavar="H",
        help="end after H GPU-hours of all trials (default: as in the space)",
    )
    add(
        "--time-budget",
        metavar="T",
        help="end this run after T, e.g. 30m or 2h (default: as in the space)",
    )


def add_hours(parser: argparse.ArgumentParser, default: float | None, note: str = "") -> None:
    """What a space is written for: hours, and the memory of a GPU."""
    parser.add_argument(
        "--hours",
        type=_hours,
        default=default,
        metavar="H",
        help=f"hours that a study of the space may take{note}",
    )
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help=f"memory of the GPU that trials will train on, e.g. 24GB (default: that of this "
        f"machine){note and '; for a folder of data'}",
    )


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours: write e.g. 8 or 0.5")
    return hours


def add_space_options(
    parser: argparse.ArgumentParser, metavar: str = "SPACE.yaml", text: str = "the search space"
) -> None:
    """Options that change values of a search space."""
    add = parser.add_argument
    add("space", type=Path, metavar=metavar, help=text)
    add("--data-dir", metavar="DIR", help="folder of the data (default: as in the space)")
    add_budget_options(parser)
    add(
        "--warm-start",
        action="append",
        default=[],
        metavar="NAME",
        help="learn from the trials of an earlier study; may be given several times "
        "(default: as in the space)",
    )
    add("--max-epochs", metavar="N", help="epochs of a full training (default: as in the space)")
    add("--max-concurrent", metavar="N", help="trials at once (default: as in the space)")
    add(
        "--gpus-per-trial",
        metavar="X",
        help="GPUs of a trial, e.g. 0.5 or 2 (default: as in the space)",
    )
    add("--cpus-per-trial", metavar="X", help="CPU cores of a trial (default: as in the space)")
    add("--seed", metavar="N", help="seed of the search (default: as in the space)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="replace one value of the search space, e.g. --set optimizer=sgd; may be given "
        "several times (default: nothing is replaced)",
    )


def add_listing_options(parser: argparse.ArgumentParser, keys: str) -> None:
    """How a list is sorted, cut and printed.

    Args:
        parser: The parser of a command.
        keys: What can be sorted by, and what comes first without a key.
    """
    parser.add_argument("--sort", metavar="KEY", help=f"sort by KEY: {keys}")
    parser.add_argument(
        "--top", type=_positive, metavar="N", help="show the first N alone (default: all)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, for other programs"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def add_output(
    parser: argparse.ArgumentParser, metavar: str, text: str, default: Path | None = None
) -> None:
    """The option for the output, which is required where it has no default."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=default is None,
        default=default,
        metavar=metavar,
        help=text,
    )


def overrides_of(options: argparse.Namespace) -> dict[str, Override]:
    """Options of the command line as overrides of the search space, in YAML text."""
    from tuner.spec.yaml_source import Override

    overrides: dict[str, Override] = {}
    for option, key in NAMED_OPTIONS.items():
        value = getattr(options, option, None)
        if value is not None:
            overrides[key] = Override(value, f"--{option.replace('_', '-')} {value}")
    if getattr(options, "warm_start", []):
        shown = " ".join(f"--warm-start {name}" for name in options.warm_start)
        overrides["search.warm_start"] = Override(options.warm_start, shown)
    for setting in getattr(options, "settings", []):
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {setting}: write --set KEY=VALUE, e.g. --set optimizer=sgd")
        overrides[key.strip()] = Override(value, f"--set {setting}")
    return overrides


def export_settings(options: argparse.Namespace) -> dict[str, Override]:
    """Options of `tune export` as settings of the section `export`."""
    from tuner.spec.yaml_source import Override

    shown = {
        "ensemble": f"--ensemble {options.ensemble}",
        "ensemble_time": f"--ensemble-time {options.ensemble_time}",
        "mirroring": "--no-mirroring",
        "postprocessing": "--no-postprocessing",
    }
    given = {name: getattr(options, name) for name in shown}
    return {
        name: Override(value, shown[name]) for name, value in given.items() if value is not None
    }


def refuse_urls(options: argparse.Namespace) -> None:
    """Refuse addresses where a path is meant: `Path` would make folders of them."""
    from training.local_path import is_url, url_refusal

    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            # studies and data may be at an address
            meant = isinstance(path, Path) and name not in AT_ADDRESSES
            if meant and is_url(path):
                option = "" if name in POSITIONAL else f"--{name.replace('_', '-')} "
                raise StudyError(option + url_refusal(path))
