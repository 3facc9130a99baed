"""Chooses what of a study is exported, by validation cases: members, mirroring, postprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from training.bundle.case_scores import PredictedCase, mean_scores, task_labelled
from training.bundle.member import load_checkpoint
from training.data.patches.mirroring import trained_mirror_axes
from training.errors import BundleError
from tuner.errors import ExportError
from tuner.export.choice import (
    Choice,
    ChosenMember,
    gain_document,
    gain_text,
    mirroring_text,
)
from tuner.export.measure import Measure
from tuner.export.postprocessing import label_maps, nested_postprocessing
from tuner.export.predictions import Predicted, ValidationCases, mean_predictions, validation_cases
from tuner.export.scratch import Scratch
from tuner.export.selection import Limits, SelectionCases, nested_gains, select
from tuner.study.statistics import paired_interval

if TYPE_CHECKING:
    from tuner.export.candidates import Candidate
    from tuner.export.data import ExportData
    from tuner.spec.settings import ExportSettings

GOOD_ENOUGH = 0.5
"""Least score of a member, as a share of the winner's. A weaker one that seems to help has mostly
been lucky with a few validation cases."""


def choose(
    candidates: Sequence[Candidate],
    data: ExportData,
    metric: str,
    settings: ExportSettings,
    folder: Path,
    tell: Callable[[str], None],
) -> Choice:
    """Choose members, mirroring and postprocessing by the validation cases.

    Args:
        candidates: The networks, the winner first.
        data: The study's data; without validation cases the winner is exported as it is.
        metric: The study's metric.
        settings: What is wanted.
        folder: Where predictions are kept meanwhile.
        tell: Called with a line before each candidate predicts.

    Raises:
        BundleError: if the winner's checkpoint cannot be read.
        ExportError: if `folder` has no room.
    """
    winner = candidates[0]
    scratch = Scratch(folder)
    prepared = validation_cases(data, winner, scratch)
    if not prepared:
        return _without_cases(winner, data, settings)
    num_classes = winner.config.task_classes
    measure = Measure.of(metric, winner.config)
    cases = ValidationCases(
        prepared, data.labels, measure, num_classes, winner.config.task_channels, scratch
    )
    tell(_told(cases, winner))
    plain = cases.plain(winner)
    predicted = cases.mirrored(plain, settings.mirroring) or plain
    choice = Choice(_networks([(1.0, predicted)]))
    before = measure.mean(plain.scores)
    name = measure.name(num_classes)
    if winner.chosen.is_last:
        choice.lines.append(
            f"checkpoint: the last, of epoch {winner.chosen.epoch}, at the end of its schedule; "
            f"epoch {winner.chosen.best} had the best score, but not beyond the noise between "
            "epochs"
        )
    choice.document = {
        "measure": name,
        "validation_cases": len(cases),
        "winner": {"network": winner.name, "score": before, "seconds": plain.seconds},
    }
    gains = np.zeros(len(cases))
    gains += _choose_mirroring(choice, cases, plain, predicted, settings)
    members = [(1.0, predicted)]
    if winner.further:
        choice.lines.append(
            f"folds: the {len(winner.networks)} networks of a trial are averaged; each predicts "
            "the validation cases that it was not trained on"
        )
    if settings.ensemble > 1 and len(candidates) > 1:
        members, more = _choose_members(choice, cases, predicted, candidates[1:], settings, tell)
        gains += more
    if not choice.is_plain:
        gain = paired_interval(gains)
        choice.lines.append(
            f"{name} of {len(cases)} validation cases: {before:.4f} by {winner.name} as it was "
            f"trained, {before + gain.mean:.4f} now ({gain_text(gain)}; each case is scored by "
            "what was chosen without it)"
        )
        choice.document["score"] = {"before": before, **gain_document(gain)}
    if settings.postprocessing:
        _choose_postprocessing(choice, cases, members, data)
    if not choice.is_plain or winner.chosen.is_last:
        choice.metrics = _metrics(choice, cases, members, data.preprocessing.spacing)
    seconds = sum(member.seconds for _, member in members)
    choice.document["seconds_per_case"] = seconds
    choice.lines.append(
        f"predicts a preprocessed validation case in {seconds:.3g} s; the winner without "
        f"mirroring in {plain.seconds:.3g} s"
    )
    return choice


def _without_cases(winner: Candidate, data: ExportData, settings: ExportSettings) -> Choice:
    axes = trained_mirror_axes(winner.config, data.labels) if settings.mirroring == "on" else ()
    line = (
        "the validation cases are not there: the winner alone is exported, "
        f"{mirroring_text(axes)}, as nothing can be chosen by them"
    )
    alone = ChosenMember(winner.name, winner.config, winner.checkpoint, 1.0, axes)
    return Choice([alone], lines=[line])


def _choose_mirroring(
    choice: Choice,
    cases: ValidationCases,
    plain: Predicted,
    predicted: Predicted,
    settings: ExportSettings,
) -> NDArray[np.float64]:
    """Say whether the winner mirrors; gain of each case by it."""
    choice.document["mirroring"] = {"setting": settings.mirroring}
    if predicted is plain:
        if settings.mirroring == "auto":
            choice.lines.append(f"mirroring: off for {plain.candidate.name}, no better with it")
        return np.zeros(len(cases))
    gains = cases.mirroring_gains(plain, predicted, settings.mirroring)
    gain = paired_interval(gains)
    how = f"{plain.candidate.name} {mirroring_text(predicted.mirror_axes)}"
    choice.lines.append(f"mirroring: {how}: {gain_text(gain)}")
    choice.document["mirroring"] |= gain_document(gain)
    return gains


def _choose_members(
    choice: Choice,
    cases: ValidationCases,
    winner: Predicted,
    others: Sequence[Candidate],
    settings: ExportSettings,
    tell: Callable[[str], None],
) -> tuple[list[tuple[float, Predicted]], NDArray[np.float64]]:
    """Select the members, and say why; they, and the gain of each case over the winner."""
    alone, nothing = [(1.0, winner)], np.zeros(len(cases))
    if len(cases) < 2:
        choice.lines.append(
            "ensemble: no, one validation case cannot say whether it is better than the winner"
        )
        return alone, nothing
    found = _pool(choice, cases, winner, others, settings, tell)
    seconds = [predicted.seconds for predicted in found]
    limits = _limits(found, settings)
    voxels = _selection_cases(cases, found)
    counts = select(voxels, seconds, limits)
    gains = nested_gains(voxels, seconds, limits)
    gain = paired_interval(gains)
    members = [
        (count / sum(counts), predicted)
        for count, predicted in zip(counts, found, strict=True)
        if count
    ]
    members.sort(key=lambda member: -member[0])
    used = gain.mean > 0 and members != alone
    names = list(dict.fromkeys(predicted.candidate.name for predicted in found))
    choice.document["ensemble"] = {
        "at_most": settings.ensemble,
        "time_limit": settings.ensemble_time,
        "candidates": names,
        "used": used,
        **gain_document(gain),
    }
    if not used:
        why = (
            "no mean with another one is better"
            if members == alone
            else f"the selected are no better for other cases: {gain_text(gain)}"
        )
        choice.lines.append(
            f"ensemble: no, {winner.candidate.name} alone; of {len(names)} networks {why}"
        )
        return alone, nothing
    choice.members = _networks(members)
    shown = ", ".join(
        f"{weight:.2f} {predicted.candidate.name} ({mirroring_text(predicted.mirror_axes)})"
        for weight, predicted in members
    )
    choice.lines.append(
        f"ensemble of {len(members)} of {len(names)} networks: {shown}; against the winner: "
        f"{gain_text(gain)}"
    )
    choice.document["members"] = [
        {
            "network": predicted.candidate.name,
            "score": cases.measure.mean(predicted.scores),
            "seconds": predicted.seconds,
        }
        for _, predicted in members
    ]
    return members, gains


def _pool(
    choice: Choice,
    cases: ValidationCases,
    winner: Predicted,
    others: Sequence[Candidate],
    settings: ExportSettings,
    tell: Callable[[str], None],
) -> list[Predicted]:
    """What an ensemble is selected from, the winner first.

    Mirroring takes several times as long, so by itself (`auto`) only the candidates that are
    selected without it are tried with it as well.
    """
    found = [winner]
    for candidate in others:
        # with mirroring and without, and for what is compared afterwards
        if cases.scratch.free < 3 * cases.bytes_of_one:
            choice.lines.append(
                f"the disk has no room for the predictions of more than {len(found)} networks"
            )
            break
        tell(_told(cases, candidate))
        try:
            found.append(cases.plain(candidate))
        except (BundleError, ExportError) as error:
            choice.lines.append(f"{candidate.name} is left out: {error}")
    least = GOOD_ENOUGH * cases.measure.mean(winner.scores)
    weak = [plain for plain in found[1:] if cases.measure.mean(plain.scores) < least]
    if weak:
        names = ", ".join(plain.candidate.name for plain in weak)
        choice.lines.append(
            f"left out, with less than {GOOD_ENOUGH:g} of the winner's score: {names}"
        )
        found = [one for one in found if all(one is not other for other in weak)]
    if settings.mirroring == "on":
        return [winner, *(cases.mirrored(plain, "on") or plain for plain in found[1:])]
    if settings.mirroring == "off" or len(found) == 1:
        return found
    seconds = [predicted.seconds for predicted in found]
    counts = select(_selection_cases(cases, found), seconds, _limits(found, settings))
    tried = [plain for plain, count in zip(found[1:], counts[1:], strict=True) if count]
    mirrored = [cases.mirrored(plain, settings.mirroring) for plain in tried]
    return [*found, *(predicted for predicted in mirrored if predicted is not None)]


def _networks(members: Sequence[tuple[float, Predicted]]) -> list[ChosenMember]:
    """The networks of trials: of each all folds, which share its weight."""
    return [
        ChosenMember(
            predicted.candidate.name,
            config,
            checkpoint,
            weight / len(predicted.candidate.networks),
            predicted.mirror_axes,
        )
        for weight, predicted in members
        for config, checkpoint in predicted.candidate.networks
    ]


def _limits(found: Sequence[Predicted], settings: ExportSettings) -> Limits:
    checkpoints = [predicted.candidate.checkpoint for predicted in found]
    # networks of folds come together, and limits are those of single ones
    folds = len(found[0].candidate.networks)
    return Limits(
        settings.ensemble // folds,
        settings.ensemble_time * found[0].seconds / folds,
        tuple(checkpoints.index(checkpoint) for checkpoint in checkpoints),
    )


def _selection_cases(cases: ValidationCases, found: Sequence[Predicted]) -> SelectionCases:
    voxels = SelectionCases(cases.measure, cases.num_classes, cases.scratch)
    winner = found[0].candidate
    pairs = zip(cases.targets(winner), cases.labelled(winner), strict=True)
    for number, (label, labelled) in enumerate(pairs):
        voxels.add([predicted.probabilities[number] for predicted in found], label, labelled)
    return voxels


def _choose_postprocessing(
    choice: Choice,
    cases: ValidationCases,
    members: Sequence[tuple[float, Predicted]],
    data: ExportData,
) -> None:
    """Choose the postprocessing, and say why."""
    grid, found = label_maps(cases, members, data)
    chosen, gains = nested_postprocessing(found, cases.num_classes, cases.measure.regions)
    gain = paired_interval(gains)
    used = bool(chosen.steps) and gain.mean > 0
    target = members[0][1].candidate.config.target_class
    labels = data.labels if target is None else [data.labels[0], data.labels[target]]
    steps = chosen.describe(labels)
    choice.document["postprocessing"] = {
        "used": used,
        "grid": grid,
        "steps": steps,
        **gain_document(gain),
    }
    if used:
        choice.postprocessing = chosen
        line = f"{'; '.join(steps)}: mean Dice {gain_text(gain)}"
    elif steps:
        line = f"none, what was chosen is no better for other cases: mean Dice {gain_text(gain)}"
    else:
        line = "none, no step makes the validation cases better"
    choice.lines.append(f"postprocessing: {line}")


def _metrics(
    choice: Choice,
    cases: ValidationCases,
    members: Sequence[tuple[float, Predicted]],
    spacing: tuple[float, float, float],
) -> dict[str, float]:
    """Validation metrics of what is exported, on the preprocessed grid."""
    winner = members[0][1].candidate
    module = load_checkpoint(winner.checkpoint, winner.config)
    predictions = mean_predictions(members)
    predicted = (
        PredictedCase(
            case.name,
            torch.from_numpy(choice.postprocessing.apply(cases.decode(mean), spacing)),
            torch.from_numpy(label),
            spacing,
            task_labelled(case.labelled, winner.config),
        )
        for case, mean, label in zip(cases.cases, predictions, cases.targets(winner), strict=True)
    )
    return {f"val_{name}": value for name, value in mean_scores(module, predicted).items()}


def _told(cases: ValidationCases, candidate: Candidate) -> str:
    shown = "the validation case" if len(cases) == 1 else f"the {len(cases)} validation cases"
    return f"{candidate.name} predicts {shown}"
