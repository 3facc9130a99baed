"""Names of a config: entries of a registry, and import paths."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from foreign_package import importable
from pydantic import ValidationError
from torch import nn

import training
from training.config import ModelTrainingConfig
from training.errors import BundleError, DatasetError, PluginError, SegtuneError
from training.losses import build_loss
from training.registry import (
    FIELDS,
    LOSSES,
    MODELS,
    Registry,
    call,
    code_file,
    import_path,
    is_plugin,
    taken,
)
from tuner.errors import ExportError, ResourceError, SpecError, StudyError

ENTRIES = [(kind, name) for kind in FIELDS.values() for name in kind]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        yield folder


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=[f"{k.kind}-{n}" for k, n in ENTRIES])
def test_every_entry_leads_somewhere(kind: Registry, name: str) -> None:
    assert kind.resolve(name) is not None
    assert is_plugin(kind[name])


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_registry_takes_its_names_and_import_paths(field: str) -> None:
    schema = str(ModelTrainingConfig.model_json_schema()["properties"][field])
    for name in [*FIELDS[field], "my_nets:build_tiny", "my.package:Outer.inner"]:
        assert getattr(ModelTrainingConfig(**{field: name}), field) == name
    for name in FIELDS[field]:
        assert f"'{name}'" in schema
    for wrong in ("no_such_name", "my nets:build", "a:b:c", ":build", "nets:", 5, None):
        with pytest.raises(ValidationError):
            ModelTrainingConfig(**{field: wrong})


def test_one_entry_adds_a_loss(monkeypatch: pytest.MonkeyPatch, lab: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be 'cross_entropy'"):
        ModelTrainingConfig(loss="smooth")
    monkeypatch.setitem(LOSSES, "smooth", "liver_lab.training:SmoothCrossEntropy")
    config = ModelTrainingConfig(loss="smooth")
    assert config.flat()["loss"] == "smooth"
    assert (
        "smooth"
        in ModelTrainingConfig.model_json_schema()["properties"]["loss"]["anyOf"][0]["enum"]
    )
    logits, targets = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    assert build_loss(config)(logits, targets) == expected
    with pytest.raises(ValidationError, match="'tversky', 'smooth'"):
        ModelTrainingConfig(loss="smoothe")


def test_a_function_is_kept_by_its_import_path(lab: Path) -> None:
    from liver_lab.nets import TinyNet, build_tiny

    from training.models.dynunet import build_dynunet

    config = ModelTrainingConfig(model_name=build_tiny)
    assert config.model_name == "liver_lab.nets:build_tiny"
    config.model_name = TinyNet
    assert config.flat()["model_name"] == "liver_lab.nets:TinyNet"
    # one of ours is known by its name
    assert ModelTrainingConfig(model_name=build_dynunet).model_name == "dynunet"


def test_what_no_other_process_could_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def inner() -> None:
        """Inside a function."""

    def of_main() -> None:
        """As if of a script."""

    of_main.__module__, of_main.__qualname__ = "__main__", "of_main"
    for value, reason in (
        (lambda: None, "is a lambda"),
        (inner, "defined inside a function"),
        (of_main, "the script or notebook that runs"),
        (Path("x").exists, "is not where"),
    ):
        with pytest.raises(PluginError, match=reason):
            import_path(value)
        with pytest.raises(ValidationError, match=reason):
            ModelTrainingConfig(model_name=value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("liver_lob.nets:build_tiny", "no module liver_lob; did you mean 'liver_lab'"),
        ("liver_lab.net:build_tiny", "no module liver_lab.net; did you mean 'nets'"),
        ("liver_lab.nets:build_tinny", r"nets\.py\) has no 'build_tinny'; did you mean 'build_t"),
        ("liver_lab.nets:TinyNet.nothing", "has no 'TinyNet.nothing'"),
        ("liver_lab.nets:NUMBER", "is 3, which cannot be called"),
        ("liver_lab.broken:build", "imports a_library_that_is_not_there, which is not installed"),
        ("liver_lab.raises:build", "importing liver_lab.raises raised RuntimeError: no licence"),
        ("not_a_name", "there is no network 'not_a_name'"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(lab: Path, path: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        MODELS.resolve(path)


def test_a_script_that_ends_itself_is_told(lab: Path) -> None:
    (lab / "liver_lab" / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(PluginError, match=r"importing liver_lab\.script raised SystemExit: 3"):
        MODELS.resolve("liver_lab.script:build")


def test_arguments_are_given_by_name() -> None:
    def some(b: int, *rest: int, c: int = 5) -> tuple[int, int]:
        return b, c

    def every(**given: int) -> dict[str, int]:
        return given

    assert call(some, "some", a=1, b=2) == (2, 5)
    assert call(every, "every", a=1, b=2) == {}
    assert taken(every, "every", {"a": 1}, {"c": 3}) == {"c": 3}
    with pytest.raises(PluginError, match="loss x needs an argument 'b', but is given only a, z"):
        call(some, "loss x", a=1, z=2)


def test_where_code_is_is_told_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "explosive.py").write_text("raise SystemExit")
    (tmp_path / "folder_only").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert code_file("explosive:build") == tmp_path / "explosive.py"
    assert code_file("folder_only.module:build") == tmp_path / "folder_only"
    assert code_file("no_such_module_anywhere:build") is None
    assert code_file("sys:exit") is None


def test_all_errors_have_one_root() -> None:
    for kind in (DatasetError, BundleError, PluginError, SpecError, StudyError):
        assert issubclass(kind, SegtuneError)
    for kind in (ResourceError, ExportError):
        assert issubclass(kind, SegtuneError)
    assert issubclass(SegtuneError, ValueError)


def test_the_public_names_are_exactly_these() -> None:
    assert training.__all__ == [
        "Bundle",
        "ModelTrainingConfig",
        "SegmentationLightningModule",
        "SegmentationTrainer",
        "SegtuneError",
        "build_model",
        "get_dataloaders",
        "prepare_dataset",
    ]
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
        assert name in dir(training)
    with pytest.raises(AttributeError, match="no attribute 'Bundles'"):
        _ = training.Bundles


def test_names_and_errors_cost_no_torch() -> None:
    code = (
        "import sys, training, training.errors, training.registry, tuner.errors\n"
        "from training import ModelTrainingConfig\n"
        "ModelTrainingConfig(model_name='my_nets:build')\n"
        "assert not {'torch', 'ray', 'optuna', 'monai', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
