"""The commands of `tune`: their names, options and functions.

A command is one entry of `COMMANDS`: its name, what it does in one line, examples, the function
that adds its options and the function that runs it.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from training.data.raw.formats.file_format import OUTPUT_FORMATS
from tuner.cli import commands, remote
from tuner.cli.command import Command, HelpFormatter, SubParsers
from tuner.cli.completion import SHELLS
from tuner.cli.data import DATA_COMMANDS
from tuner.cli.options import (
    DEFAULT_HOURS,
    add_address,
    add_budget_options,
    add_hours,
    add_listing_options,
    add_output,
    add_space_options,
    add_studies_dir,
    add_study_name,
    field_names,
)
from tuner.cli.submit_options import add_elsewhere, logs_options, stop_options, submit_options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tune",
        description="Hyperparameter search for 3D medical image segmentation.",
        epilog="`tune COMMAND --help` explains a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"segtune {version('segtune')}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = {}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group and group not in groups:
            groups[group] = _add_group(subparsers, group)
        subparser = groups.get(group, subparsers).add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog="\n  ".join(("examples:", *command.examples)),
            formatter_class=HelpFormatter,
        )
        command.add_options(subparser)
        subparser.set_defaults(command=command.run)
    return parser


def _add_group(subparsers: SubParsers, group: str) -> SubParsers:
    """A command that has commands of its own, such as `tune data check`."""
    summary = GROUPS[group]
    subparser = subparsers.add_parser(
        group, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    return subparser.add_subparsers(required=True, metavar="COMMAND")


def _run_options(parser: argparse.ArgumentParser) -> None:
    add_space_options(
        parser, "SPACE", "the search space, a YAML file; or a folder of data, which one is made for"
    )
    add_hours(parser, None, f", for a folder of data (default: {DEFAULT_HOURS:g})")
    parser.add_argument(
        "--name", help="name of the study (default: the name of the space's file and the time)"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="export the best model to DIR (default: no export; `tune export` does it later)",
    )
    add_studies_dir(parser)
    add_address(parser)


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="folder of the data, in Decathlon or nnU-Net layout; or phantom",
    )
    add_output(parser, "FILE.yaml", "search space to write", default=Path("space.yaml"))
    add_hours(parser, DEFAULT_HOURS)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def _resume_options(parser: argparse.ArgumentParser) -> None:
    add_study_name(parser)
    add_budget_options(parser)
    add_studies_dir(parser)
    add_address(parser)


def _list_options(parser: argparse.ArgumentParser) -> None:
    add_listing_options(parser, "name, trials, epochs or score (default: the oldest first)")
    add_studies_dir(parser)
    add_elsewhere(parser)


def _status_options(parser: argparse.ArgumentParser) -> None:
    add_study_name(parser)
    add_listing_options(
        parser,
        "number, state, score, epochs, seconds, a field that varies or a metric; scores come "
        "best first (default: number)",
    )
    add_studies_dir(parser)
    add_elsewhere(parser)


def _fields_options(parser: argparse.ArgumentParser) -> None:
    action = parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a field, a section, a policy, or a setting such as search.num_trials (default: all)",
    )
    action.completer = field_names  # type: ignore[attr-defined]


def _export_options(parser: argparse.ArgumentParser) -> None:
    add_study_name(parser)
    parser.add_argument(
        "--trial", type=int, metavar="ID", help="trial to export, alone (default: the best)"
    )
    parser.add_argument(
        "--ensemble",
        metavar="N",
        help="networks that the model may have; 1 for the winner alone (default: as in the space)",
    )
    parser.add_argument(
        "--ensemble-time",
        metavar="X",
        help="times as long as the winner that an ensemble may take for a case (default: as in "
        "the space)",
    )
    parser.add_argument(
        "--no-mirroring",
        action="store_const",
        const="off",
        dest="mirroring",
        help="do not average predictions over mirrored images (default: as in the space)",
    )
    parser.add_argument(
        "--no-postprocessing",
        action="store_const",
        const="false",
        dest="postprocessing",
        help="do not clean predictions of small components (default: as in the space)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to write (default: export/ in the study's folder; with --address NAME-bundle "
        "here)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the data are now, if they were moved (default: where they were)",
    )
    add_studies_dir(parser)
    add_elsewhere(parser)


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="DIR", help="the exported model")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="images, or folders of them"
    )
    add_output(parser, "DIR", "folder to write to")
    parser.add_argument(
        "--device", help="torch device, e.g. cuda:1 (default: a GPU if there is one, else the CPU)"
    )
    parser.add_argument(
        "--format",
        choices=OUTPUT_FORMATS,
        help="format of the label maps (default: that of each image)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write class probabilities as well, as CASE_probabilities.nii.gz",
    )
    parser.add_argument(
        "--no-mirroring",
        action="store_true",
        help="do not average over mirrored images: up to 8 times as fast, a little worse",
    )
    parser.add_argument(
        "--no-channel-check",
        action="store_true",
        help="take images that do not look like the channels which the model was trained on",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite", action="store_true", help="replace files that are there already"
    )
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave cases alone that are there already, to go on with a run that was cut off",
    )
    _add_trust_code(parser)


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="DIR", help="the exported model")
    add_output(parser, "FILE", ".pt2, .ts or .onnx file")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("D", "H", "W"),
        help="voxels of a patch (default: the patch size of training)",
    )
    parser.add_argument(
        "--member",
        type=int,
        metavar="N",
        help="network of an ensemble, from 0 (default: the mean of all)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    _add_trust_code(parser)


def _add_trust_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="import the module of a network that is not of this package, and so run it",
    )


def _completion_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")


COMMANDS: tuple[Command, ...] = (
    Command(
        "run",
        "search a space, or go on with the study of that name",
        (
            "tune run search_spaces/dformer.yaml",
            "tune run liver.yaml --name liver --data-dir Task03_Liver --export bundle",
            "tune run liver.yaml --num-trials 40 --time-budget 8h --set optimizer=sgd",
            "tune run Task04_Hippocampus --hours 1",
        ),
        _run_options,
        commands.run,
    ),
    Command(
        "submit",
        "send a study to a Ray cluster or to SLURM, and leave",
        (
            "tune submit liver.yaml --name liver --address http://head:8265 "
            "--studies-dir /shared/studies",
            "tune submit liver.yaml --slurm --nodes 2 --gpus-per-node 4 --cpus-per-node 32 "
            "--time 12:00:00 --studies-dir /shared/studies",
        ),
        submit_options,
        remote.submit,
    ),
    Command(
        "logs",
        "show what a submitted study prints",
        ("tune logs liver --address http://head:8265 -f",),
        logs_options,
        remote.logs,
    ),
    Command(
        "stop",
        "end a submitted study in order; it can go on later",
        ("tune stop liver --address http://head:8265",),
        stop_options,
        remote.stop,
    ),
    Command(
        "init",
        "write a search space for data",
        (
            "tune init Task03_Liver -o liver.yaml",
            "tune init Task03_Liver -o liver.yaml --hours 24 --gpu-memory 24GB",
        ),
        _init_options,
        commands.init,
    ),
    Command(
        "resume",
        "go on with a study that was cut off",
        ("tune resume liver", "tune resume liver --num-trials 80"),
        _resume_options,
        commands.resume,
    ),
    Command(
        "list",
        "list the studies",
        (
            "tune list",
            "tune list --sort score --top 5",
            "tune list --studies-dir /data --json",
            "tune list --address http://head:8265",
        ),
        _list_options,
        commands.list_studies,
    ),
    Command(
        "status",
        "show the trials of a study",
        (
            "tune status liver",
            "tune status liver --sort score --top 10",
            "tune status liver --json",
            "tune status liver --address http://head:8265",
        ),
        _status_options,
        commands.status,
    ),
    Command(
        "check",
        "validate a search space; print it and its budget",
        ("tune check liver.yaml", "tune check liver.yaml --set patch_size=[64,96,96]"),
        add_space_options,
        commands.check,
    ),
    Command(
        "fields",
        "explain the fields and settings of a search space",
        ("tune fields", "tune fields learning_rate", "tune fields search.num_trials"),
        _fields_options,
        commands.fields,
    ),
    Command(
        "export",
        "export a study's best model, ready to predict",
        (
            "tune export liver -o bundle",
            "tune export liver --ensemble 3 --no-mirroring",
            "tune export liver --trial 7",
            "tune export liver --address http://head:8265 -o bundle",
        ),
        _export_options,
        commands.export,
    ),
    Command(
        "predict",
        "segment images with an exported model",
        (
            "tune predict bundle patient.nii.gz -o predictions",
            "tune predict bundle imagesTs -o predictions --device cpu",
            "tune predict bundle patient.nrrd -o predictions --format nifti",
        ),
        _predict_options,
        commands.predict,
    ),
    Command(
        "convert",
        "write an exported model's network as torch.export, TorchScript or ONNX",
        (
            "tune convert bundle -o network.onnx",
            "tune convert bundle -o network.pt2 --size 64 128 128",
        ),
        _convert_options,
        commands.convert,
    ),
    *DATA_COMMANDS,
    Command(
        "completion",
        "print what makes a shell complete commands, options and names of studies",
        (
            'eval "$(tune completion bash)"                              # in ~/.bashrc',
            'eval "$(tune completion zsh)"                               # in ~/.zshrc',
            "tune completion fish > ~/.config/fish/completions/tune.fish",
        ),
        _completion_options,
        commands.completion,
    ),
)
"""All commands, in the order of `tune --help`."""

GROUPS = {"data": "check data, show them, and bring them from other layouts"}
"""Commands that have commands of their own."""
