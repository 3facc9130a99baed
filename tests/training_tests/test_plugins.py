"""Networks, losses and more of a user's own in a training run and in a bundle."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_package import forget_package, importable
from nibabel import Nifti1Image, save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training.bundle.bundle import Bundle, write_bundle
from training.bundle.manifest import Manifest
from training.bundle.member import Member, load_checkpoint
from training.bundle.network_export import export_network
from training.bundle.prediction import predict_images
from training.class_weights import class_weight_tensor
from training.config import ModelTrainingConfig
from training.data import Preprocessing
from training.data.patches.augmentation import Augmentation
from training.data.prepared.normalisation import ChannelNormalisation
from training.errors import BundleError, PluginError
from training.lightning_module import SegmentationLightningModule
from training.metrics.own import measure
from training.models import build_model
from training.models.footprint import training_bytes
from training.optimizers import get_optimizer
from training.trainer import SegmentationTrainer

VOLUME_ERROR = "liver_lab.metrics:volume_error"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        yield folder


def own_config(folder: Path, **values: Any) -> ModelTrainingConfig:
    settings: dict[str, Any] = {
        "model_name": "liver_lab.nets:build_tiny",
        "model_params": {"width": 6},
        "loss": "liver_lab.training:SmoothCrossEntropy",
        "optimizer": "liver_lab.training:rmsprop",
        "scheduler": "liver_lab.training:halved",
        "augmentation": "liver_lab.training:brighter",
        "monitor": VOLUME_ERROR,
        "monitor_mode": "min",
        "lightning_module": "liver_lab.module:LabModule",
        "patch_size": (8, 8, 8),
        "max_epochs": 2,
        "learning_rate": 1e-2,
        "gpus": 0,
        "log_dir": folder / "logs",
        "checkpoint_dir": folder / "checkpoints",
    }
    return ModelTrainingConfig(**{**settings, **values})


def cases() -> list[tuple[Tensor, Tensor]]:
    """Three cases; the last has no foreground."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for edge in (3, 5, 0):
        label = torch.zeros(8, 8, 8, dtype=torch.int64)
        label[1 : 1 + edge, 2 : 2 + edge, :edge] = 1
        image = label[None] + 0.2 * torch.randn(1, 8, 8, 8, generator=generator)
        made.append((image, label))
    return made


def own_trainer(config: ModelTrainingConfig, **options: Any) -> SegmentationTrainer:
    loader = DataLoader(cases(), batch_size=1)
    return SegmentationTrainer(
        config, build_model(config), loader, loader, loader, progress_bar=False, **options
    )


def test_everything_of_ones_own_in_one_run(tmp_path: Path, lab: Path) -> None:
    trainer = own_trainer(own_config(tmp_path))
    assert type(trainer.module).__name__ == "LabModule"
    metrics = trainer.fit()
    assert metrics["val_epochs_seen"] == 2
    assert isinstance(trainer.lightning.optimizers[0], torch.optim.RMSprop)
    # two epochs of two: 1 and 1/2 of the rate, and the next is a quarter
    assert trainer.lightning.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 4)
    errors = []
    module = trainer.module.eval()
    for image, label in cases():
        with torch.no_grad():
            predicted = module.to_labels(module.predict_logits(image[None]))[0]
        true = int((label > 0).sum())
        if true:
            errors.append(abs(int((predicted > 0).sum()) - true) / true)
    assert len(errors) == 2
    assert metrics[VOLUME_ERROR] == pytest.approx(sum(errors) / 2, abs=1e-6)
    assert trainer.best_checkpoint.is_file()
    tested = trainer.test(checkpoint=trainer.last_checkpoint)
    assert tested[f"test_{VOLUME_ERROR}"] == pytest.approx(metrics[VOLUME_ERROR], abs=1e-6)


def test_a_resumed_run_goes_on(tmp_path: Path, lab: Path) -> None:
    whole = own_trainer(own_config(tmp_path / "whole", max_epochs=3)).fit()
    own_trainer(own_config(tmp_path / "cut", max_epochs=1)).fit()
    forget_package()
    resumed = own_trainer(own_config(tmp_path / "cut", max_epochs=3)).fit(resume=True)
    assert resumed == pytest.approx(whole, nan_ok=True)


def test_further_metrics_of_ones_own(tmp_path: Path, lab: Path) -> None:
    config = own_config(
        tmp_path, monitor="val_dice", monitor_mode="max", own_metrics=[VOLUME_ERROR]
    )
    assert VOLUME_ERROR in own_trainer(config).fit()


def test_a_metric_that_no_case_has_is_not_defined(tmp_path: Path, lab: Path) -> None:
    config = own_config(tmp_path, max_epochs=1)
    train = DataLoader(cases(), batch_size=1)
    empty = DataLoader(cases()[2:], batch_size=1)
    trainer = SegmentationTrainer(config, build_model(config), train, empty, progress_bar=False)
    assert math.isnan(trainer.fit()[VOLUME_ERROR])
    assert not trainer.best_checkpoint.exists()
    assert trainer.last_checkpoint.is_file()


def test_what_a_metric_returns_must_be_a_number(lab: Path) -> None:
    label = torch.zeros(2, 2, 2, dtype=torch.int64)
    with pytest.raises(PluginError, match="returned 'good' for a case: it must be one number"):
        measure("liver_lab.metrics:words", label, label, spacing=None, num_classes=2)


def test_a_module_can_be_given_in_python(tmp_path: Path, lab: Path) -> None:
    from liver_lab.module import LabModule

    config = own_config(tmp_path, lightning_module=None, monitor="val_epochs_seen")
    trainer = own_trainer(config, module=LabModule)
    assert trainer.fit()["val_epochs_seen"] == 2
    for wrong in ("liver_lab.nets:TinyNet", "liver_lab.nets:build_tiny"):
        with pytest.raises(PluginError, match="must be a subclass of"):
            own_trainer(own_config(tmp_path, lightning_module=wrong))


def test_model_params_are_checked_against_the_signature(tmp_path: Path, lab: Path) -> None:
    for wrong, message in (
        (
            {"widht": 3},
            "model_params.widht is not a parameter of liver_lab.nets:build_tiny: did you",
        ),
        ({"num_classes": 3}, "set the field num_classes instead"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(own_config(tmp_path, model_params=wrong))
    network = build_model(
        own_config(tmp_path, model_name="liver_lab.nets:TinyNet", num_classes=5, input_channels=2)
    )
    assert network(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 5, 8, 8, 8)
    checkpointed = own_config(
        tmp_path, model_name="liver_lab.nets:TinyNet", gradient_checkpointing=True
    )
    with pytest.raises(ValueError, match="gradient_checkpointing=true is not possible with liver"):
        build_model(checkpointed)
    nothing = own_config(tmp_path, model_name="liver_lab.nets:build_nothing", model_params={})
    with pytest.raises(PluginError, match="gave 3, which is not a"):
        build_model(nothing)
    assert training_bytes(own_config(tmp_path)) > 0


@pytest.mark.parametrize("name", ["os:system", "torch:os.system", "liver_lab.nets:torch.os.system"])
def test_a_part_of_python_is_no_network(tmp_path: Path, lab: Path, name: str) -> None:
    params = {"command": f"touch {tmp_path / 'ran'}"}
    with pytest.raises(PluginError, match="is a part of Python itself"):
        build_model(own_config(tmp_path, model_name=name, model_params=params))
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_network_of_ones_own_depend_on_the_seed_alone(
    tmp_path: Path, lab: Path
) -> None:
    first, again = (build_model(own_config(tmp_path)) for _ in range(2))
    other = build_model(own_config(tmp_path, seed=1))
    for one, same, different in zip(
        first.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_a_schedule_can_be_stepped_each_step(tmp_path: Path, lab: Path) -> None:
    name = "liver_lab.training:halved_each_step"
    trainer = own_trainer(own_config(tmp_path, scheduler=name, max_epochs=1))
    trainer.fit()
    assert trainer.lightning.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 / 2)


def test_class_weights_and_augmentation_of_ones_own(tmp_path: Path, lab: Path) -> None:
    config = own_config(tmp_path, class_weights="liver_lab.training:by_root", num_classes=3)
    weights = class_weight_tensor(config, [16, 4, 1])
    assert weights is not None
    assert weights.tolist() == [0.25, 0.5, 1.0]
    augmentation = Augmentation("liver_lab.training:brighter", (8, 8, 8))
    image, label = torch.zeros(1, 8, 8, 8), torch.ones(8, 8, 8, dtype=torch.int64)
    changed, same = augmentation.change(image, label, np.random.default_rng(0))
    assert changed.unique().item() == pytest.approx(np.random.default_rng(0).random())
    assert torch.equal(same, label)
    assert augmentation.draw_matrix(np.random.default_rng(0)) is None


def test_settings_of_an_optimizer_of_ones_own_hold_when_a_run_is_resumed(
    tmp_path: Path, lab: Path
) -> None:
    config = own_config(tmp_path)
    optimizer, schedule = get_optimizer(config, nn.Linear(2, 2))
    assert schedule is not None
    slower = config.model_copy(update={"learning_rate": 1e-3})
    other, _ = get_optimizer(slower, nn.Linear(2, 2))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["liver_sched:decay", "cosine"])
@pytest.mark.parametrize("before", ["liver_sched:decay", "cosine"])
def test_a_schedule_of_torch_goes_on_with_the_rate_of_its_config(
    tmp_path: Path, lab: Path, before: str, kind: str
) -> None:
    (lab / "liver_sched.py").write_text(
        "import torch\n"
        "def decay(optimizer):\n"
        "    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)\n"
    )

    def rates(config: ModelTrainingConfig, state: Any = None, steps: int = 3) -> Any:
        optimizer, schedule = get_optimizer(config, nn.Linear(2, 2))
        assert schedule is not None
        if state is not None:
            schedule.load_state_dict(state)
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return float(optimizer.param_groups[0]["lr"]), schedule.state_dict()

    first = own_config(tmp_path, scheduler=before, learning_rate=0.8, max_epochs=6)
    # as in population based training: another learning rate, and maybe another schedule
    other = own_config(tmp_path, scheduler=kind, learning_rate=0.4, max_epochs=6)
    _, state = rates(first)
    assert rates(other, state, 1)[0] == pytest.approx(rates(other, steps=4)[0])


def own_bundle(folder: Path, tmp_path: Path) -> SegmentationLightningModule:
    config = own_config(tmp_path)
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
            labels=["background", "a", "b"], channels=["MR"], metrics={}, provenance={}
        ),
    )
    return module


def test_a_bundle_runs_no_code_of_others_unless_it_is_allowed(tmp_path: Path, lab: Path) -> None:
    module = own_bundle(tmp_path / "bundle", tmp_path)
    forget_package()
    image = tmp_path / "case.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(9, 8, 10)).astype(np.float32)
    save(Nifti1Image(voxels, np.eye(4)), image)
    with pytest.raises(BundleError, match=r"network is liver_lab.nets:build_tiny.*--trust-code"):
        Bundle.load(tmp_path / "bundle")
    told: list[str] = []
    with pytest.raises(BundleError, match="--trust-code"):
        predict_images(tmp_path / "bundle", [image], tmp_path / "out", on_case=told.append)
    assert not (tmp_path / "out").exists()
    assert "liver_lab" not in sys.modules
    bundle = Bundle.load(tmp_path / "bundle", "cpu", trust_code=True)
    # the network alone is imported: not loss, optimizer, schedule, metric or module
    own = {name for name in sys.modules if name.startswith(("liver_lab", "lab_blocks"))}
    assert own == {"liver_lab", "liver_lab.nets", "lab_blocks"}
    case = torch.from_numpy(bundle.preprocessing.apply([image]).image)
    with torch.no_grad():
        expected = module.predict_logits(case[None]).softmax(dim=1)[0]
    torch.testing.assert_close(bundle.probabilities(case), expected)
    label = bundle.predict(image)
    assert label.shape == voxels.shape
    failed = predict_images(
        tmp_path / "bundle", [image], tmp_path / "out", trust_code=True, on_case=told.append
    )
    assert failed == []
    assert (tmp_path / "out" / "case.nii.gz").is_file()


def test_code_in_a_bundle_is_never_run(
    tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    own_bundle(bundle, tmp_path)
    forget_package()
    (bundle / "liver_lab").mkdir()
    trap = bundle / "liver_lab" / "__init__.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    shutil.rmtree(lab / "liver_lab")
    # not on the path: it is not found
    with pytest.raises(PluginError, match="no module liver_lab"):
        Bundle.load(bundle, trust_code=True)
    # as if the command was typed in the bundle's folder
    monkeypatch.syspath_prepend(bundle)
    with pytest.raises(BundleError, match="inside the model's own folder"):
        Bundle.load(bundle, trust_code=True)
    assert not (tmp_path / "ran").exists()


def test_what_a_trusted_module_imports_is_not_taken_from_the_bundle(
    tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    own_bundle(bundle, tmp_path)
    forget_package()
    (bundle / "lab_blocks.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(bundle)
    Bundle.load(bundle, trust_code=True)
    assert sys.path[0] == str(bundle)
    assert not (tmp_path / "ran").exists()


def test_a_network_that_was_changed_since_is_told(tmp_path: Path, lab: Path) -> None:
    own_bundle(tmp_path / "bundle", tmp_path)
    forget_package()
    blocks = lab / "lab_blocks.py"
    for old, new in (("width, 3", "width, 5"), ("nn.ReLU()", "nn.NoSuch()")):
        forget_package()
        blocks.write_text(blocks.read_text().replace(old, new))
        with pytest.raises(BundleError, match="may be another version than it was trained with"):
            Bundle.load(tmp_path / "bundle", trust_code=True)


def test_a_converted_network_needs_no_code(tmp_path: Path, lab: Path) -> None:
    module = own_bundle(tmp_path / "bundle", tmp_path)
    bundle = Bundle.load(tmp_path / "bundle", "cpu", trust_code=True)
    assert export_network(bundle, tmp_path / "network.pt2") <= 1e-4
    image = torch.randn(1, 1, 8, 8, 8)
    expected = module.model(image)
    forget_package()
    shutil.rmtree(lab)
    network = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(network(image), expected)
    assert "liver_lab" not in sys.modules


def test_a_checkpoint_is_read_with_its_loss(tmp_path: Path, lab: Path) -> None:
    config = own_config(tmp_path)
    trainer = own_trainer(config)
    trainer.fit()
    module = load_checkpoint(trainer.last_checkpoint, config)
    assert type(module.loss).__name__ == "SmoothCrossEntropy"
