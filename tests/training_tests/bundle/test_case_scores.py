"""Scores of test cases against their label files, and on the preprocessed grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lesion_data import write_lesions
from torch import Tensor

from training.bundle.case_scores import (
    PredictedCase,
    files_of,
    mean_scores,
    missing_files,
    on_file_grid,
    on_preprocessed_grid,
    score_test_cases,
    scores_by_case,
)
from training.bundle.member import Member
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, RawCase, prepare_dataset
from training.errors import DatasetError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance import metrics as surface_distance

FILE_SPACING = (1.0, 1.5, 2.0)
COARSE = (3.0, 3.0, 3.0)


def config_of(data_dir: Path, **values: object) -> ModelTrainingConfig:
    return ModelTrainingConfig(
        **{
            "model_name": "unet3d",
            "model_params": {"channels": [4, 8], "strides": [2], "num_res_units": 0},
            "patch_size": (8, 8, 8),
            "data_dir": data_dir,
            "target_spacing": COARSE,
            "test_fraction": 0.4,
            "gpus": 0,
            **values,
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreprocessedDataset:
    folder = tmp_path_factory.mktemp("lesions")
    write_lesions(folder / "data", spacing=FILE_SPACING)
    config = config_of(folder / "data")
    return PreprocessedDataset.load(
        prepare_dataset(folder / "data", config, cache_dir=folder / "cache")
    )


def alone(module: SegmentationLightningModule) -> list[Member]:
    return [Member(module.config, module)]


def perfect(dataset: PreprocessedDataset, **values: object) -> SegmentationLightningModule:
    """A module that knows the preprocessed labels by heart, by the voxels of the image."""
    config = config_of(dataset.folder, **values)
    module = SegmentationLightningModule(build_model(config), config).eval()
    known = {dataset.image(case).tobytes(): dataset.label(case) for case in dataset.cases}

    def slabs(image: Tensor, **_: object) -> Iterator[Tensor]:
        label = torch.from_numpy(np.array(known[image.numpy().tobytes()])).long()
        scores = 9.0 * torch.nn.functional.one_hot(label, 3).movedim(-1, 0)
        yield from module._task_logits(scores[None])[0].split(3, dim=1)

    module.logit_slabs = slabs  # type: ignore[assignment, method-assign]
    return module


def test_what_preprocessing_loses_costs_against_the_file(dataset: PreprocessedDataset) -> None:
    module = perfect(dataset)
    own = mean_scores(module, on_preprocessed_grid(alone(module), dataset))
    # the plate, a third of a voxel thick there, is lost: on that grid it costs nothing
    assert own["dice"] == own["dice_1"] == own["nsd"] == 1.0
    assert own["hd95"] == 0.0
    assert math.isnan(own["dice_2"])
    files = files_of(dataset, "test")
    assert len(files) == 2
    found = mean_scores(module, on_file_grid(alone(module), dataset.preprocessing, files))
    assert found["dice_2"] == 0.0
    assert found["hd95_2_missing"] == 2
    assert 0.5 < found["dice_1"] < 1.0
    assert found["hd95"] > 0.0


def test_metrics_are_those_of_the_files_by_hand(
    dataset: PreprocessedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy and `surface-distance`, with the size of the file's own voxels."""
    # surface-distance 0.1 was written for older names of numpy
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    module = perfect(dataset)
    files = files_of(dataset, "test")
    predicted = list(on_file_grid(alone(module), dataset.preprocessing, files))
    dices, distances = [], []
    for case, found in zip(files, predicted, strict=True):
        label = np.asarray(nib.load(case.label).dataobj)
        np.testing.assert_array_equal(found.target.numpy(), label)
        assert found.spacing == FILE_SPACING
        one, other = found.prediction.numpy() == 1, label == 1
        dices.append(2 * np.sum(one & other) / (one.sum() + other.sum()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*namespace is deprecated.*")
            surfaces = surface_distance.compute_surface_distances(other, one, FILE_SPACING)
        distances.append(surface_distance.compute_robust_hausdorff(surfaces, 95))
    scores = mean_scores(module, predicted)
    assert scores["dice_1"] == pytest.approx(np.mean(dices))
    assert scores["hd95_1"] == pytest.approx(np.mean(distances))
    by_case = scores_by_case(module, predicted, "dice_1")
    assert by_case == pytest.approx(dict(zip((c.case_id for c in files), dices, strict=True)))


def test_a_target_label_is_compared_with_that_label_of_the_file(
    dataset: PreprocessedDataset,
) -> None:
    module = perfect(dataset, target_label=1)
    files = files_of(dataset, "test")
    (first, _) = on_file_grid(alone(module), dataset.preprocessing, files)
    label = np.asarray(nib.load(files[0].label).dataobj)
    np.testing.assert_array_equal(first.target.numpy(), label == 1)
    assert set(np.unique(first.prediction.numpy())) == {0, 1}
    whole = mean_scores(
        perfect(dataset), on_file_grid(alone(perfect(dataset)), dataset.preprocessing, files)
    )
    scores = mean_scores(module, on_file_grid(alone(module), dataset.preprocessing, files))
    assert scores["dice"] == scores["dice_1"] == pytest.approx(whole["dice_1"], abs=0.1)
    assert "dice_2" not in scores


def test_cases_without_a_score_are_left_out_by_case(dataset: PreprocessedDataset) -> None:
    module = perfect(dataset)
    empty = torch.zeros((2, 2, 2), dtype=torch.int64)
    filled = torch.ones((2, 2, 2), dtype=torch.int64)
    cases = [
        PredictedCase("healthy", empty, empty, COARSE),
        PredictedCase("false", filled, empty, COARSE),
        PredictedCase("right", filled, filled, COARSE),
    ]
    assert scores_by_case(module, cases, "dice") == {"false": 0.0, "right": 1.0}
    assert scores_by_case(module, cases, "nsd_1") == {"false": 0.0, "right": 1.0}
    assert mean_scores(module, cases)["dice"] == 0.5


def gone(label: Path) -> None:
    label.rename(label.with_suffix(".away"))


def damaged(label: Path) -> None:
    label.rename(label.with_suffix(".away"))
    label.write_bytes(b"no label map")


@pytest.mark.parametrize("spoil", [None, gone, damaged], ids=["there", "gone", "damaged"])
def test_a_confirmation_says_on_which_grid_it_judged(
    dataset: PreprocessedDataset, tmp_path: Path, spoil: Callable[[Path], None] | None
) -> None:
    config = config_of(dataset.folder)
    torch.manual_seed(0)
    module = SegmentationLightningModule(build_model(config), config)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "best.ckpt")
    files = files_of(dataset, "test")
    label = files[1].label
    try:
        if spoil is not None:
            spoil(label)
        scores, grid = score_test_cases(config, tmp_path / "best.ckpt", "accuracy")
        assert missing_files(files) == ([label] if spoil is gone else [])
    finally:
        if spoil is not None:
            label.with_suffix(".away").replace(label)
    module.eval()
    expected = {
        "file": on_file_grid(alone(module), dataset.preprocessing, files),
        "preprocessed": on_preprocessed_grid(alone(module), dataset),
    }
    assert grid == ("file" if spoil is None else "preprocessed")
    assert scores == scores_by_case(module, expected[grid], "accuracy")
    losses, grid = score_test_cases(config, tmp_path / "best.ckpt", "loss")
    assert set(losses) == set(scores)
    assert grid == "preprocessed"


def test_another_shape_of_the_label_is_named(dataset: PreprocessedDataset, tmp_path: Path) -> None:
    module = perfect(dataset)
    case = files_of(dataset, "test")[0]
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "l.nii.gz")
    other = RawCase("x", case.images, tmp_path / "l.nii.gz")
    with pytest.raises(DatasetError, match=r"l\.nii\.gz: shape \(3, 4, 5\) differs from"):
        list(on_file_grid(alone(module), dataset.preprocessing, [other]))
