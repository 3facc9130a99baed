"""`tune predict`: probabilities, no mirroring, going on with a run, and what is said meanwhile."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from training.bundle import memory
from training.bundle.bundle import Bundle, write_bundle
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.prediction import predict_images, time_left
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main


def make_bundle(
    folder: Path,
    members: int = 1,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    mirror_axes: tuple[int, ...] = (),
    **settings: Any,
) -> None:
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        config = ModelTrainingConfig(
            model_name="unet3d",
            model_params={"channels": [4, 8], "strides": [2], "num_res_units": 0},
            # windows of different depth, so that slabs of the members do not end together
            patch_size=(8 + 4 * seed, 8, 8),
            **settings,
        )
        module = SegmentationLightningModule(build_model(config), config).eval()
        networks.append(Member(config, module, 1 / members, mirror_axes))
    write_bundle(
        folder,
        members=networks,
        preprocessing=Preprocessing(
            spacing=spacing,
            channels=[ChannelNormalisation(modality="MR")],
            num_classes=networks[0].config.num_classes,
        ),
        manifest=Manifest(
            labels=["background", "liver", "tumour"], channels=["MRI"], metrics={}, provenance={}
        ),
    )


def save(path: Path, axes: str = "RAS", empty_until: int = 0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(size=(14, 15, 23)).astype(np.float32)
    voxels[:empty_until] = 0
    affine = np.diag([1.0, 1.5, 0.7, 1.0])
    image = nib.Nifti1Image(voxels, affine)
    orientation = nib.orientations.axcodes2ornt(axes)
    nib.save(image.as_reoriented(orientation), path)
    return path


def whole_probabilities(bundle: Bundle, image: Path) -> NDArray[np.float32]:
    """Probabilities on the file's grid by nibabel's own way back, from those of the whole case."""
    case = bundle.preprocessing.apply([image])
    found = bundle.probabilities(torch.from_numpy(case.image)).numpy()
    file = nib.load(image)
    oriented = nib.as_closest_canonical(file)
    # depth, height, width are superior, anterior, right
    size = tuple(end - first for first, end in case.info.crop)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(found)[None], size=size, mode="trilinear", align_corners=False
    )[0].numpy()
    canonical = np.zeros((len(found), *oriented.shape[::-1]), dtype=np.float32)
    canonical[0] = 1
    canonical[(slice(None), *(slice(first, end) for first, end in case.info.crop))] = resized
    in_file = [
        resample_from_to(
            nib.Nifti1Image(volume.transpose(2, 1, 0), oriented.affine), file, order=0
        ).get_fdata()
        for volume in canonical
    ]
    return np.stack(in_file, axis=-1)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLA"])
def test_probabilities_are_written_on_the_grid_of_the_image(
    tmp_path: Path, members: int, axes: str
) -> None:
    make_bundle(tmp_path / "bundle", members, spacing=(1.1, 0.9, 1.3))
    # a body that does not fill the image
    image = save(tmp_path / "case.nii.gz", axes, empty_until=3 if axes == "RAS" else 0)
    assert not predict_images(
        tmp_path / "bundle", [image], tmp_path / "out", probabilities=True, on_case=print
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "case.nii.gz",
        "case_probabilities.nii.gz",
    }
    written = nib.load(tmp_path / "out" / "case_probabilities.nii.gz")
    assert written.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(written.affine, nib.load(image).affine)
    found = written.get_fdata(dtype=np.float32)
    expected = whole_probabilities(Bundle.load(tmp_path / "bundle", "cpu"), image)
    assert found.shape == (*nib.load(image).shape, 3)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-4)
    label = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(label[clear], expected.argmax(axis=-1)[clear])


def test_two_classes_of_a_target_label_and_nifti_2(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", target_label=2)
    image = tmp_path / "case.nii"
    nib.save(nib.Nifti2Image.from_image(nib.load(save(tmp_path / "first.nii"))), image)
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    label = bundle.predict(image, probabilities=tmp_path / "new" / "p.nii.gz")
    written = nib.load(tmp_path / "new" / "p.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    found = written.get_fdata()
    assert found.shape[-1] == 2
    np.testing.assert_array_equal(label == 2, found[..., 1] > found[..., 0])


def test_mirroring_of_the_bundle_can_be_left_out(tmp_path: Path) -> None:
    make_bundle(tmp_path / "mirrored", mirror_axes=(0, 1))
    make_bundle(tmp_path / "plain")
    image = save(tmp_path / "case.nii.gz")
    plain = Bundle.load(tmp_path / "plain", "cpu").predict(image)
    assert (Bundle.load(tmp_path / "mirrored", "cpu").predict(image) != plain).any()
    arguments = [str(tmp_path / "mirrored"), str(image), "-o", str(tmp_path / "out")]
    assert main(["predict", *arguments, "--no-mirroring", "--device", "cpu"]) == 0
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "case.nii.gz").dataobj, plain)


def predict(tmp_path: Path, *names: str, **options: Any) -> list[str]:
    lines: list[str] = []
    images = [tmp_path / "in" / f"{name}.nii.gz" for name in names]
    predict_images(
        tmp_path / "bundle", images, tmp_path / "out", on_case=lines.append, device="cpu", **options
    )
    return lines


def test_cases_that_are_there_are_left_alone(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz")
    predict(tmp_path, "b")
    corrected = tmp_path / "out" / "b.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((14, 15, 23), np.uint8), np.eye(4)), corrected)
    before = corrected.read_bytes()
    lines = predict(tmp_path, *"abc", skip_existing=True)
    assert lines[0] == "1 of 3 cases are there already and are left alone"
    assert [line[0] for line in lines[1:]] == ["a", "c"]
    assert corrected.read_bytes() == before
    assert predict(tmp_path, *"abc", skip_existing=True) == [
        "3 of 3 cases are there already and are left alone"
    ]


def test_a_damaged_label_map_is_neither_whole_nor_replaced(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    save(tmp_path / "in" / "a.nii.gz")
    predict(tmp_path, "a")
    label = tmp_path / "out" / "a.nii.gz"
    label.write_bytes(label.read_bytes()[:-20])
    before = label.read_bytes()
    with pytest.raises(BundleError, match=r"a\.nii\.gz exists already"):
        predict(tmp_path, "a", skip_existing=True)
    assert label.read_bytes() == before


def test_a_case_without_its_probabilities_is_not_whole(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    save(tmp_path / "in" / "a.nii.gz")
    predict(tmp_path, "a")
    with pytest.raises(BundleError, match=r"a\.nii\.gz exists already.*--overwrite"):
        predict(tmp_path, "a", skip_existing=True, probabilities=True)
    predict(tmp_path, "a", overwrite=True, probabilities=True)
    skipped = predict(tmp_path, "a", skip_existing=True, probabilities=True)
    assert skipped == ["1 of 1 cases are there already and are left alone"]


def test_probabilities_replace_no_image_and_no_label_map(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    for name in ("a", "a_probabilities"):
        save(tmp_path / "in" / f"{name}.nii.gz")
    with pytest.raises(BundleError, match="probabilities of a and the label map of a_prob"):
        predict(tmp_path, "a", "a_probabilities", probabilities=True)
    with pytest.raises(BundleError, match=r"the probabilities .* would replace its image"):
        predict_images(
            tmp_path / "bundle",
            [tmp_path / "in" / "a_probabilities.nii.gz"],
            tmp_path / "in" / "a.nii",
            overwrite=True,
            probabilities=True,
            on_case=print,
        )


def test_replaced_or_skipped_but_not_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="say one of the two"):
        predict(tmp_path, "a", overwrite=True, skip_existing=True)
    arguments = ["b", "a.nii", "-o", "out", "--overwrite", "--skip-existing"]
    with pytest.raises(SystemExit):
        main(["predict", *arguments])
    assert "not allowed with" in capsys.readouterr().err


def test_several_cases_say_how_many_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    for name in "abc":
        save(tmp_path / "in" / f"{name}.nii.gz")
    clock = count(step=120)
    monkeypatch.setattr("training.bundle.prediction.time.monotonic", lambda: float(next(clock)))
    lines = predict(tmp_path, *"abc")
    endings = [re.search(r"\(.*\)$", line)[0] for line in lines]  # type: ignore[index]
    assert endings == ["(1 of 3, about 4 min left)", "(2 of 3, about 2 min left)", "(3 of 3)"]
    assert predict(tmp_path, "a", overwrite=True) == [f"a: {tmp_path / 'out' / 'a.nii.gz'}"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a minute"),
        (179, "about 3 min"),
        (5399, "about 90 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_times_to_wait_are_no_finer_than_they_are_known(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_too_little_memory_is_said_before_anything_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    image = save(tmp_path / "in" / "a.nii.gz")
    needed = memory.PREPARING * 14 * 15 * 23
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1.0)
    (line,) = predict(tmp_path, "a")
    assert line.startswith(f"a: not segmented: {image}: it needs up to 0.0 GB of memory")
    assert "crop the image" in line
    # enough to read it, but not to predict it
    bundle = Bundle.load(tmp_path / "bundle", "cpu")
    monkeypatch.setattr(memory, "PREDICTING", 10 * memory.PREPARING)
    monkeypatch.setattr(memory, "available_memory", lambda: 2.0 * needed)
    with pytest.raises(BundleError, match="of memory"):
        bundle.predict(image)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    bundle.predict(image)


def test_memory_that_is_free_is_that_of_the_container_if_less(tmp_path: Path) -> None:
    assert memory.available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert memory.available_memory(tmp_path) == 4000 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert memory.available_memory(tmp_path) == 4000 * 1024
    (group / "memory.max").write_text("3000\n")
    assert memory.available_memory(tmp_path) == 2000


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    save(tmp_path / "in" / "a.nii.gz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.bundle.probability_file.os.posix_fallocate", full)
    (line,) = predict(tmp_path, "a", probabilities=True)
    assert "No space left on device" in line
    assert not list((tmp_path / "out").iterdir())
