from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from training.bundle import network_export
from training.bundle.bundle import Bundle, write_bundle
from training.bundle.manifest import Manifest
from training.bundle.member import Member
from training.bundle.network_export import export_network
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError
from training.lightning_module import SegmentationLightningModule
from training.models import build_model
from tuner.cli.main import main

DFORMER = {"embed_dim": 12, "depths": [2, 1], "num_heads": [2, 4], "patch_size": [1, 2, 2]}
NETWORKS = {
    "dformer3d": DFORMER,
    "unet3d": {"channels": [4, 8], "strides": [2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}
SIZE = (7, 20, 33)  # padded groups on every axis


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = getattr(request, "param", "dformer3d")
    config = ModelTrainingConfig(
        model_name=name, model_params=NETWORKS[name], input_channels=2, patch_size=(4, 16, 16)
    )
    torch.manual_seed(0)
    module = SegmentationLightningModule(build_model(config), config)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_bundle(
        tmp_path / "bundle",
        members=[Member(config, module)],
        preprocessing=Preprocessing(
            spacing=(1.0, 1.0, 1.0),
            channels=[ChannelNormalisation(modality="MR")] * 2,
            num_classes=3,
        ),
        manifest=Manifest(labels=["background", "a", "b"], channels=["T1", "T2"],
                          metrics={}, provenance={}),
    )  # fmt: skip
    return tmp_path / "bundle"


def run_file(path: Path, image: Tensor) -> Tensor:
    """What a pipeline without this library does with the file."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
    if path.suffix == ".ts":
        with path.open("rb") as file:
            return torch.jit.load(file)(image)
    with path.open("rb") as file:
        return torch.export.load(file).module()(image)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", [".pt2", ".ts", ".onnx"])
def test_a_file_gives_the_models_logits_for_any_batch_of_its_size(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    bundle = Bundle.load(folder, "cpu")
    path = tmp_path / f"network{suffix}"
    assert export_network(bundle, path, SIZE) < 1e-4
    for batch in (1, 2, 5):
        image = torch.randn(batch, 2, *SIZE)
        with torch.no_grad():
            expected = bundle.module.model(image)
        assert expected.std() > 0.1
        with torch.no_grad():
            np.testing.assert_allclose(run_file(path, image), expected, rtol=0, atol=1e-4)
    with pytest.raises(Exception, match="33"):
        run_file(path, torch.randn(1, 2, 7, 20, 32))
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content += b"".join(archive.read(name) for name in archive.namelist())
    # the machine that wrote it: its library, its programs, its user's folders
    for place in (Path(torch.__file__).parents[1], Path(network_export.__file__).parents[1]):
        assert str(place).encode() not in content
    assert str(tmp_path).encode() not in content


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("folder", ["unet3d", "segresnet"], indirect=True)
def test_other_networks_are_written_too(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(folder), "-o", str(tmp_path / "network.pt2")]) == 0
    bundle = Bundle.load(folder, "cpu")
    image = torch.randn(3, 2, 4, 16, 16)
    with torch.no_grad():
        logits = run_file(tmp_path / "network.pt2", image)
        torch.testing.assert_close(logits, bundle.module.model(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("network.h5", (), r"'\.h5' is not one of \.pt2, \.ts, \.onnx"),
        ("network", (), "'none' is not one of"),
        ("network.pt2", ("--size", "4", "0", "16"), r"\[4, 0, 16\] needs three voxel counts"),
    ],
)
def test_wrong_requests_are_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    size: tuple[str, ...],
    message: str,
) -> None:
    path = tmp_path / name
    assert main(["convert", str(folder), "-o", str(path), *size]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not path.exists()


def test_onnx_without_its_packages_names_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_export, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(BundleError, match=r"no_such_package: install with .*segtune\[onnx\]"):
        export_network(Bundle.load(folder, "cpu"), tmp_path / "network.onnx")


def test_a_file_that_predicts_something_else_is_refused_and_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = network_export.FORMATS[".pt2"]

    def damaged(path: Path) -> network_export.Network:
        network = read(path)
        return lambda image: network(image) + 0.01

    monkeypatch.setitem(network_export.FORMATS, ".pt2", (write, damaged))
    with pytest.raises(BundleError, match=r"logits differ by 0\.01"):
        export_network(Bundle.load(folder, "cpu"), tmp_path / "network.pt2", (2, 4, 4))
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_file_that_is_there_is_replaced_only_when_asked_to(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.pt2"
    path.write_text("a network of the user's own")
    (tmp_path / ".partial-network.pt2").write_text("mine")
    words = ["convert", str(folder), "-o", str(path)]
    assert main(words) == 2
    assert "exists already: nothing was changed; choose another" in capsys.readouterr().err
    assert path.read_text() == "a network of the user's own"
    assert main([*words, "--overwrite"]) == 0
    assert run_file(path, torch.randn(1, 2, 4, 16, 16)).shape[0] == 1
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"bundle", "network.pt2", ".partial-network.pt2"}


def test_a_folder_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    path.mkdir()
    (path / "mine.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="exists and is not a file"):
            network_export.check_target(path, overwrite=overwrite)
    assert (path / "mine.txt").is_file()


def test_a_file_that_comes_meanwhile_is_not_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "network.pt2"

    def slow(network: torch.nn.Module, image: torch.Tensor, partial: Path) -> None:
        partial.write_bytes(b"")
        path.write_text("mine")

    def no_difference(*_: object) -> float:
        return 0.0

    monkeypatch.setitem(network_export.FORMATS, ".pt2", (slow, lambda partial: None))
    monkeypatch.setattr(network_export, "_difference", no_difference)
    with pytest.raises(BundleError, match="exists already"):
        export_network(Bundle.load(folder, "cpu"), path, SIZE)
    assert {entry.name: entry.read_text() for entry in path.parent.iterdir()} == {
        "network.pt2": "mine"
    }
