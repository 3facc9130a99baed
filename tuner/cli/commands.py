"""What each command does: calls the Python API, prints, and gives the exit code."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.completion import shell_code
from tuner.cli.exit_codes import DONE, INTERRUPTED, NO_RESULT
from tuner.cli.options import overrides_of

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.study.study import Study


def run(options: argparse.Namespace, out: Console) -> int:
    """`tune run`."""
    from tuner.spec.load import load_spec

    spec = load_spec(options.space, overrides_of(options))
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


def resume(options: argparse.Namespace, out: Console) -> int:
    """`tune resume`."""
    _check_cluster(options)
    from tuner.study.study import change_budgets, open_study

    study = open_study(options.studies_dir, options.name)
    overrides = overrides_of(options)
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


def list_studies(options: argparse.Namespace, out: Console) -> int:
    """`tune list`."""
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


def status(options: argparse.Namespace, out: Console) -> int:
    """`tune status`."""
    from tuner.report.summary import print_summary
    from tuner.study.driver_lock import driver_is_running
    from tuner.study.study import seen_study

    study, cut_off = seen_study(options.studies_dir, options.name)
    driven = driver_is_running(study.folder)
    print_summary(out, study.folder, study.record, study.spec, driven=driven)
    if cut_off is not None:
        out.print(cut_off, markup=False)
    return DONE


def check(options: argparse.Namespace, out: Console) -> int:
    """`tune check`."""
    from tuner.report.spec import print_spec
    from tuner.spec.load import load_spec
    from tuner.study.data import check_data
    from tuner.trial.networks import check_networks

    spec, found = check_data(load_spec(options.space, overrides_of(options)))
    networks = check_networks(spec)
    print_spec(out, spec)
    for line in (*found, *networks.describe()):
        out.print(line, markup=False)
    return DONE


def fields(options: argparse.Namespace, out: Console) -> int:
    """`tune fields`."""
    from tuner.report.fields import print_field, print_fields
    from tuner.spec.reference import all_fields, find_fields

    rows = all_fields() if options.name is None else find_fields(options.name)
    if len(rows) == 1:
        print_field(out, rows[0])
    else:
        print_fields(out, rows)
    return DONE


def export(options: argparse.Namespace, out: Console) -> int:
    """`tune export`."""
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


def predict(options: argparse.Namespace, out: Console) -> int:
    """`tune predict`."""
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


def convert(options: argparse.Namespace, out: Console) -> int:
    """`tune convert`."""
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


def completion(options: argparse.Namespace, out: Console) -> int:
    """`tune completion`."""
    # a shell reads it: no line is wrapped, no character coloured
    print(shell_code(options.shell), file=out.file)
    return DONE
