"""`tune export` of several trials: what is chosen, what the bundle holds, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lesion_data import write_lesions
from numpy.typing import NDArray

from training.bundle.bundle import Bundle
from training.bundle.case_prediction import case_probabilities
from training.bundle.case_scores import files_of, mean_scores, on_file_grid, scores_by_case
from training.bundle.member import Member, load_checkpoint
from training.bundle.postprocessing import Postprocessing
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main
from tuner.errors import SpecError
from tuner.export.export import export_study
from tuner.export.selection import Counts
from tuner.spec.load import parse_spec
from tuner.spec.settings import ExportSettings
from tuner.study.data import prepare_data
from tuner.study.files import PROVENANCE, RESOLVED_SPEC, fold_folder
from tuner.study.provenance import provenance
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

SPACE = """
metric: val_dice
config:
  data_dir: {data_dir}
  model_name: unet3d
  model_params: {{channels: [4, 8], strides: [2], num_res_units: 0}}
  target_spacing: [2, 2, 2]
  test_fraction: 0.2
  val_fraction: 0.4
  augmentation: none
  max_epochs: 3
space:
  learning_rate: {{loguniform: [1e-5, 1e-1]}}
  patch_size: {{choice: [[8, 8, 8], [8, 12, 12]]}}
"""

TRIALS = [(1e-3, [8, 8, 8], 0.6), (2e-3, [8, 12, 12], 0.5), (3e-3, [8, 8, 8], 0.4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study of three trials of untrained networks, the first of which is the winner."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGTUNE_CACHE", str(home / "cache"))
        data_dir = write_lesions(home / "data", cases=8)
        spec = parse_spec(SPACE.format(data_dir=data_dir), source="space.yaml")
        data = prepare_data(spec)
        folder = home / "studies" / "lesions"
        folder.mkdir(parents=True)
        (folder / RESOLVED_SPEC).write_text(spec.to_yaml())
        (folder / PROVENANCE).write_text(json.dumps(provenance(data, seed=0)))
        record = StudyRecord(folder, spec.space, spec.mode)
        for number, (rate, patch_size, score) in enumerate(TRIALS):
            values = {"learning_rate": rate, "patch_size": patch_size}
            record.propose(values, "test")
            record.report(number, 1, score, {"val_dice": score}, 1.0)
            record.finish(number, TrialState.COMPLETED, "trained 1 epochs")
            trial = folder / "trials" / f"{number:04d}"
            trial.mkdir(parents=True)
            config = data.spec.trial_config(values)
            config.data_dir = data.preprocessed
            config.log_dir = config.checkpoint_dir = trial
            config.mirror_axes = ["depth", "width"]
            if number == 0:
                config.augmentation = "nnunet"
            (trial / "config.yaml").write_text(yaml.safe_dump(config.flat()))
            torch.manual_seed(number)
            module = SegmentationLightningModule(build_model(config), config)
            torch.save({"state_dict": module.state_dict()}, trial / "best.ckpt")
        record.close()
        yield folder


@pytest.fixture
def study(folder: Path) -> Iterator[Study]:
    spec = parse_spec((folder / RESOLVED_SPEC).read_text(), source=folder / RESOLVED_SPEC)
    opened = Study(folder, spec, StudyRecord(folder, spec.space, spec.mode))
    yield opened
    opened.record.close()


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[float]]:
    """The ensemble that is selected whatever it predicts; what it was selected by is kept."""
    asked: list[Sequence[float]] = []

    # untrained networks are no good, and selected all the same
    monkeypatch.setattr("tuner.export.choose.GOOD_ENOUGH", 0)

    def choose(cases: Any, seconds: Sequence[float], limits: Any) -> Counts:
        asked.append(seconds)
        return (1, 3, 0)

    monkeypatch.setattr("tuner.export.choose.select", choose)
    return asked


def gains_of(monkeypatch: pytest.MonkeyPatch, *gains: float) -> None:
    def nested(*_: Any) -> NDArray[np.float64]:
        return np.array(gains)

    monkeypatch.setattr("tuner.export.choose.nested_gains", nested)


def modules_of(study: Study, *numbers: int) -> list[SegmentationLightningModule]:
    modules = []
    for number in numbers:
        trial = study.folder / "trials" / f"{number:04d}"
        config = ModelTrainingConfig(**yaml.safe_load((trial / "config.yaml").read_text()))
        modules.append(load_checkpoint(trial / "best.ckpt", config))
    return modules


PLAIN = ExportSettings(mirroring="off", postprocessing=False)


def test_an_ensemble_is_exported_whole_with_its_own_scores(
    study: Study,
    tmp_path: Path,
    selected: list[Sequence[float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains_of(monkeypatch, 0.02, 0.01, 0.03)
    told: list[str] = []
    exported = export_study(study, tmp_path / "bundle", settings=PLAIN, tell=told.append)
    assert [line.partition(" ")[2].partition(" ")[0] for line in told] == ["0", "1", "2"]
    assert exported.members == ["trial 1", "trial 0"]
    assert exported.trial == "trial 0"
    assert len(selected[0]) == 3
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert [member.weight for member in bundle.members] == [0.75, 0.25]
    assert [member.config.patch_size for member in bundle.members] == [(8, 12, 12), (8, 8, 8)]
    dataset = PreprocessedDataset.load(Path(study.provenance()["data"]["preprocessed"]))
    one, other = modules_of(study, 1, 0)
    case = torch.from_numpy(np.array(dataset.image(dataset.splits["test"][0])))
    expected = 0.75 * case_probabilities(one, case) + 0.25 * case_probabilities(other, case)
    torch.testing.assert_close(bundle.probabilities(case), expected)
    # the reported scores are those of the ensemble, and beside them those of the winner
    manifest = bundle.manifest
    files = files_of(dataset, "test")
    for found, members in (
        (manifest.metrics, [Member(one.config, one, 0.75), Member(other.config, other, 0.25)]),
        (manifest.choice["winner_test_metrics"], [Member(other.config, other)]),
    ):
        scores = mean_scores(one, on_file_grid(members, dataset.preprocessing, files))
        assert found["test_dice"] == pytest.approx(scores["dice"])
    assert manifest.choice["ensemble"]["used"] is True
    assert manifest.choice["ensemble"]["gain"] == pytest.approx(0.02)
    assert manifest.choice["score"]["gain"] == pytest.approx(0.02)
    assert any(
        line.startswith("ensemble of 2 of 3 networks: 0.75 trial 1") for line in exported.choice
    )
    assert manifest.choice["reasons"] == exported.choice
    # as the study measures it, on the validation cases
    assert manifest.metrics["val_dice"] is not None
    assert list(study.folder.glob(".*")) == []


def test_it_is_compared_with_the_default_config_case_by_case(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = study.record.entries[2].values
    monkeypatch.setattr(type(study.spec), "default_point", lambda _: default)
    exported = export_study(study, tmp_path / "bundle", 0, settings=PLAIN)
    dataset = PreprocessedDataset.load(Path(study.provenance()["data"]["preprocessed"]))
    files = files_of(dataset, "test")
    scores = [
        scores_by_case(
            module,
            on_file_grid([Member(module.config, module)], dataset.preprocessing, files),
            "dice",
        )
        for module in modules_of(study, 0, 2)
    ]
    differences = [scores[0][case] - scores[1][case] for case in scores[0]]
    found = Bundle.load(tmp_path / "bundle", "cpu").manifest.choice["against_default"]
    assert found["gain"] == pytest.approx(np.mean(differences))
    assert found["cases"] == len(files) == 2
    expected = f"against the default config (trial 2, 1 epochs): test_dice {found['gain']:+.4f} ["
    assert any(line.startswith(expected) for line in exported.choice)
    # the default config is not compared with itself
    itself = export_study(study, tmp_path / "itself", 2, settings=PLAIN)
    assert not any("default config" in line for line in itself.choice)


@pytest.mark.parametrize("gains", [(0.02, -0.05, 0.01), (0.0, 0.0, 0.0)])
def test_an_ensemble_that_is_no_better_for_other_cases_is_not_taken(
    study: Study,
    tmp_path: Path,
    selected: list[Sequence[float]],
    monkeypatch: pytest.MonkeyPatch,
    gains: tuple[float, ...],
) -> None:
    gains_of(monkeypatch, *gains)
    exported = export_study(study, tmp_path / "bundle", settings=PLAIN)
    assert exported.members == ["trial 0"]
    assert any("no better for other cases" in line for line in exported.choice)
    assert (tmp_path / "bundle" / "weights.pt").is_file()
    manifest = Bundle.load(tmp_path / "bundle", "cpu").manifest
    assert manifest.choice["ensemble"]["used"] is False
    # nothing else than the winner: its scores are those of its training
    assert manifest.metrics["val_dice"] == 0.6
    assert exported.winner_metrics.items() <= exported.metrics.items()


def test_networks_far_worse_than_the_winner_are_no_candidates(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.export.choose.GOOD_ENOUGH", 1e9)
    exported = export_study(study, tmp_path / "bundle", settings=PLAIN)
    assert any(line.endswith("of the winner's score: trial 1, trial 2") for line in exported.choice)
    assert exported.members == ["trial 0"]


def test_mirroring_is_on_only_along_axes_that_were_trained(study: Study, tmp_path: Path) -> None:
    wanted = ExportSettings(mirroring="on", postprocessing=False, ensemble=1)
    export_study(study, tmp_path / "first", settings=wanted)
    bundle = Bundle.load(tmp_path / "first", "cpu")
    assert bundle.members[0].mirror_axes == (0, 2)
    # the other trial was trained without
    export_study(study, tmp_path / "second", 1, settings=wanted)
    assert Bundle.load(tmp_path / "second", "cpu").members[0].mirror_axes == ()


@pytest.mark.parametrize("better", [True, False])
def test_mirroring_is_on_by_itself_where_validation_cases_are_better_with_it(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    dataset = PreprocessedDataset.load(Path(study.provenance()["data"]["preprocessed"]))
    truth = {dataset.image(case).tobytes(): dataset.label(case) for case in dataset.cases}

    class Predicting(Member):
        def probabilities(self, image: torch.Tensor, tell: Any = None) -> torch.Tensor:
            if bool(self.mirror_axes) is not better:
                return super().probabilities(image)
            classes = torch.from_numpy(np.array(truth[image.numpy().tobytes()])).long()
            return torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()

    monkeypatch.setattr("tuner.export.predictions.Member", Predicting)
    wanted = ExportSettings(postprocessing=False, ensemble=1)
    exported = export_study(study, tmp_path / "bundle", settings=wanted)
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert bundle.members[0].mirror_axes == ((0, 2) if better else ())
    expected = "mirroring along depth, width: +" if better else "mirroring: off"
    assert any(expected in line for line in exported.choice)


def test_postprocessing_is_kept_where_it_helps_other_cases(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = PreprocessedDataset.load(Path(study.provenance()["data"]["preprocessed"]))
    truth = {dataset.image(case).tobytes(): dataset.label(case) for case in dataset.cases}

    class WithIsland(Member):
        def probabilities(self, image: torch.Tensor, tell: Any = None) -> torch.Tensor:
            classes = torch.from_numpy(np.array(truth[image.numpy().tobytes()])).long()
            classes[0, 0, :2] = 1
            return torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()

    monkeypatch.setattr("tuner.export.predictions.Member", WithIsland)
    wanted = ExportSettings(ensemble=1, mirroring="off")
    exported = export_study(study, tmp_path / "bundle", settings=wanted)
    bundle_choice = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert bundle_choice["choice"]["postprocessing"]["used"] is True
    assert bundle_choice["postprocessing"]["steps"]
    assert any(line.startswith("postprocessing: ") and "+0." in line for line in exported.choice)
    off = export_study(
        study, tmp_path / "off", settings=wanted.model_copy(update={"postprocessing": False})
    )
    assert Bundle.load(tmp_path / "off", "cpu").manifest.postprocessing == Postprocessing()
    assert not any("postprocessing" in line for line in off.choice)


def test_options_of_the_command_replace_settings_of_the_study(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies-dir", str(folder.parent), "-o", str(tmp_path / "bundle")]
    options = ["--ensemble", "1", "--no-mirroring", "--no-postprocessing"]
    assert main(["export", "lesions", *where, *options]) == 0
    shown = capsys.readouterr().out
    assert "exported trial 0 (epoch 1)" in shown
    assert "trial 1" not in shown
    assert main(["export", "lesions", *where, "--ensemble", "0"]) == 2
    assert "--ensemble 0: ensemble=0" in capsys.readouterr().err


def test_a_section_of_the_space_says_what_is_exported() -> None:
    text = SPACE.format(data_dir="phantom") + "export: {ensemble: 3, mirroring: off}\n"
    spec = parse_spec(text, source="space.yaml")
    assert (spec.export.ensemble, spec.export.mirroring) == (3, "off")
    assert parse_spec(spec.to_yaml(), source="again.yaml").export == spec.export
    with pytest.raises(SpecError, match="mirroring='sometimes'"):
        parse_spec(text.replace("off", "sometimes"), source="space.yaml")


def test_the_networks_of_all_folds_are_exported_and_each_judged_on_its_own_cases(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = json.loads((folder / PROVENANCE).read_text())["data"]["source"]
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "cache"))
    text = SPACE.format(data_dir=data_dir).replace("  val_fraction: 0.4\n", "")
    spec = parse_spec(text + "search: {folds: 2}\n", source="space.yaml")
    data = prepare_data(spec)
    home = tmp_path / "studies" / "folds"
    home.mkdir(parents=True)
    (home / PROVENANCE).write_text(json.dumps(provenance(data, seed=0)))
    record = StudyRecord(home, spec.space, spec.mode, fold_epochs=spec.fold_epochs)
    values = {"learning_rate": 1e-3, "patch_size": [8, 8, 8]}
    record.propose(values, "test")
    for step in range(1, 7):
        record.report(0, step, 0.5, {"val_dice": 0.5}, 1.0)
    record.finish(0, TrialState.COMPLETED, "trained 3 epochs on 2 folds")
    splits = []
    for fold, source in enumerate(data.for_trials):
        place = fold_folder(home / "trials" / "0000", fold)
        place.mkdir(parents=True)
        config = data.spec.trial_config(values, fold)
        config.data_dir = source.preprocessed
        splits.append(PreprocessedDataset.load(source.preprocessed).splits)
        (place / "config.yaml").write_text(yaml.safe_dump(config.flat()))
        torch.manual_seed(fold)
        module = SegmentationLightningModule(build_model(config), config)
        torch.save({"state_dict": module.state_dict()}, place / "best.ckpt")
    judged: dict[int, list[bytes]] = {0: [], 1: []}

    class Noting(Member):
        def probabilities(self, image: torch.Tensor, tell: Any = None) -> torch.Tensor:
            judged[self.config.fold or 0].append(image.numpy().tobytes())
            return super().probabilities(image)

    monkeypatch.setattr("tuner.export.predictions.Member", Noting)
    study = Study(home, spec, record)
    exported = export_study(study, tmp_path / "bundle", settings=PLAIN)
    record.close()
    assert exported.members == ["trial 0", "trial 0"]
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    assert [member.weight for member in bundle.members] == [0.5, 0.5]
    assert [member.config.fold for member in bundle.members] == [0, 1]
    dataset = PreprocessedDataset.load(data.preprocessed)
    for fold, split in enumerate(splits):
        assert judged[fold] == [dataset.image(case).tobytes() for case in split["val"]]
    assert set(splits[0]["val"]).isdisjoint(splits[1]["val"])
    # one network is that of the first fold
    alone = export_study(
        study, tmp_path / "alone", settings=PLAIN.model_copy(update={"ensemble": 1})
    )
    assert alone.members == ["trial 0"]
    assert Bundle.load(tmp_path / "alone", "cpu").config.fold == 0
