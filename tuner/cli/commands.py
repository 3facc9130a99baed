"""The function of each command: calls the Python API, prints, and returns the exit code."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.cli import remote
from tuner.cli.completion import shell_code
from tuner.cli.exit_codes import DONE, INTERRUPTED, NO_RESULT
from tuner.cli.options import DEFAULT_HOURS, export_settings, overrides_of
from tuner.errors import SpecError
from tuner.study.remote.place import local_studies_dir, shown_studies_dir

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.api.study import Study
    from tuner.spec.study_spec import StudySpec


def run(options: argparse.Namespace, out: Console) -> int:
    """`tune run`."""
    from tuner.api import studies

    options.studies_dir = local_studies_dir(options.studies_dir)
    spec = _space_to_run(options, out)
    if options.export is not None:
        from tuner.study.folder import check_export

        check_export(options.export, options.studies_dir, options.name)
    try:
        study = studies.run(
            spec,
            options.name,
            studies_dir=options.studies_dir,
            address=options.address,
            progress=out,
        )
    except studies.StudyInterrupted as end:
        return _interrupted(end.study, out)
    code = _ended(study, out)
    # the best of the others is a model, also where most trials failed
    if options.export is not None and study.best is not None:
        return _export_to(study, out, options.export) or code
    return code


def _space_to_run(options: argparse.Namespace, out: Console) -> StudySpec:
    """The search space of `tune run`: a file, or one that is written for data."""
    from tuner.api.init import init_space, is_data
    from tuner.spec.load import load_spec, parse_spec

    if not is_data(options.space):
        for option in ("hours", "gpu_memory"):
            if getattr(options, option) is not None:
                raise SpecError(
                    f"--{option.replace('_', '-')} {getattr(options, option)} is for a folder of "
                    f"data, and {options.space} is a search space: it has its own settings; "
                    "--time-budget limits its time"
                )
        return load_spec(options.space, overrides_of(options))
    from tuner.study.create import usual_name
    from tuner.study.files import GIVEN_SPEC
    from tuner.study.folder import holds_study
    from tuner.study.remote.study import fetch_study

    source = Path(f"{options.space.absolute().name}.yaml")
    options.name = options.name or usual_name(source)
    folder = options.studies_dir / options.name
    fetch_study(folder)
    if holds_study(folder):
        # it was written before: another measurement would make another study of it
        text = (folder / GIVEN_SPEC).read_text(encoding="utf-8")
    else:
        given = init_space(
            options.space,
            hours=options.hours or DEFAULT_HOURS,
            gpu_memory=options.gpu_memory,
            progress=out,
        )
        text = given.source_text
    out.print(f"the search space is {folder / GIVEN_SPEC}", markup=False)
    return parse_spec(text, source=source, overrides=overrides_of(options))


def init(options: argparse.Namespace, out: Console) -> int:
    """`tune init`."""
    from tuner.api.init import init_space

    spec = init_space(
        options.data,
        options.output,
        hours=options.hours,
        gpu_memory=options.gpu_memory,
        overwrite=options.overwrite,
        progress=out,
    )
    name = shlex.quote(str(options.output))
    out.print(
        f"wrote {options.output}: {spec.search.num_trials} trials of up to {spec.max_epochs} "
        "epochs",
        markup=False,
    )
    out.print(f"next    tune run {name}", markup=False)
    return DONE


def resume(options: argparse.Namespace, out: Console) -> int:
    """`tune resume`."""
    from tuner.api import studies

    budgets = {key.removeprefix("search."): value for key, value in overrides_of(options).items()}
    try:
        study = studies.resume(
            options.name,
            studies_dir=options.studies_dir,
            address=options.address,
            progress=out,
            **budgets,
        )
    except studies.StudyInterrupted as end:
        return _interrupted(end.study, out)
    return _ended(study, out)


def _interrupted(study: Study, out: Console) -> int:
    study.print_summary(out)
    out.print("interrupted: every finished epoch is kept", markup=False)
    return INTERRUPTED


def _ended(study: Study, out: Console) -> int:
    study.print_summary(out)
    return NO_RESULT if study.best is None or study.most_failed else DONE


def list_studies(options: argparse.Namespace, out: Console) -> int:
    """`tune list`."""
    if options.address is not None:
        return remote.list_studies(options, out)
    from tuner.api import studies

    unreadable: list[str] = []
    found = studies.list_studies(
        options.studies_dir,
        sort=options.sort,
        top=options.top,
        on_unreadable=unreadable.append,
    )
    below = [*unreadable, *(study.cut_off for study in found if study.cut_off)]
    if options.json:
        documents = [study.to_dict(trials=False) for study in found]
        _print_json({"studies": documents, "unreadable": unreadable}, out)
    elif found:
        studies.print_studies(found, out)
    elif not below:
        where = shown_studies_dir(local_studies_dir(options.studies_dir))
        out.print(f"no studies in {where}", markup=False)
    if not options.json:
        for line in below:
            out.print(line, markup=False)
    return NO_RESULT if below and not found else DONE


def status(options: argparse.Namespace, out: Console) -> int:
    """`tune status`."""
    if options.address is not None:
        return remote.status(options, out)
    from tuner.api import studies

    study = studies.open_study(options.name, studies_dir=options.studies_dir)
    if options.json:
        _print_json(study.to_dict(sort=options.sort, top=options.top), out)
        return DONE
    study.print_summary(out, sort=options.sort, top=options.top)
    if study.cut_off is not None:
        out.print(study.cut_off, markup=False)
    return DONE


def _print_json(document: object, out: Console) -> None:
    # a program reads it: no line is wrapped, no character coloured
    try:
        print(json.dumps(document, indent=2, allow_nan=False), file=out.file, flush=True)
    except BrokenPipeError:
        # whoever read it has seen enough (`| head`); rich ends all other output so
        out.on_broken_pipe()


def check(options: argparse.Namespace, out: Console) -> int:
    """`tune check`."""
    from tuner.report.spec import print_spec
    from tuner.spec.load import load_spec

    spec = load_spec(options.space, overrides_of(options))
    # these load torch: what is wrong with the file is said before
    from tuner.study.data import case_sizes, check_data
    from tuner.trial.networks import check_networks

    spec, found = check_data(spec)
    networks = check_networks(spec, case_sizes(spec))
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
    if options.address is not None:
        return remote.export(options, out)
    from tuner.api import studies

    study = studies.open_study(options.name, studies_dir=options.studies_dir)
    return _export_to(
        study,
        out,
        options.output,
        options.trial,
        data_dir=options.data_dir,
        **export_settings(options),
    )


def _export_to(
    study: Study, out: Console, folder: Path | None, trial: int | None = None, **settings: Any
) -> int:
    from tuner.report.numbers import score
    from tuner.report.tables import case_scores_table

    exported = study.export(
        folder, trial, tell=lambda line: out.print(line, markup=False), **settings
    )
    shown = folder or exported.folder
    members = len(exported.members)
    what = exported.trial if members == 1 else f"an ensemble of {members} networks, the winner"
    winner = "" if members == 1 else f" {exported.trial}"
    out.print(
        f"exported {what}{winner} (epoch {exported.epoch}) to {shown}; {exported.verified}",
        markup=False,
    )
    for line in exported.choice:
        out.print(f"  {line}", markup=False)
    for note in exported.notes:
        out.print(f"note    {note}", markup=False)
    for name, value in sorted(exported.metrics.items()):
        if name.startswith("val_dice"):
            out.print(f"  {name:<16} {score(value)}", markup=False)
    if exported.grid is not None:
        scores = exported.test_scores()
        alone = exported.test_scores(exported.winner_metrics)
        table = case_scores_table(scores, exported.tolerance, exported.grid)
        out.print(table, markup=False)
        if alone != scores:
            out.print("of the winner as it was trained:", markup=False)
            table = case_scores_table(alone, exported.tolerance, exported.grid)
            out.print(table, markup=False)
    bundle = shlex.quote(str(shown))
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
        trust_code=options.trust_code,
        mirroring=not options.no_mirroring,
        probabilities=options.probabilities,
        skip_existing=options.skip_existing,
        file_format=options.format,
        check_channels=not options.no_channel_check,
        on_case=lambda line: out.print(line, markup=False),
    )
    return NO_RESULT if failed else DONE


def convert(options: argparse.Namespace, out: Console) -> int:
    """`tune convert`."""
    from training.bundle.bundle import Bundle
    from training.bundle.network_export import (
        check_target,
        chosen_members,
        export_network,
        shared_patch_size,
    )

    check_target(options.output, overwrite=options.overwrite)
    bundle = Bundle.load(options.bundle, device="cpu", trust_code=options.trust_code)
    members = chosen_members(bundle, options.member)
    size = options.size or shared_patch_size(members)
    difference = export_network(
        bundle, options.output, size, member=options.member, overwrite=options.overwrite
    )
    meaning = (
        f"; a {'softmax' if bundle.config.regions is None else 'sigmoid'} of them is the weighted "
        f"mean of the probabilities of {len(members)} networks"
        if len(members) > 1
        else ""
    )
    left_out = [
        *(["mirroring"] if any(member.mirror_axes for member in members) else []),
        *(["postprocessing"] if bundle.manifest.postprocessing.steps else []),
    ]
    note = f"; the model's {' and '.join(left_out)} is no part of the file" if left_out else ""
    out.print(
        f"wrote {options.output}: preprocessed patches of {' x '.join(map(str, size))} voxels in "
        f"batches of any size; its logits differ from the model's by at most {difference:.1e}"
        f"{meaning}{note}",
        markup=False,
    )
    return DONE


def completion(options: argparse.Namespace, out: Console) -> int:
    """`tune completion`."""
    # a shell reads it: no line is wrapped, no character coloured
    print(shell_code(options.shell), file=out.file)
    return DONE
