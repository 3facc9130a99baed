"""Cases that lack a channel: refused, or 0 where that is allowed; and channel dropout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from raw_data import SHAPE, boxes, save

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, get_dataloader, prepare_dataset, read_layout
from training.data.patches.augmentation import drop_channels
from training.data.statistics.check import check_dataset
from training.errors import DatasetError

NAMES = ("CT", "T1", "T2")


def write_data(folder: Path, **description: Any) -> Path:
    """Six cases of three channels; air around the body is -1000 in the CT and 0 in the MR."""
    rng = np.random.default_rng(0)
    inside = np.zeros(SHAPE, dtype=bool)
    inside[1:, 1:, 1:] = True
    for case in range(6):
        for index, (mean, air) in enumerate([(40, -1000), (300, 0), (900, 0)]):
            voxels = np.where(inside, rng.normal(mean + case, 20, size=SHAPE), air)
            save(folder / "imagesTr" / f"c{case}_{index:04}.nii.gz", voxels.astype(np.float32))
        save(folder / "labelsTr" / f"c{case}.nii.gz", boxes(1, 2))
    values = {
        "channel_names": {str(index): name for index, name in enumerate(NAMES)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
    }
    (folder / "dataset.json").write_text(json.dumps({**values, **description}))
    return folder


def remove(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "imagesTr" / f"{name}.nii.gz").unlink()
    return folder


def prepare(folder: Path, cache: Path, **settings: Any) -> PreprocessedDataset:
    config = ModelTrainingConfig(target_spacing=(1, 1, 1), test_fraction=0, **settings)
    return PreprocessedDataset.load(prepare_dataset(folder, config, cache_dir=cache))


def test_a_missing_channel_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = remove(write_data(tmp_path / "data"), "c2_0001")
    expected = (
        r"c2_0000.nii.gz: 2 channels, but dataset.json declares 3 \(CT, T1, T2\): .*c2_0001.nii.gz "
        r"is missing; add it, leave out the case, or .* `missing_channels: allowed`"
    )
    with pytest.raises(DatasetError, match=expected):
        prepare(folder, tmp_path / "cache")
    declared = remove(write_data(tmp_path / "other", missing_channels="allowed"), "c2_0001")
    # what a config says comes before what the data say
    with pytest.raises(DatasetError, match=r"c2_0001.nii.gz is missing"):
        prepare(declared, tmp_path / "cache", missing_channels="refused")
    (case,) = (case for case in read_layout(declared).cases if case.channels is not None)
    assert (case.case_id, case.channels) == ("c2", (0, 2))
    assert len(case.images) == 2


@pytest.mark.parametrize("lacking", ["c2_0000", "c2_0001", "c2_0002"])
def test_a_missing_channel_is_0_and_the_others_are_as_they_were(
    tmp_path: Path, lacking: str
) -> None:
    whole = prepare(write_data(tmp_path / "whole"), tmp_path / "cache", missing_channels="allowed")
    folder = remove(write_data(tmp_path / "data"), lacking)
    found = prepare(folder, tmp_path / "cache", missing_channels="allowed")
    absent = int(lacking[-1])
    present = [index for index in range(3) if index != absent]
    assert found.cases["c2"].channels == present
    assert list(found.channels_of("c2")) == present
    assert found.cases["c1"].channels is None
    assert found.image("c2").shape == whole.image("c2").shape
    assert (np.asarray(found.image("c2")[absent]) == 0).all()
    for index in present:
        # statistics of a CT are those of the cases that have one
        np.testing.assert_allclose(
            found.image("c2")[index], whole.image("c2")[index], atol=0.05 if index == 0 else 1e-6
        )
    np.testing.assert_array_equal(found.label("c2"), whole.label("c2"))
    assert found.preprocessing.missing_channels
    again = found.preprocessing.apply(*_files(found, "c2"), channels=present)
    np.testing.assert_array_equal(again.image, found.image("c2"))


def _files(dataset: PreprocessedDataset, case: str) -> tuple[list[Path], Path]:
    return dataset.cases[case].images, dataset.cases[case].label


def test_what_is_allowed_is_told_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    plain = prepare(folder, tmp_path / "cache")
    assert prepare(folder, tmp_path / "cache", missing_channels="refused") == plain
    assert not plain.preprocessing.missing_channels
    allowed = prepare(folder, tmp_path / "cache", missing_channels="allowed")
    assert allowed.fingerprint != plain.fingerprint
    remove(folder, "c1_0001", "c2_0000", "c2_0001")
    told: list[str] = []
    config = ModelTrainingConfig(missing_channels="allowed", test_fraction=0)
    prepare_dataset(folder, config, cache_dir=tmp_path / "cache", on_warning=told.append)
    assert told == ["2 of 6 cases lack channels, which are 0 for them: CT in 1, T1 in 2"]


def test_a_channel_that_no_case_has_is_refused(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", missing_channels="allowed")
    remove(folder, *(f"c{case}_0001" for case in range(6)))
    with pytest.raises(DatasetError, match=r"no case has the channel T1 \(0001\): take it out"):
        read_layout(folder)
    kept = write_data(tmp_path / "test", missing_channels="allowed")
    apart = prepare_dataset(kept, ModelTrainingConfig(), cache_dir=tmp_path / "cache")
    (test,) = PreprocessedDataset.load(apart).splits["test"]
    remove(kept, *(f"c{case}_0000" for case in range(6) if f"c{case}" != test))
    with pytest.raises(DatasetError, match="but for test cases, no case has the channel CT"):
        prepare_dataset(kept, ModelTrainingConfig(), cache_dir=tmp_path / "cache")


def test_wrong_declarations_are_named(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", missing_channels="yes")
    with pytest.raises(DatasetError, match='`missing_channels` must be "refused" or "allowed"'):
        read_layout(folder)
    with pytest.raises(ValueError, match="missing_channels"):
        ModelTrainingConfig(missing_channels="maybe")  # type: ignore[arg-type]


def listed(folder: Path, images: list[str | None]) -> dict[str, Any]:
    given: dict[str, Any] = {
        f"c{case}": {
            "images": [f"imagesTr/c{case}_{index:04}.nii.gz" for index in range(3)],
            "label": f"labelsTr/c{case}.nii.gz",
        }
        for case in range(6)
    }
    given["c2"]["images"] = images
    return given


def test_null_stands_for_a_missing_file_of_a_list(tmp_path: Path) -> None:
    files = listed(tmp_path, ["imagesTr/c2_0000.nii.gz", None, "imagesTr/c2_0002.nii.gz"])
    folder = write_data(tmp_path / "data", dataset=files, missing_channels="allowed")
    cases = {case.case_id: case for case in read_layout(folder).cases}
    assert cases["c2"].channels == (0, 2)
    assert cases["c1"].channels is None
    for short in (["imagesTr/c2_0000.nii.gz", "imagesTr/c2_0002.nii.gz"], [None, None, None]):
        files = listed(tmp_path, list(short))
        other = write_data(tmp_path / f"{len(short)}", dataset=files, missing_channels="allowed")
        with pytest.raises(DatasetError, match=r"gives c2 \d images, but there are 3 channels"):
            read_layout(other)
    training = [{"image": ["./imagesTr/c2_0000.nii.gz", "b.nii.gz"], "label": "labelsTr/c2.nii.gz"}]
    other = write_data(tmp_path / "listed", training=training, missing_channels="allowed")
    with pytest.raises(DatasetError, match="lists 2 images, but there are 3 channels"):
        read_layout(other)


def test_a_file_of_other_channels_is_still_refused(tmp_path: Path) -> None:
    folder = remove(write_data(tmp_path / "data", missing_channels="allowed"), "c2_0001")
    both = np.ones((*SHAPE, 2), dtype=np.float32)
    nib.save(nib.Nifti1Image(both, np.eye(4)), folder / "imagesTr" / "c2_0000.nii.gz")
    with pytest.raises(DatasetError, match=r"c2_0000.*3 channels, but dataset.json declares 2"):
        prepare(folder, tmp_path / "cache")


def test_the_check_of_data_takes_cases_that_lack_channels(tmp_path: Path) -> None:
    folder = remove(write_data(tmp_path / "data", missing_channels="allowed"), "c2_0000")
    found = check_dataset(folder)
    assert not [finding for finding in found.findings if finding.case == "c2"]


def patches(dataset: PreprocessedDataset, workers: int = 0, **settings: Any) -> torch.Tensor:
    loader = get_dataloader(
        dataset.folder,
        "train",
        4,
        workers,
        shuffle=True,
        patch_size=(6, 6, 6),
        steps_per_epoch=10,
        augmentation="nnunet",
        augmentation_strength=2,
        **settings,
    )
    return torch.cat([batch["image"] for batch in loader])


def test_missing_channels_stay_0_in_augmented_patches(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", missing_channels="allowed")
    remove(folder, *(f"c{case}_0001" for case in range(5)))
    dataset = prepare(folder, tmp_path / "cache")
    empty = (patches(dataset) == 0).flatten(2).all(dim=2)
    lacking = sum(case != "c5" for case in dataset.splits["train"]) / len(dataset.splits["train"])
    assert empty[:, 1].float().mean() == pytest.approx(lacking, abs=0.1)
    assert not empty[:, [0, 2]].any()
    # and with dropout, a case keeps one of the channels that it has
    dropped = (patches(dataset, channel_dropout=1.0) == 0).flatten(2).all(dim=2)
    assert (dropped.sum(dim=1) == 2).all()
    assert not dropped[:, [0, 2]].all(dim=1).any()


def test_channel_dropout_depends_on_no_worker_and_changes_nothing_else(tmp_path: Path) -> None:
    dataset = prepare(write_data(tmp_path / "data"), tmp_path / "cache")
    plain = patches(dataset)
    dropped = patches(dataset, channel_dropout=0.4)
    torch.testing.assert_close(dropped, patches(dataset, 2, channel_dropout=0.4), rtol=0, atol=0)
    gone = (dropped == 0).flatten(2).all(dim=2)
    assert 0.2 < gone.float().mean() < 0.6
    torch.testing.assert_close(dropped[~gone], plain[~gone], rtol=0, atol=0)
    other = patches(dataset, channel_dropout=0.4, seed=1)
    assert ((other == 0).flatten(2).all(dim=2) != gone).any()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_channels_are_dropped_each_by_itself_but_never_all(probability: float) -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(2000):
        patch = torch.ones(3, 1, 1, 1)
        drop_channels(patch, range(3), probability, rng)
        kept = patch.flatten().numpy()
        assert kept.any()
        counts += kept == 0
    # all three would go with p^3, and one of them then stays
    expected = probability - probability**3 / 3
    np.testing.assert_allclose(counts / 2000, expected, atol=0.04)
    single = torch.ones(1, 2, 2, 2)
    drop_channels(single, range(1), 1.0, rng)
    assert single.all()


def test_a_channel_in_another_format_is_no_missing_one(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", missing_channels="allowed")
    (folder / "imagesTr" / "c2_0001.nii.gz").rename(folder / "imagesTr" / "c2_0001.mha")
    with pytest.raises(DatasetError, match=r"channels of a case must be of one format"):
        read_layout(folder)
