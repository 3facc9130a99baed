"""Normalisation of each channel, beside nnU-Net's formulas (v2.6) written out here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from raw_data import SHAPE, boxes, make_data, save
from scipy import ndimage

from training.config import NORMALISATION_SCHEMES, ModelTrainingConfig
from training.data import PreprocessedDataset, RawDataset, prepare_dataset
from training.data.prepared.normalisation import ChannelNormalisation, schemes_of
from training.errors import DatasetError

NAMES = ("CT", "T1", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "ZSCORE")
SCALES = {"CT": (-60, 400), "T1": (300, 50), "noNorm": (0.4, 0.1), "rescale_to_0_1": (40, 9)}


def write_channels(folder: Path, names: tuple[str, ...] = NAMES, *, empty: int = 0) -> Path:
    """Five cases with a file a channel; `empty` planes on each side of the body are 0."""
    rng = np.random.default_rng(0)
    for case in range(5):
        inside = np.zeros(SHAPE, dtype=bool)
        inside[(slice(empty, -empty or None),) * 3] = True
        for index, name in enumerate(names):
            mean, spread = SCALES.get(name, (100.0, 20.0))
            voxels = rng.normal(mean + case, spread, size=SHAPE)
            if name == "rgb_to_0_1":
                voxels = np.clip(voxels, 1, 255).round()
            path = folder / "imagesTr" / f"c{case}_{index:04}.nii.gz"
            save(path, np.where(inside, voxels, 0).astype(np.float32))
        label = boxes(1, 2)
        label[~inside] = 0
        save(folder / "labelsTr" / f"c{case}.nii.gz", label)
    description = {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": {"background": 0, "organ": 1, "lesion": 2},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def prepare(folder: Path, cache: Path, **settings: Any) -> PreprocessedDataset:
    config = ModelTrainingConfig(target_spacing=(1, 1, 1), **settings)
    return PreprocessedDataset.load(prepare_dataset(folder, config, cache_dir=cache))


def raw(dataset: PreprocessedDataset, case: str) -> NDArray[np.float64]:
    """The voxels of the files in the order of the cache (superior, anterior, right)."""
    files = [np.asarray(nib.load(path).dataobj) for path in dataset.cases[case].images]
    return np.stack(files).astype(np.float64).transpose(0, 3, 2, 1)


def of_nnunet(
    scheme: str,
    image: NDArray[np.float64],
    mask: NDArray[np.bool_],
    use_mask: bool,
    properties: Mapping[str, float],
) -> NDArray[np.float64]:
    """What nnU-Net's `run` of a scheme gives; `image` is cropped to the box of `mask`."""
    if scheme == "CT":
        clipped = np.clip(image, properties["percentile_00_5"], properties["percentile_99_5"])
        return (clipped - properties["mean"]) / max(properties["std"], 1e-8)
    if scheme == "noNorm":
        return image
    if scheme == "rescale_to_0_1":
        shifted = image - image.min()
        return shifted / max(shifted.max(), 1e-8)
    if scheme == "rgb_to_0_1":
        return image / 255.0
    inside = image[mask] if use_mask else image
    scaled = (image - inside.mean()) / max(inside.std(), 1e-8)
    return np.where(mask, scaled, image) if use_mask else scaled


@pytest.mark.parametrize("empty", [0, 1, 3], ids=["full", "cropped a little", "mostly empty"])
def test_each_channel_is_normalised_as_nnunet_does_it(tmp_path: Path, empty: int) -> None:
    # around the body of a CT is air, which nnU-Net does not crop and we do
    names = NAMES[1:] if empty else NAMES
    dataset = prepare(write_channels(tmp_path / "data", names, empty=empty), tmp_path / "cache")
    case = dataset.splits["train"][0]
    voxels = raw(dataset, case)
    mask = ndimage.binary_fill_holes((voxels != 0).any(axis=0))
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(mask))
    # nnU-Net: determine_normalization_scheme_and_whether_mask_is_used_for_norm
    kept = np.prod([cut.stop - cut.start for cut in box]) / mask.size
    use_mask = bool(kept < 0.75)
    assert use_mask is (empty > 0)
    ct = dataset.preprocessing.channels[0]
    properties = {
        "percentile_00_5": ct.low,
        "percentile_99_5": ct.high,
        "mean": ct.mean,
        "std": ct.std,
    }
    schemes = ["CT", "zscore", "noNorm", "rescale_to_0_1", "rgb_to_0_1", "zscore"][-len(names) :]
    assert [channel.scheme for channel in dataset.preprocessing.channels] == schemes
    for index, scheme in enumerate(schemes):
        expected = of_nnunet(scheme, voxels[index][box], mask[box], use_mask, properties)
        assert dataset.image(case)[index].shape == expected.shape
        np.testing.assert_allclose(dataset.image(case)[index], expected, atol=2e-4, err_msg=scheme)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "CT"),
        ("ct", "CT"),
        ("CT (venous)", "CT"),
        ("nonorm", "noNorm"),
        ("NoNorm", "noNorm"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("Rescale_To_0_1", "rescale_to_0_1"),
        ("zScore", "zscore"),
        ("T1ce", "zscore"),
        ("CTA", "zscore"),
        ("noNorm2", "zscore"),
        ("R", "zscore"),
    ],
)
def test_the_name_of_a_channel_chooses_its_scheme(name: str, scheme: str) -> None:
    dataset = RawDataset(Path("d"), "d", ("background", "a"), (0, 1), (name, "MRI"), ())
    assert schemes_of(ModelTrainingConfig(), dataset) == [scheme, "zscore"]
    # a word of another channel, in any spelling, changes this one alone
    chosen = ModelTrainingConfig.model_validate({"normalisation": {name.upper(): "RGB_TO_0_1"}})
    assert chosen.normalisation == {name.upper(): "rgb_to_0_1"}
    assert schemes_of(chosen, dataset) == ["rgb_to_0_1", "zscore"]
    # studies of earlier versions know two
    before = schemes_of(ModelTrainingConfig(normalisation="modality"), dataset)
    assert before == ["CT" if scheme == "CT" else "zscore", "zscore"]


def test_a_mapping_overrides_names_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = write_channels(tmp_path / "data", ("PET", "T1"))
    plain = prepare(folder, tmp_path / "cache")
    same = prepare(folder, tmp_path / "cache", normalisation={"T1": "zscore"})
    # a resolved scheme that is the same needs no arrays of its own
    assert same.fingerprint == plain.fingerprint
    changed = prepare(folder, tmp_path / "cache", normalisation={"PET": "CT", "t1": "noNorm"})
    assert changed.fingerprint != plain.fingerprint
    case = changed.splits["train"][0]
    pet, t1 = changed.preprocessing.channels
    assert (pet.scheme, t1.scheme) == ("CT", "noNorm")
    np.testing.assert_array_equal(changed.image(case)[1], raw(changed, case)[1].astype(np.float32))
    # statistics of the foreground of all cases that may be learnt from
    known = [*changed.splits["train"], *changed.splits["val"]]
    inside = boxes(1, 2).transpose(2, 1, 0) > 0
    foreground = np.concatenate([raw(changed, each)[0][inside] for each in known])
    assert pet.mean == pytest.approx(foreground.mean(), abs=1.5)
    assert pet.low == pytest.approx(np.percentile(foreground, 0.5), abs=5)


def test_data_that_use_no_new_scheme_keep_their_fingerprint(tmp_path: Path) -> None:
    labels = {f"c{index}": boxes(1, 2) for index in range(5)}
    folder = make_data(tmp_path / "data", labels)
    plain = prepare(folder, tmp_path / "cache")
    assert prepare(folder, tmp_path / "cache", normalisation="modality") == plain
    named = make_data(tmp_path / "named", labels, modality="noNorm")
    new = prepare(named, tmp_path / "cache")
    old = prepare(named, tmp_path / "cache", normalisation="modality")
    assert new.fingerprint != old.fingerprint
    assert new.preprocessing.channels[0].scheme == "noNorm"
    assert old.preprocessing.channels[0].scheme == "zscore"


def test_settings_of_older_versions_have_the_scheme_of_their_modality() -> None:
    window = {"modality": "CT", "low": 0.0, "high": 9.0, "mean": 3.0, "std": 2.0}
    assert ChannelNormalisation.model_validate(window).scheme == "CT"
    assert ChannelNormalisation.model_validate({"modality": "MR"}).scheme == "zscore"
    for scheme in NORMALISATION_SCHEMES:
        channel = ChannelNormalisation(modality="CT", scheme=scheme)
        assert ChannelNormalisation.model_validate_json(channel.model_dump_json()) == channel


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ct", "write auto, modality, or a mapping of channels to CT, zscore, noNorm"),
        (["CT"], "write auto, modality, or a mapping"),
        ({"T1": "z-score"}, "no normalisation 'z-score' for the channel 'T1'; did you mean 'zsc"),
        ({"T1": None}, "no normalisation None for the channel 'T1'; choose from CT, zscore"),
    ],
)
def test_what_is_no_normalisation_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelTrainingConfig(normalisation=given)


def test_errors_name_channel_and_file(tmp_path: Path) -> None:
    folder = write_channels(tmp_path / "data", ("T1", "rgb_to_0_1"))
    with pytest.raises(DatasetError, match=r"names the channel 'T2', but those .* T1, rgb_to_0_1"):
        prepare(folder, tmp_path / "cache", normalisation={"T2": "noNorm"})
    shutil.copy(folder / "imagesTr/c3_0000.nii.gz", folder / "imagesTr/c3_0001.nii.gz")
    image = nib.load(folder / "imagesTr/c3_0001.nii.gz")
    wide = np.asarray(image.dataobj) * 100
    nib.save(nib.Nifti1Image(wide, image.affine), folder / "imagesTr/c3_0001.nii.gz")
    with pytest.raises(DatasetError, match=r"c3_0001.nii.gz: intensities of .* rescale_to_0_1"):
        prepare(folder, tmp_path / "cache")


def test_a_name_that_may_mean_ct_is_told(tmp_path: Path) -> None:
    labels = {f"c{index}": boxes(1, 2) for index in range(5)}
    told = prepare(make_data(tmp_path / "a", labels, modality="abdomen CT"), tmp_path).warnings
    assert told == [
        "the channel 'abdomen CT' is normalised by z-score, since its name does not begin with the "
        "word CT: if it is a CT, write normalisation: {abdomen CT: CT} under config"
    ]
    for name in ("T1ce contrast", "CT"):
        folder = make_data(tmp_path / name, labels, modality=name)
        assert not prepare(folder, tmp_path / "cache").warnings
