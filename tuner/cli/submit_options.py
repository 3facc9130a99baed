"""Options of the commands that use a cluster from outside."""

from __future__ import annotations

import argparse
from pathlib import Path

from tuner.cli.options import add_space_options, add_study_name

DASHBOARD = "http://HEAD:8265"
"""How the address of a dashboard is shown."""


def add_dashboard(parser: argparse.ArgumentParser, text: str | None = None) -> None:
    """The option that names a Ray cluster by its dashboard.

    Args:
        parser: The parser of a command.
        text: What the command does with it, where it can do without.
    """
    usual = "address of the head's dashboard (default: RAY_API_SERVER_ADDRESS)"
    parser.add_argument("--address", metavar=DASHBOARD, help=text or usual)


def add_elsewhere(parser: argparse.ArgumentParser) -> None:
    """The option of a command that asks this machine, or a cluster."""
    add_dashboard(
        parser, "ask the cluster of this dashboard (default: the studies of this machine)"
    )


def submit_options(parser: argparse.ArgumentParser) -> None:
    """Options of `tune submit`: those of `tune run`, and what is asked of the cluster."""
    add_space_options(parser, "SPACE", "the search space, a YAML file")
    add = parser.add_argument
    add("--name", help="name of the study (default: the name of the space's file and the time)")
    add(
        "--studies-dir",
        required=True,
        metavar="DIR",
        help="folder of the studies, by its path on the cluster",
    )
    add(
        "--export",
        metavar="DIR",
        help="export the best model to DIR on the cluster (default: no export; `tune export` "
        "brings it here later)",
    )
    add(
        "--resubmit",
        type=_count,
        default=0,
        metavar="N",
        help="start the driver again, up to N times, when a signal killed it",
    )
    add_dashboard(parser)
    add("--follow", action="store_true", help="show what the study prints, until it has ended")
    slurm = parser.add_argument_group("SLURM")
    add = slurm.add_argument
    add("--slurm", action="store_true", help="submit to SLURM, on a login node of it")
    add("--dry-run", action="store_true", help="print the batch script and submit nothing")
    add("--nodes", type=_nodes, default=1, metavar="N", help="nodes of the job")
    add("--partition", metavar="NAME", help="partition to run in (default: the cluster's)")
    add("--gpus-per-node", metavar="N", help="GPUs of each node (default: none)")
    add("--cpus-per-node", type=_nodes, metavar="N", help="cores of each node (default: one)")
    add("--mem", metavar="SIZE", help="memory of each node (default: the cluster's)")
    add(
        "--time",
        metavar="T",
        help="time limit of the job, after which it is queued again and the study goes on "
        "(default: the cluster's)",
    )
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="further option of sbatch, e.g. --sbatch=--account=lab; may be given several times "
        "(default: none)",
    )


def logs_options(parser: argparse.ArgumentParser) -> None:
    """Options of `tune logs`."""
    _remote_study(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the study has ended"
    )


def stop_options(parser: argparse.ArgumentParser) -> None:
    """Options of `tune stop`."""
    _remote_study(parser)


def _remote_study(parser: argparse.ArgumentParser) -> None:
    add_study_name(parser)
    add_dashboard(parser)
    parser.add_argument(
        "--studies-dir",
        # as for other commands, which complete the name of a study from it
        type=Path,
        default=Path("studies"),
        metavar="DIR",
        help="folder of the studies on the cluster, where two have a study of this name",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _nodes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
