"""`tune predict`: what fails is named and costs no other case, and no file is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from training.bundle import case_prediction
from training.bundle.bundle import Bundle, write_bundle
from training.bundle.case_prediction import (
    case_probabilities,
    probabilities_within_memory,
    within_memory,
)
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.prediction import predict_images
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError
from training.inference import predict_case
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main

OUT_OF_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40 GiB")


def make_bundle(folder: Path, **settings: Any) -> SegmentationLightningModule:
    torch.manual_seed(0)
    config = ModelTrainingConfig(
        model_name="unet3d",
        model_params={"channels": [4, 8], "strides": [2], "num_res_units": 0},
        patch_size=(8, 8, 8),
        **settings,
    )
    module = SegmentationLightningModule(build_model(config), config).eval()
    write_bundle(
        folder,
        members=[Member(config, module)],
        preprocessing=Preprocessing(
            spacing=(1.0, 1.0, 1.0),
            channels=[ChannelNormalisation(modality="MR")],
            num_classes=config.num_classes,
        ),
        manifest=Manifest(
            labels=[str(label) for label in range(config.num_classes)],
            channels=["MRI"],
            metrics={},
            provenance={},
        ),
    )
    return module


def save(path: Path, voxels: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.random.default_rng(0).normal(size=(9, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def damaged(path: Path) -> None:
    save(path)
    content = bytearray(path.read_bytes())
    # the field `datatype` of the header
    content[70:72] = np.int16(9999).tobytes()
    path.write_bytes(content)


def colours(path: Path) -> None:
    save(path, np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


@pytest.mark.parametrize("spoil", [damaged, colours], ids=lambda spoil: spoil.__name__)
def test_a_file_that_cannot_be_used_is_named_and_the_others_go_on(
    tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(tmp_path / "bundle")
    for name in ("a", "c"):
        save(tmp_path / "in" / f"{name}.nii")
    spoil(tmp_path / "in" / "b.nii")
    arguments = [str(tmp_path / "bundle"), str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main(["predict", *arguments]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert f"b: not segmented: {tmp_path / 'in' / 'b.nii'}: " in shown[1]
    assert shown[-1] == "1 of 3 cases could not be segmented"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.nii.gz", "c.nii.gz"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "out of memory (MemoryError)"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "out of memory ([enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes)",
        ),
        (RuntimeError("a kernel is missing\nmore of it"), "RuntimeError: a kernel is missing"),
        (TypeError("no number"), "TypeError: no number"),
    ],
)
def test_whatever_ends_a_case_is_said_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    make_bundle(tmp_path / "bundle")
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    whole, cases = Bundle.label_map, []

    def once(self: Bundle, images: Any, **options: Any) -> Any:
        cases.append(images)
        if len(cases) == 1:
            raise error
        return whole(self, images, **options)

    monkeypatch.setattr(Bundle, "label_map", once)
    lines: list[str] = []
    failed = predict_images(
        tmp_path / "bundle", [tmp_path / "in"], tmp_path / "out", on_case=lines.append
    )
    assert failed == ["a"]
    assert lines[0] == f"a: not segmented: {tmp_path / 'in' / 'a.nii.gz'}: {told}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.nii.gz"]


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_GPU,
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_without_gpu_memory_it_goes_on_with_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, times: int
) -> None:
    module = make_bundle(tmp_path / "bundle")
    image = torch.randn(1, 9, 12, 8)
    expected = case_probabilities(module, image)
    blended_on: list[torch.device | None] = []

    def small(*arguments: Any, mirror_axes: object, blend_device: Any = None) -> Tensor:
        blended_on.append(blend_device)
        if len(blended_on) <= times:
            raise error
        return case_probabilities(*arguments, blend_device=blend_device)

    monkeypatch.setattr(case_prediction, "case_probabilities", small)
    lines: list[str] = []
    if times == 3:
        with pytest.raises(MemoryError, match="in every way"):
            probabilities_within_memory(module, image, lines.append)
    else:
        found = probabilities_within_memory(module, image, lines.append)
        assert torch.equal(found, expected)
    assert len(lines) == min(times, 2)
    assert blended_on == [None, torch.device("cpu"), None][: times + 1]


def test_other_errors_are_no_lack_of_memory() -> None:
    def broken(blend_device: torch.device | None) -> Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        within_memory([], broken, print)


def test_windows_go_to_the_network_and_are_blended_where_the_image_is() -> None:
    """A machine without a GPU has one device; torch's meta device has no values to come back."""
    seen = []

    def network(windows: Tensor) -> Tensor:
        seen.append(windows.device.type)
        return windows

    image = torch.randn(1, 1, 9, 9, 9)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        predict_case(network, image, patch_size=(8, 8, 8), window_device=torch.device("meta"))
    assert seen == ["meta"]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def predict(tmp_path: Path, *images: Path, output: str = "out", **options: Any) -> list[str]:
    lines: list[str] = []
    predict_images(tmp_path / "bundle", images, tmp_path / output, on_case=lines.append, **options)
    return lines


def test_label_maps_that_are_there_are_replaced_only_when_asked(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    images = [save(tmp_path / "in" / f"{name}.nii.gz") for name in "abc"]
    corrected = save(tmp_path / "out" / "b.nii.gz")
    save(tmp_path / "out" / "c.nii.gz")
    save(tmp_path / "out" / "of another.nii.gz")
    before = listing(tmp_path)
    with pytest.raises(BundleError, match=r"out/b\.nii\.gz and 1 more exist already.*--overwrite"):
        predict(tmp_path, *images)
    with pytest.raises(BundleError, match=r"out/b\.nii\.gz exists already"):
        predict(tmp_path, images[1], output="out/b.nii.gz")
    assert listing(tmp_path) == before
    predict(tmp_path, *images, overwrite=True)
    changed = {name for name, content in listing(tmp_path).items() if before.get(name) != content}
    assert changed == {str(tmp_path / "out" / f"{name}.nii.gz") for name in "abc"}
    assert corrected.read_bytes() != before[str(corrected)]


def test_an_image_is_never_replaced(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    one, other = (save(tmp_path / "in" / f"{name}.nii.gz") for name in "ab")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.nii.gz").symlink_to(other)
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "b.nii.gz").hardlink_to(one)
    before = listing(tmp_path)
    for output, images in (
        ("in", [one]),
        ("in/a.nii.gz", [one]),
        ("linked", [one, other]),
        ("hard", [one, other]),
    ):
        with pytest.raises(BundleError, match="would replace"):
            predict(tmp_path, *images, output=output, overwrite=True)
    assert listing(tmp_path) == before


def test_where_nothing_can_be_written_nothing_is_segmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    image = save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)
    monkeypatch.setattr(Bundle, "predict", lambda *_: pytest.fail("it began"))
    with pytest.raises(BundleError, match=r"no label map can be written to .*notes"):
        predict(tmp_path, image, output="notes.txt")
    with pytest.raises(BundleError, match=r"no label map can be written to .*notes"):
        predict(tmp_path, image, output="notes.txt/deeper")
    with pytest.raises(BundleError, match="exists and is not a file"):
        predict(tmp_path, image, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_keeps_whole_label_maps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "bundle")
    images = [save(tmp_path / "in" / f"{name}.nii.gz") for name in "ab"]
    synced: list[int] = []

    def interrupted(handle: int) -> None:
        synced.append(handle)
        # the file and its folder are synced for each case
        if len(synced) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, *images)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]
    nib.load(tmp_path / "out" / "a.nii.gz").get_fdata()


@pytest.mark.parametrize(
    ("classes", "target", "expected"), [(256, None, np.uint8), (301, 300, np.uint16)]
)
def test_many_classes_are_not_wrapped(
    tmp_path: Path, classes: int, target: int | None, expected: type
) -> None:
    make_bundle(tmp_path / "bundle", num_classes=classes, target_label=target)
    image = save(tmp_path / "in" / "a.nii.gz")
    label = Bundle.load(tmp_path / "bundle", "cpu").label_map([image])
    assert label.dtype == expected
    if target is not None:
        assert set(np.unique(label)) == {0, target}


def test_what_is_doubtful_about_a_header_is_said_with_the_case(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    image = nib.Nifti1Image(np.ones((9, 8, 8), np.float32), None)
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([-1.0, 1.0, 1.0, 1.0]), 1)
    nib.save(image, save(tmp_path / "in" / "a.nii"))
    save(tmp_path / "in" / "b.nii")
    lines = predict(tmp_path, tmp_path / "in")
    assert lines[0].startswith(f"warning: {tmp_path / 'in' / 'a.nii'}: sform and qform")
    assert lines[0].endswith("the sform is taken")
    assert [line.partition(":")[0] for line in lines[1:]] == ["a", "b"]


@pytest.mark.parametrize("ending", [".Nii", ".Nii.gz", ".NII.gz", ".nii.GZ", ".NII"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_endings_of_mixed_case_are_read(tmp_path: Path, ending: str, kind: type) -> None:
    make_bundle(tmp_path / "bundle")
    plain = save(tmp_path / f"plain{ending.lower()}")
    nib.save(kind(np.ones((9, 8, 8), np.float32), np.eye(4)), plain)
    (tmp_path / "in").mkdir()
    plain.rename(tmp_path / "in" / f"a{ending}")
    assert predict(tmp_path, tmp_path / "in") == [f"a: {tmp_path / 'out' / 'a.nii.gz'}"]
    assert type(nib.load(tmp_path / "out" / "a.nii.gz")) is kind


def test_a_place_that_is_no_number_is_said_without_a_warning_of_numpys(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    image = save(tmp_path / "in" / "a.nii")
    content = bytearray(image.read_bytes())
    # the first number of the field `srow_x` of the header
    content[280:284] = np.float32(np.nan).tobytes()
    image.write_bytes(content)
    assert "its affine is not invertible" in predict(tmp_path, image)[0]
