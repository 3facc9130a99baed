"""Regions from `dataset.json` to the label map that is written: data, bundle, scores, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from raw_data import make_data
from torch import Tensor

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_scores import (
    files_of,
    mean_scores,
    on_file_grid,
    on_preprocessed_grid,
    scores_by_case,
)
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.network_export import FORMATS, export_network
from training.bundle.postprocessing import KeepLargestOfRegion, Postprocessing
from training.bundle.prediction import predict_images
from training.bundle.region_postprocessing import choose_for_regions
from training.config import ModelTrainingConfig
from training.config.regions import Regions
from training.data import PreprocessedDataset, get_dataloaders, prepare_dataset, task_of_data
from training.errors import BundleError, DatasetError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from training.trainer import SegmentationTrainer

LABELS = {"background": 0, "whole": [1, 2, 4], "core": [2, 4], "enhancing": 4}
ORDER = [1, 2, 4]
SIZE = (14, 13, 12)


def nested(seed: int) -> np.ndarray:
    """A box of label 1 with one of 2 in it, and in that one of 4."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SIZE, dtype=np.uint8)
    corner = rng.integers(1, 4, size=3)
    for inset, value in ((0, 1), (2, 2), (3, 4)):
        first, end = corner + inset, corner + 9 - inset
        label[first[0] : end[0], first[1] : end[1], first[2] : end[2]] = value
    return label


def write_data(folder: Path, **description: Any) -> Path:
    """Six cases whose intensities tell the labels."""
    cases = {f"c{index}": nested(index) for index in range(6)}
    make_data(folder, cases, **{"labels": LABELS, "regions_class_order": ORDER, **description})
    for case, label in cases.items():
        path = folder / "imagesTr" / f"{case}.nii.gz"
        image = nib.load(path)
        voxels = np.asarray(image.dataobj) + 100 * label
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), image.affine), path)
    return folder


def config_of(folder: Path, **settings: Any) -> ModelTrainingConfig:
    values: dict[str, Any] = {
        "model_name": "unet3d",
        "model_params": {"channels": [4, 8], "strides": [2], "num_res_units": 0},
        "patch_size": (8, 8, 8),
        "gpus": 0,
        "test_fraction": 0.34,
        "val_fraction": 0.34,
        "augmentation": "none",
    }
    return task_of_data(ModelTrainingConfig(**{**values, **settings}), folder)


def prepare(folder: Path, config: ModelTrainingConfig) -> PreprocessedDataset:
    return PreprocessedDataset.load(prepare_dataset(folder, config, cache_dir=folder / "cache"))


def untrained(config: ModelTrainingConfig, seed: int = 0) -> SegmentationLightningModule:
    torch.manual_seed(seed)
    module = SegmentationLightningModule(build_model(config), config, spacing=(1, 1, 1)).eval()
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape))
    return module


def write(
    folder: Path,
    data: PreprocessedDataset,
    modules: list[SegmentationLightningModule],
    **settings: Any,
) -> Bundle:
    members = [Member(module.config, module, 1 / len(modules)) for module in modules]
    manifest = Manifest(labels=data.labels, channels=["MRI"], metrics={}, provenance={}, **settings)
    write_bundle(folder, members=members, preprocessing=data.preprocessing, manifest=manifest)
    return Bundle.load(folder, device="cpu")


def test_regions_of_nnunets_dataset_json_are_the_task(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder)
    assert config.regions == {"whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}
    assert (config.regions_class_order, config.label_values) == (ORDER, [0, 1, 2, 4])
    assert (config.num_classes, config.output_channels, config.loss) == (4, 3, "dice_bce")
    data = prepare(folder, config)
    assert data.labels == ["background", "label 1", "label 2", "enhancing"]
    # the arrays are those of plain labels
    names = {"background": 0, "a": 1, "b": 2, "c": 4}
    plain = make_data(tmp_path / "p", {f"c{i}": nested(i) for i in range(6)}, labels=names)
    other = prepare(plain, ModelTrainingConfig(test_fraction=0.34, val_fraction=0.34))
    np.testing.assert_array_equal(data.label("c1"), other.label("c1"))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"regions_class_order": None}, r"must list the label value .* but it is None"),
        ({"regions_class_order": [1, 2]}, "2 entries, but there are 3 regions"),
        ({"regions_class_order": [1, 1, 4]}, "writes 1 for the region 'core'"),
        ({"labels": {"background": 0, "a": 1}}, "regions_class_order` needs regions"),
        ({"labels": {"background": 0, "a": [1, "x"], "b": 2}}, "must have label values"),
        ({"labels": {"a": [1, 2], "b": [2]}}, "must name the background"),
        ({"labels": {**LABELS, "ignore": 4}}, "4 to 'enhancing' and to 'ignore'"),
    ],
)
def test_what_is_wrong_with_regions_is_named(
    tmp_path: Path, description: dict[str, Any], message: str
) -> None:
    folder = write_data(tmp_path / "d", **description)
    with pytest.raises(DatasetError, match=message):
        config_of(folder)


def test_regions_of_the_config_come_before_those_of_the_data(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder, regions={"all": [1, 2, 4]})
    assert (config.regions, config.regions_class_order) == ({"all": [1, 2, 4]}, [1])
    with pytest.raises(DatasetError, match=r"'all' has the label 3, .* are 0, 1, 2, 4"):
        prepare(folder, ModelTrainingConfig(regions={"all": [1, 3]}))
    with pytest.raises(DatasetError, match="regions=brats does not fit"):
        prepare(folder, ModelTrainingConfig(regions="brats"))
    lines: list[str] = []
    twisted = ModelTrainingConfig(
        regions={"enhancing": [4], "core": [2, 4]}, regions_class_order=[4, 2]
    )
    prepare_dataset(folder, twisted, cache_dir=tmp_path / "cache", on_warning=lines.append)
    assert any("label 4 (enhancing) is written as 2 (label 2)" in line for line in lines)


def test_patches_are_centred_on_regions_alike(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder, patch_size=(1, 1, 1), foreground_fraction=1.0, steps_per_epoch=450)
    config.data_dir = prepare(folder, config).folder
    train, _, _ = get_dataloaders(config)
    drawn = torch.cat([batch["label"].flatten() for batch in train])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    # a third of each region: label 1 is in the first alone, 567 of its 729 - 27 + ... voxels
    volume = {1: 9**3 - 5**3, 2: 5**3 - 3**3, 3: 3**3}
    whole, core = 9**3, 5**3
    expected = [
        0.0,
        volume[1] / whole / 3,
        (volume[2] / whole + volume[2] / core) / 3,
        (volume[3] / whole + volume[3] / core + 1) / 3,
    ]
    torch.testing.assert_close(shares, torch.tensor(expected), atol=0.05, rtol=0)


def test_a_bundle_writes_labels_in_the_order_of_its_regions(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder)
    data = prepare(folder, config)
    module = untrained(config)
    bundle = write(tmp_path / "bundle", data, [module])
    image = folder / "imagesTr" / "c0.nii.gz"
    predict_images(
        tmp_path / "bundle",
        [image],
        tmp_path / "out",
        probabilities=True,
        on_case=lambda line: None,
    )
    label = np.asarray(nib.load(tmp_path / "out" / "c0.nii.gz").dataobj)
    stored = np.asarray(nib.load(tmp_path / "out" / "c0_probabilities.nii.gz").dataobj)
    assert stored.shape == (*SIZE, 3)
    expected = np.zeros(SIZE, dtype=np.uint8)
    for channel, value in enumerate(ORDER):
        expected[stored[..., channel] > 0.5] = value
    np.testing.assert_array_equal(label, expected)
    assert set(np.unique(label)) == {0, 1, 2, 4}
    prepared = torch.from_numpy(bundle.preprocessing.apply([image]).image)
    logits = module.predict_logits(prepared[None])[0]
    torch.testing.assert_close(bundle.probabilities(prepared), torch.sigmoid(logits))
    written = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert written["format_version"] == 3
    assert written["regions"] == {"whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]}
    assert written["regions_class_order"] == ORDER


def test_test_cases_are_scored_by_region_on_both_grids(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder)
    data = prepare(folder, config)
    member = Member(config, untrained(config))
    on_files = list(on_file_grid([member], data.preprocessing, files_of(data, "test")))
    on_arrays = list(on_preprocessed_grid([member], data))
    scores = mean_scores(member.module, on_files)
    for name, classes in (("whole", [1, 2, 3]), ("core", [2, 3]), ("enhancing", [3])):
        found = []
        for case in on_files:
            one, other = (
                torch.isin(x, torch.tensor(classes)) for x in (case.prediction, case.target)
            )
            found.append(2 * (one & other).sum() / (one.sum() + other.sum()))
        assert scores[f"dice_{name}"] == pytest.approx(float(torch.stack(found).mean()))
        assert {f"nsd_{name}", f"hd95_{name}", f"hd95_{name}_missing"} <= scores.keys()
    by_case = scores_by_case(member.module, on_arrays, "dice_core")
    assert by_case.keys() == {case.case_id for case in on_arrays}


def test_an_ensemble_averages_the_regions(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder)
    data = prepare(folder, config)
    modules = [untrained(config, seed) for seed in (0, 1)]
    bundle = write(tmp_path / "bundle", data, modules)
    image = folder / "imagesTr" / "c0.nii.gz"
    prepared = torch.from_numpy(bundle.preprocessing.apply([image]).image)
    each = [torch.sigmoid(module.predict_logits(prepared[None]))[0] for module in modules]
    torch.testing.assert_close(bundle.probabilities(prepared), (each[0] + each[1]) / 2)
    other = config_of(folder, regions={"all": [1, 2, 4]})
    with pytest.raises(BundleError, match="need one regions"):
        write(tmp_path / "mixed", data, [modules[0], untrained(other)])
    names = dict(reversed(list((config.regions or {}).items())))  # type: ignore[union-attr]
    other = config_of(folder, regions=names, regions_class_order=[4, 2, 1])
    with pytest.raises(BundleError, match="need one regions"):
        write(tmp_path / "mixed", data, [modules[0], untrained(other)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
@pytest.mark.parametrize("networks", [2])
def test_a_written_network_gives_the_logits_of_regions(
    tmp_path: Path, suffix: str, networks: int
) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(folder)
    modules = [untrained(config, seed) for seed in range(networks)]
    bundle = write(tmp_path / "bundle", prepare(folder, config), modules)
    export_network(bundle, tmp_path / f"net{suffix}")
    image = torch.randn(1, 1, 8, 8, 8)
    found: Tensor = FORMATS[suffix][1](tmp_path / f"net{suffix}")(image)
    with torch.no_grad():
        mean = sum(torch.sigmoid(module.model(image)) for module in modules) / networks
    torch.testing.assert_close(torch.sigmoid(found), mean)


REGIONS = Regions(("whole", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3), 4)


def test_what_is_removed_of_a_region_belongs_to_the_region_around_it() -> None:
    label = nested(0)
    label[label == 4] = 3
    prediction = label.copy()
    # a second, false core inside of the whole, far from the true one
    corner = np.argwhere(label == 1)[0]
    prediction[corner[0], corner[1], corner[2] : corner[2] + 2] = (2, 3)
    chosen = choose_for_regions([(prediction, label, (1, 1, 1))], REGIONS)
    assert [step.kind for step in chosen.steps] == ["keep_largest_of_region"]
    np.testing.assert_array_equal(chosen.apply(prediction, (1, 1, 1)), label)
    assert chosen.describe([]) == ["keeps the largest component of core"]
    again = Postprocessing.model_validate_json(chosen.model_dump_json())
    np.testing.assert_array_equal(again.apply(prediction, (1, 1, 1)), label)
    step = chosen.steps[0]
    assert isinstance(step, KeepLargestOfRegion)
    assert step.becomes == {2: 1, 3: 1}


def test_a_step_that_makes_a_region_worse_is_not_taken() -> None:
    label = np.zeros((8, 8, 8), dtype=np.uint8)
    label[:3, :3, :3], label[6:, 6:, 6:] = 1, 3
    assert choose_for_regions([(label, label, (1, 1, 1))], REGIONS).steps == ()


def test_a_network_learns_regions_through_the_library(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "d")
    config = config_of(
        folder,
        patch_size=(12, 12, 12),
        max_epochs=2,
        steps_per_epoch=40,
        learning_rate=0.02,
        optimizer="adam",
        ema_decay=0.9,
        log_dir=tmp_path / "logs",
        checkpoint_dir=tmp_path / "checkpoints",
        monitor="val_dice_core",
    )
    data = prepare(folder, config)
    config.data_dir = data.folder
    train, val, _ = get_dataloaders(config)
    trainer = SegmentationTrainer(config, build_model(config), train, val, progress_bar=False)
    trainer.fit()
    member = Member(config, trainer.module.eval())
    scores = mean_scores(member.module, on_preprocessed_grid([member], data, "val"))
    assert scores["dice_whole"] > 0.8
    assert scores["dice_core"] > 0.8
    assert scores["dice_enhancing"] > 0.7
