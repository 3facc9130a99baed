"""`tune export`: with the data, with their cache alone, with neither; and what a bundle tells."""

from __future__ import annotations

import json
import shutil
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lesion_data import write_lesions

from training.bundle.bundle import Bundle
from training.bundle.case_scores import files_of, on_file_grid, scores_by_case
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main
from tuner.errors import ExportError
from tuner.export.export import export_study
from tuner.report.tables import case_scores_table
from tuner.spec.load import parse_spec
from tuner.spec.settings import ConfirmSettings
from tuner.spec.spec_values import FORMAT
from tuner.study.confirmation import CASES, SEED, candidates
from tuner.study.data import prepare_data
from tuner.study.files import CONFIRM_FOLDER, PROVENANCE, RESOLVED_SPEC
from tuner.study.provenance import PREPARATION, provenance
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

SPACE = """
metric: val_dice
config:
  data_dir: {data_dir}
  model_name: unet3d
  model_params: {{channels: [4, 8], strides: [2], num_res_units: 0}}
  patch_size: [8, 8, 8]
  target_spacing: [2, 2, 2]
  test_fraction: 0.3
  max_epochs: 3
space: {{learning_rate: {{loguniform: [1e-5, 1e-1]}}}}
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with data, cache and a study of one trial, as a search leaves them."""
    home = tmp_path_factory.mktemp("home-of-jane.doe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGTUNE_CACHE", str(home / "cache"))
        patch.setattr(
            "sys.argv",
            [str(home / "bin" / "tune"), "run", "--data-dir", "../jane.doe/x y/s.yaml"],
        )
        make_study(home)
        yield home


def make_study(home: Path, modality: str = "MRI", form: int = FORMAT) -> None:
    data_dir = write_lesions(home / "data", cases=7, modality=modality)
    text = f"format: {form}\n{SPACE.format(data_dir=data_dir)}"
    spec = parse_spec(text, source="space.yaml")
    data = prepare_data(spec)
    folder = home / "studies" / "lesions"
    folder.mkdir(parents=True)
    (folder / RESOLVED_SPEC).write_text(spec.to_yaml())
    (folder / PROVENANCE).write_text(json.dumps(provenance(data, seed=0)))
    record = StudyRecord(folder, spec.space, spec.mode)
    record.propose({"learning_rate": 1e-3}, "test")
    record.report(0, 1, 0.5, {"val_dice": 0.5, "val_dice_1": 0.5}, 1.0)
    record.finish(0, TrialState.COMPLETED, "trained 1 epochs")
    record.close()
    trial = folder / "trials" / "0000"
    trial.mkdir(parents=True)
    config = data.spec.trial_config({"learning_rate": 1e-3})
    config.data_dir = data.preprocessed
    config.log_dir = config.checkpoint_dir = trial
    values = config.flat()
    if form < FORMAT:
        # what versions of that format did not have
        del values["normalisation"]
    (trial / "config.yaml").write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    module = SegmentationLightningModule(build_model(config), config)
    torch.save({"state_dict": module.state_dict()}, trial / "best.ckpt")


def open_lesions(home: Path) -> Study:
    folder = home / "studies" / "lesions"
    spec = parse_spec((folder / RESOLVED_SPEC).read_text(), source=folder / RESOLVED_SPEC)
    return Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))


@pytest.fixture
def study(home: Path) -> Iterator[Study]:
    opened = open_lesions(home)
    yield opened
    opened.record.close()


@pytest.fixture
def moved(home: Path) -> Iterator[Callable[[str], Path]]:
    """Moves a folder of the user away, and back after the test."""
    away: list[str] = []

    def move(name: str) -> Path:
        away.append(name)
        return (home / name).rename(home / f"{name} of last year")

    yield move
    for name in away:
        shutil.rmtree(home / name, ignore_errors=True)
        (home / f"{name} of last year").rename(home / name)


def manifest_of(bundle: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    return values


def test_test_metrics_are_those_of_the_exported_model_against_the_label_files(
    study: Study, tmp_path: Path
) -> None:
    exported = export_study(study, tmp_path / "bundle")
    assert exported.verified.endswith("as the trial's model does")
    assert exported.notes == []
    assert exported.grid == "file"
    manifest = manifest_of(tmp_path / "bundle")
    assert manifest["provenance"]["test_grid"] == "file"
    dataset = PreprocessedDataset.load(Path(study.provenance()["data"]["preprocessed"]))
    files = files_of(dataset, "test")
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    accuracies = []
    for case in on_file_grid(bundle.members, bundle.preprocessing, files):
        images = dataset.cases[case.case_id].images
        np.testing.assert_array_equal(bundle.label_map(images), case.prediction.numpy())
        accuracies.append(float((case.prediction == case.target).double().mean()))
    assert manifest["metrics"]["test_accuracy"] == pytest.approx(np.mean(accuracies))
    by_case = scores_by_case(
        bundle.module, on_file_grid(bundle.members, bundle.preprocessing, files), "dice_1"
    )
    assert manifest["metrics"]["test_dice_1"] == pytest.approx(np.mean(list(by_case.values())))
    assert not any(name.startswith("preprocessed") for name in manifest["metrics"])


@pytest.mark.parametrize("winner", ["default", "trial 0"])
def test_a_confirmed_model_tells_the_values_that_it_was_trained_with(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    """Trials of a confirmation have numbers of their own, which the search may have as well."""
    monkeypatch.setattr(study.record.entries[0], "values", {"learning_rate": 2e-2})
    spec = study.spec.model_copy(update={"confirm": ConfirmSettings(top=1, seeds=2)})
    confirmed = replace(study, spec=spec)
    chosen = sorted(candidates(confirmed), key=lambda one: not one.is_default)
    folder = study.folder / CONFIRM_FOLDER
    folder.mkdir()
    record = StudyRecord(folder, spec.space, spec.mode)
    try:
        for number, candidate in enumerate(chosen):
            score = 0.9 if candidate.name == winner else 0.1
            record.propose(candidate.values, "test")
            record.note(number, SEED, 1)
            record.note(number, CASES, {"case_000": score})
            record.report(number, 1, score, {"val_dice": score}, 1.0)
            record.finish(number, TrialState.COMPLETED, "trained 1 epochs")
            trial = Path("trials") / f"{number:04d}"
            shutil.copytree(study.folder / "trials" / "0000", folder / trial)
        export_study(confirmed, tmp_path / "bundle")
    finally:
        record.close()
        shutil.rmtree(folder)
    told = manifest_of(tmp_path / "bundle")["provenance"]
    assert told["confirmed"] is True
    assert told["values"] == next(one.values for one in chosen if one.name == winner)


def test_without_the_files_the_cache_is_looked_at_under_other_names(
    study: Study, tmp_path: Path, moved: Callable[[str], Path]
) -> None:
    where = moved("data")
    exported = export_study(study, tmp_path / "bundle")
    assert exported.grid == "preprocessed"
    assert exported.verified.startswith("it predicts the preprocessed case case_")
    assert all("--data-dir DIR" in note for note in exported.notes)
    assert len(exported.notes) == 2
    metrics = manifest_of(tmp_path / "bundle")["metrics"]
    assert not any(name.startswith("test_") for name in metrics)
    assert 0 <= metrics["preprocessed_test_accuracy"] <= 1
    table = case_scores_table(exported.test_scores(), exported.tolerance, exported.grid)
    # each class without the background, and their mean
    assert table.row_count == len(exported.labels)
    assert table.columns[0].header == "test cases (grid: preprocessed)"
    assert manifest_of(tmp_path / "bundle")["provenance"]["test_grid"] == "preprocessed"
    # the way out
    again = export_study(study, tmp_path / "again", data_dir=where)
    assert (again.grid, again.notes) == ("file", [])


def test_moved_files_alone_are_enough(
    study: Study, tmp_path: Path, moved: Callable[[str], Path]
) -> None:
    with_all = export_study(study, tmp_path / "first")
    where = moved("data")
    moved("cache")
    exported = export_study(study, tmp_path / "bundle", data_dir=where)
    assert (exported.grid, exported.notes) == ("file", [])
    assert exported.verified == with_all.verified
    assert exported.metrics == pytest.approx(with_all.metrics, nan_ok=True)


def test_with_neither_files_nor_cache_there_is_a_model_still(
    home: Path,
    tmp_path: Path,
    moved: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved("data")
    moved("cache")
    where = ["--studies-dir", str(home / "studies")]
    assert main(["export", "lesions", "-o", str(tmp_path / "bundle"), *where]) == 0
    shown = capsys.readouterr().out
    assert "it was not verified on a case" in shown
    assert "there are no test metrics" in shown
    assert "--data-dir DIR" in shown
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert bundle.manifest.labels == ["background", "organ", "lesion"]
    assert bundle.preprocessing.spacing == (2.0, 2.0, 2.0)
    assert not any("test_" in name for name in bundle.manifest.metrics)


def test_other_data_are_refused_and_changed_ones_are_not_taken_for_the_studys(
    study: Study, home: Path, tmp_path: Path, moved: Callable[[str], Path]
) -> None:
    other = write_lesions(tmp_path / "other", cases=7, spacing=(1.0, 1.0, 1.5))
    with pytest.raises(ExportError, match=r"other are not those that the study 'lesions'"):
        export_study(study, tmp_path / "bundle", data_dir=other)
    assert not (tmp_path / "bundle").exists()
    moved("data")
    shutil.copytree(other, home / "data")
    exported = export_study(study, tmp_path / "bundle")
    assert "are not those that the study 'lesions' was made with" in exported.notes[0]
    assert "or not those of the study" in exported.notes[-1]
    assert exported.grid == "preprocessed"


def test_a_study_of_an_older_version_needs_data_or_cache(
    study: Study, tmp_path: Path, moved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder does not have the preprocessing."""
    older = {name: value for name, value in study.provenance().items() if name != PREPARATION}
    monkeypatch.setattr(Study, "provenance", lambda self: json.loads(json.dumps(older)))
    where = moved("data")
    moved("cache")
    with pytest.raises(ExportError, match="say where the data are now with --data-dir DIR"):
        export_study(study, tmp_path / "bundle")
    exported = export_study(study, tmp_path / "bundle", data_dir=where)
    assert (exported.grid, exported.notes) == ("file", [])


def test_a_study_of_an_older_version_is_exported_with_the_normalisation_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channel has the name of a scheme that was not known, and was z-scored."""
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "cache"))
    make_study(tmp_path, "noNorm", form=2)
    study = open_lesions(tmp_path)
    assert study.spec.trial_config({"learning_rate": 1e-3}).normalisation == "modality"
    exported = export_study(study, tmp_path / "bundle")
    study.record.close()
    # the files are found to be those of the study
    assert (exported.grid, exported.notes) == ("file", [])
    (channel,) = Bundle.load(tmp_path / "bundle", "cpu").preprocessing.channels
    assert channel.scheme == "zscore"


@pytest.mark.parametrize("content", [None, b"cut off"])
def test_only_a_checkpoint_that_is_lost_or_damaged_fails(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    checkpoint = home / "studies" / "lesions" / "trials" / "0000" / "best.ckpt"
    kept = checkpoint.read_bytes()
    where = ["--studies-dir", str(home / "studies")]
    try:
        checkpoint.unlink()
        if content is not None:
            checkpoint.write_bytes(content)
        assert main(["export", "lesions", "-o", str(tmp_path / "bundle"), *where]) == 2
    finally:
        checkpoint.write_bytes(kept)
    assert ("has no checkpoint" if content is None else "cannot be read") in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def everything_in(path: Path) -> bytes:
    """All bytes of a file, those of an archive's members as well."""
    content = path.read_bytes() + path.name.encode()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content += b"".join(archive.read(name) for name in archive.namelist())
            content += "\n".join(archive.namelist()).encode()
    return content


def test_a_bundle_tells_nothing_of_the_machine_that_made_it(
    study: Study, home: Path, tmp_path: Path
) -> None:
    export_study(study, tmp_path / "bundle")
    files = sorted((tmp_path / "bundle").iterdir())
    assert [path.name for path in files] == [
        "bundle.json",
        "config.yaml",
        "preprocessing.json",
        "weights.pt",
    ]
    for path in files:
        content = everything_in(path)
        for secret in (home, Path.home(), tmp_path, Path("jane.doe"), Path(socket.gethostname())):
            # the home of root is short enough to be part of a word
            assert f"{secret}{'/' if secret == Path.home() else ''}".encode() not in content
    told = manifest_of(tmp_path / "bundle")["provenance"]
    assert told["command"] == ["tune", "run", "--data-dir", "s.yaml"]
    assert set(told["data"]) == {"source", "fingerprint", "summary"}
    assert told["data"]["source"] == "data"


def test_a_bundle_of_an_older_version_still_loads(study: Study, tmp_path: Path) -> None:
    export_study(study, tmp_path / "bundle")
    config = tmp_path / "bundle" / "config.yaml"
    paths = {"data_dir": "/home/jane/cache", "log_dir": "/a/b", "checkpoint_dir": "/a/b"}
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **paths}))
    loaded = Bundle.load(tmp_path / "bundle", "cpu")
    assert loaded.config.data_dir == Path("/home/jane/cache")
    assert replace(loaded).config == ModelTrainingConfig(**yaml.safe_load(config.read_text()))


def test_a_study_whose_score_was_never_defined_says_what_to_do(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.record.entries[0], "scores", {1: float("nan")})
    with pytest.raises(ExportError, match=r"val_dice was not defined in any epoch.*another metric"):
        export_study(study, tmp_path / "bundle")


def test_a_test_case_that_cannot_be_read_costs_the_metrics_their_name_alone(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Iterator[Any]:
        raise MemoryError
        yield

    monkeypatch.setattr("tuner.export.held_out.on_file_grid", full)
    exported = export_study(study, tmp_path / "bundle")
    assert exported.grid == "preprocessed"
    assert exported.notes[0].endswith("cannot be measured against its label file: MemoryError")
    assert "preprocessed_test_dice" in exported.metrics


def test_the_last_epoch_is_exported_where_its_schedule_had_ended(
    home: Path, tmp_path: Path
) -> None:
    """A lucky epoch in the middle of a training is not taken for the best network."""
    shutil.copytree(home / "studies", tmp_path / "studies")
    folder = tmp_path / "studies" / "lesions"
    spec = parse_spec((folder / RESOLVED_SPEC).read_text(), source=folder / RESOLVED_SPEC)
    record = StudyRecord(folder, spec.space, spec.mode)
    record.propose({"learning_rate": 2e-3}, "test")
    rng = np.random.default_rng(0)
    for epoch in range(1, 13):
        score = 0.99 if epoch == 6 else 0.7 + 0.1 * float(rng.random())
        record.report(1, epoch, score, {"val_dice": score}, 1.0)
    record.finish(1, TrialState.COMPLETED, "trained 12 epochs")
    trial = folder / "trials" / "0001"
    shutil.copytree(folder / "trials" / "0000", trial)
    config = yaml.safe_load((trial / "config.yaml").read_text())
    config |= {"scheduler": "wsd", "max_epochs": 12, "warmup_epochs": 0}
    (trial / "config.yaml").write_text(yaml.safe_dump(config))
    last = torch.load(trial / "best.ckpt", weights_only=True)
    last["state_dict"] = {name: 0.5 * value for name, value in last["state_dict"].items()}
    torch.save(last, trial / "last.ckpt")
    exported = export_study(Study(folder, spec, record), tmp_path / "bundle")
    record.close()
    assert (exported.trial, exported.epoch) == ("trial 1", 12)
    assert exported.choice[0] == (
        "checkpoint: the last, of epoch 12, at the end of its schedule; epoch 6 had the best "
        "score, but not beyond the noise between epochs"
    )
    # measured, not that of epoch 6
    assert exported.metrics["val_dice"] < 0.9
    assert manifest_of(tmp_path / "bundle")["provenance"]["epoch"] == 12
    weights = Bundle.load(tmp_path / "bundle", "cpu").module.state_dict()
    for name, value in last["state_dict"].items():
        torch.testing.assert_close(weights[name], value)
