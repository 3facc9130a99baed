"""The command `tune`: parse the arguments, call what they name, choose the exit code.

Exit codes: 0 done, 1 no usable result or most trials failed, 2 a mistake in the input,
130 interrupted.
"""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import SegtuneError
from tuner.errors import StudyError
from tuner.signals import sigterm_interrupts

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec.yaml_source import Override
    from tuner.study.study import Study

DONE, NO_RESULT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

Command = Callable[[argparse.Namespace, "Console"], int]

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


POSITIONAL = ("space", "bundle", "images")
"""Paths that are no options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    _quieten_libraries()
    from rich.console import Console

    _spare_narrow_encodings()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=140, soft_wrap=True)
    command: Command = options.command
    try:
        with sigterm_interrupts():
            _refuse_urls(options)
            return command(options, out)
    except KeyboardInterrupt:
        errors.print("interrupted", markup=False)
        return INTERRUPTED
    except SegtuneError as error:
        errors.print(f"error: {error}", markup=False, style="red" if errors.is_terminal else "")
        return USER_ERROR


PLAIN_CHARACTERS = {"·": "-", "×": "x", "…": "..."}
"""What stands for a character on a terminal that has not got it; `?` for all others."""


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN_CHARACTERS.get(character, "?") for character in lacking), error.end


def _spare_narrow_encodings() -> None:
    """Write something else where a terminal's encoding (ASCII, say) lacks a character."""
    codecs.register_error("segtune.plain", _write_plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="segtune.plain")


def _quieten_libraries() -> None:
    """Keep advice meant for programmers away from people who type commands."""
    # Lightning sets the level of its top logger on import, but not of those that speak
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.ERROR)
    # what is wrong with a header is said with the name of the file
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    # a trial that goes on after a failure is a new one to Tune, which counts the first as lost
    logging.getLogger("ray.tune.tune").addFilter(_is_no_count_of_trials)
    for library in ("pytorch_lightning", "monai", "torch", "ray", "optuna"):
        warnings.filterwarnings("ignore", module=library)


def _is_no_count_of_trials(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Trials did not complete")


def _refuse_urls(options: argparse.Namespace) -> None:
    """Refuse addresses where a path is meant: `Path` would make folders of them."""
    from training.local_path import is_url, url_refusal

    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            meant = isinstance(path, Path) or (name == "data_dir" and path is not None)
            # studies have a reason of their own
            if meant and name != "studies_dir" and is_url(path):
                option = "" if name in POSITIONAL else f"--{name.replace('_', '-')} "
                raise StudyError(option + url_refusal(path))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tune",
        description="Hyperparameter search for 3D medical image segmentation.",
    )
    parser.add_argument("--version", action="version", version=f"segtune {version('segtune')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="search a space, or go on with the study of that name")
    run.add_argument("space", type=Path, metavar="SPACE.yaml", help="the search space")
    run.add_argument("--name", help="name of the study; file name and time by default")
    run.add_argument("--export", type=Path, metavar="DIR", help="export the winner to DIR")
    _add_space_options(run)
    _add_study_options(run, address=True)
    run.set_defaults(command=_run)

    resume = commands.add_parser("resume", help="go on with a study that was cut off")
    resume.add_argument("name", help="name of the study")
    _add_budget_options(resume)
    _add_study_options(resume, address=True)
    resume.set_defaults(command=_resume)

    listing = commands.add_parser("list", help="list the studies")
    _add_study_options(listing)
    listing.set_defaults(command=_list)

    status = commands.add_parser("status", help="show the trials of a study")
    status.add_argument("name", help="name of the study")
    _add_study_options(status)
    status.set_defaults(command=_status)

    check = commands.add_parser("check", help="validate a search space; print it and its budget")
    check.add_argument("space", type=Path, metavar="SPACE.yaml", help="the search space")
    _add_space_options(check)
    check.set_defaults(command=_check)

    fields = commands.add_parser("fields", help="help for what a search space file can say")
    fields.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a field, a section, or a setting such as search.num_trials; all by default",
    )
    fields.set_defaults(command=_fields)

    export = commands.add_parser("export", help="export a study's best model, ready to predict")
    export.add_argument("name", help="name of the study")
    export.add_argument("--trial", type=int, metavar="ID", help="a trial instead of the best")
    export.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write")
    export.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the data are now, if they were moved"
    )
    _add_study_options(export)
    export.set_defaults(command=_export)

    predict = commands.add_parser("predict", help="segment NIfTI images with an exported model")
    predict.add_argument("bundle", type=Path, metavar="DIR", help="the exported model")
    predict.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="NIfTI images, or folders of them"
    )
    predict.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    predict.add_argument("--device", help="torch device; a GPU if there is one by default")
    predict.add_argument(
        "--overwrite", action="store_true", help="replace label maps that are there already"
    )
    predict.set_defaults(command=_predict)

    convert = commands.add_parser(
        "convert", help="write an exported model's network as torch.export, TorchScript or ONNX"
    )
    convert.add_argument("bundle", type=Path, metavar="DIR", help="the exported model")
    convert.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help=".pt2, .ts or .onnx file"
    )
    convert.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("D", "H", "W"),
        help="voxels of a patch; those of training by default",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    convert.set_defaults(command=_convert)
    return parser


def _add_study_options(parser: argparse.ArgumentParser, *, address: bool = False) -> None:
    parser.add_argument(
        "--studies-dir", type=Path, default=Path("studies"), help="folder of the studies"
    )
    if address:
        parser.add_argument("--address", help="Ray cluster to join, e.g. auto (default: start one)")


def _add_budget_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-trials", metavar="N", help="trials of the study")
    parser.add_argument("--epoch-budget", metavar="N", help="end after N epochs of all trials")
    parser.add_argument("--gpu-hours", metavar="H", help="end after H GPU-hours of all trials")
    parser.add_argument("--time-budget", metavar="T", help="end this run after T, e.g. 30m or 2h")


def _add_space_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data")
    _add_budget_options(parser)
    parser.add_argument(
        "--warm-start",
        action="append",
        default=[],
        metavar="NAME",
        help="learn from the trials of an earlier study; may be given several times",
    )
    parser.add_argument("--max-epochs", metavar="N", help="epochs of a full training")
    parser.add_argument("--max-concurrent", metavar="N", help="trials at once")
    parser.add_argument("--gpus-per-trial", metavar="X", help="GPUs of a trial, e.g. 0.5")
    parser.add_argument("--cpus-per-trial", metavar="X", help="CPU cores of a trial")
    parser.add_argument("--seed", metavar="N", help="seed of the search")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="replace one value of the search space, e.g. --set optimizer=sgd",
    )


def _overrides(options: argparse.Namespace) -> dict[str, Override]:
    """Options of the command line as overrides of the search space, in YAML text."""
    from tuner.errors import SpecError
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


def _run(options: argparse.Namespace, out: Console) -> int:
    from tuner.spec.load import load_spec

    spec = load_spec(options.space, _overrides(options))
    if options.name:
        from tuner.study.name import check_new_name

        check_new_name(options.name)
    if options.export is not None:
        from tuner.study.folder import check_export

        check_export(options.export, options.studies_dir, options.name)
    _check_cluster(options)
    from tuner.study.create import create_study

    study = create_study(spec, options.studies_dir, options.name)
    code = _go_on(study, options, out)
    # the best of the others is a model, also where most trials failed
    if options.export is not None and code != INTERRUPTED and study.record.best() is not None:
        return _export_to(study, options.export, None, out) or code
    return code


def _resume(options: argparse.Namespace, out: Console) -> int:
    _check_cluster(options)
    from tuner.study.study import change_budgets, open_study

    study = open_study(options.studies_dir, options.name)
    overrides = _overrides(options)
    if overrides:
        study = change_budgets(study, overrides)
    return _go_on(study, options, out)


def _check_cluster(options: argparse.Namespace) -> None:
    """Check the cluster before the libraries of the trials are loaded and a folder is made."""
    from tuner.run.cluster_check import check_cluster

    check_cluster(options.address)


def _go_on(study: Study, options: argparse.Namespace, out: Console) -> int:
    from tuner.report.summary import print_summary
    from tuner.run.run_study import run_study
    from tuner.study.budget import spent_budget

    if study.finished:
        spent = None if study.searched else spent_budget(study.record, study.spec)
        why = "has finished already" if spent is None else f"does not go on: {spent}"
        out.print(f"the study {study.name} {why}", markup=False)
        print_summary(out, study.folder, study.record, study.spec)
        return _result(study)
    interrupted = run_study(study, options.address, out)
    print_summary(out, study.folder, study.record, study.spec)
    if interrupted:
        out.print("interrupted: every finished epoch is kept", markup=False)
        return INTERRUPTED
    return _result(study)


def _result(study: Study) -> int:
    from tuner.study.failed_trials import most_failed

    return NO_RESULT if study.record.best() is None or most_failed(study.record) else DONE


def _list(options: argparse.Namespace, out: Console) -> int:
    from tuner.report.tables import studies_table
    from tuner.study.commands import shown_name
    from tuner.study.study import seen_study, study_folders

    folders = study_folders(options.studies_dir)
    if not folders:
        out.print(f"no studies in {options.studies_dir}", markup=False)
        return DONE
    studies, below = [], []
    for folder in folders:
        try:
            study, cut_off = seen_study(folder.parent, folder.name)
        except Exception as error:
            # whatever is wrong with one study, the others are shown
            reason = " ".join(str(error).split()) or type(error).__name__
            below.append(f"{shown_name(folder.name)} cannot be read: {reason}")
            continue
        studies.append((study.folder, study.record, study.spec))
        if cut_off is not None:
            below.append(cut_off)
    if studies:
        out.print(studies_table(studies))
    for line in below:
        out.print(line, markup=False)
    return DONE if studies else NO_RESULT


def _status(options: argparse.Namespace, out: Console) -> int:
    from tuner.report.summary import print_summary
    from tuner.study.driver_lock import driver_is_running
    from tuner.study.study import seen_study

    study, cut_off = seen_study(options.studies_dir, options.name)
    driven = driver_is_running(study.folder)
    print_summary(out, study.folder, study.record, study.spec, driven=driven)
    if cut_off is not None:
        out.print(cut_off, markup=False)
    return DONE


def _check(options: argparse.Namespace, out: Console) -> int:
    from tuner.report.spec import print_spec
    from tuner.spec.load import load_spec
    from tuner.study.data import check_data
    from tuner.trial.networks import check_networks

    spec, found = check_data(load_spec(options.space, _overrides(options)))
    networks = check_networks(spec)
    print_spec(out, spec)
    for line in (*found, *networks.describe()):
        out.print(line, markup=False)
    return DONE


def _fields(options: argparse.Namespace, out: Console) -> int:
    from tuner.report.fields import print_field, print_fields
    from tuner.spec.reference import all_fields, find_fields

    rows = all_fields() if options.name is None else find_fields(options.name)
    if len(rows) == 1:
        print_field(out, rows[0])
    else:
        print_fields(out, rows)
    return DONE


def _export(options: argparse.Namespace, out: Console) -> int:
    from tuner.study.study import open_study

    study = open_study(options.studies_dir, options.name)
    folder = options.output or study.folder / "export"
    return _export_to(study, folder, options.trial, out, options.data_dir)


def _export_to(
    study: Study, folder: Path, trial: int | None, out: Console, data_dir: Path | None = None
) -> int:
    from tuner.export.export import export_trial

    exported = export_trial(study, folder.absolute(), trial, data_dir)
    out.print(
        f"exported {exported.trial} (epoch {exported.epoch}) to {folder}; {exported.verified}",
        markup=False,
    )
    for note in exported.notes:
        out.print(f"note    {note}", markup=False)
    for name, value in sorted(exported.metrics.items()):
        if name.startswith("val_dice"):
            out.print(f"  {name:<16} {value:.4f}", markup=False)
    table = exported.test_table()
    if table is not None:
        out.print(table, markup=False)
    bundle = shlex.quote(str(folder))
    out.print(f"next    tune predict {bundle} IMAGE.nii.gz -o predictions", markup=False)
    return DONE


def _predict(options: argparse.Namespace, out: Console) -> int:
    from training.bundle.prediction import predict_images

    failed = predict_images(
        options.bundle,
        options.images,
        options.output,
        device=options.device,
        overwrite=options.overwrite,
        on_case=lambda line: out.print(line, markup=False),
    )
    return NO_RESULT if failed else DONE


def _convert(options: argparse.Namespace, out: Console) -> int:
    from training.bundle.bundle import Bundle
    from training.bundle.network_export import check_target, export_network

    check_target(options.output, overwrite=options.overwrite)
    bundle = Bundle.load(options.bundle, device="cpu")
    difference = export_network(bundle, options.output, options.size, overwrite=options.overwrite)
    size = " x ".join(map(str, options.size or bundle.config.patch_size))
    out.print(
        f"wrote {options.output}: preprocessed patches of {size} voxels in batches of any size; "
        f"its logits differ from the model's by at most {difference:.1e}",
        markup=False,
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
