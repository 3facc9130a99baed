"""Code of a user's own in a search space."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_package import forget_package, importable, write_package

from training.registry import MODELS
from tuner.errors import SpecError
from tuner.search.policies import Decision, Policy, build_policy
from tuner.spec.load import parse_spec
from tuner.spec.plugins import import_plugins
from tuner.spec.registry import SEARCHERS
from tuner.spec.study_spec import StudySpec
from tuner.spec.yaml_source import plain_value
from tuner.study.record import StudyRecord

SPACE = """\
metric: [liver_lab.metrics:volume_error, val_dice]
mode: [min, max]
config:
  num_classes: 3
  lightning_module: liver_lab.module:LabModule
  model_params: {width: 3}
  scheduler: liver_lab.training:halved
space:
  model_name: {choice: [liver_lab.nets:build_tiny, liver_lab.nets:TinyNet]}
  loss: {choice: [dice_ce, liver_lab.training:SmoothCrossEntropy]}
  learning_rate: {loguniform: [1e-4, 1e-1]}
  optimizer: {choice: [sgd, liver_lab.training:rmsprop]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
search: {num_trials: 4, searcher: liver_lab.search:first_draw}
policy: {name: liver_lab.search:stop_odd}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    with importable(tmp_path / "lab") as folder:
        yield folder


def parse(text: str = SPACE) -> StudySpec:
    return parse_spec(text, source="s.yaml")


def test_names_stay_as_they_are_written(lab: Path) -> None:
    spec = parse()
    assert "liver_lab" not in sys.modules
    again = parse(spec.to_yaml())
    assert again.to_yaml() == spec.to_yaml()
    assert again.objectives == (("liver_lab.metrics:volume_error", "min"), ("val_dice", "max"))
    config = again.trial_config({"model_name": "liver_lab.nets:TinyNet"})
    assert config.model_name == "liver_lab.nets:TinyNet"
    assert (config.monitor, config.monitor_mode) == ("liver_lab.metrics:volume_error", "min")
    assert config.lightning_module == "liver_lab.module:LabModule"
    second = parse(
        SPACE.replace("[liver_lab.metrics:volume_error, val_dice]", "val_dice").replace(
            "[min, max]", "max"
        )
    )
    assert second.base_config().own_metrics == []
    swapped = parse(
        SPACE.replace(
            "[liver_lab.metrics:volume_error, val_dice]",
            "[val_dice, liver_lab.metrics:volume_error]",
        ).replace("[min, max]", "[max, min]")
    )
    assert swapped.base_config().own_metrics == ["liver_lab.metrics:volume_error"]


def test_everything_that_is_named_is_imported(lab: Path) -> None:
    found = import_plugins(parse())
    assert sorted(found) == [
        "liver_lab.metrics:volume_error",
        "liver_lab.module:LabModule",
        "liver_lab.nets:TinyNet",
        "liver_lab.nets:build_tiny",
        "liver_lab.search:first_draw",
        "liver_lab.search:stop_odd",
        "liver_lab.training:SmoothCrossEntropy",
        "liver_lab.training:halved",
        "liver_lab.training:rmsprop",
    ]


def test_modules_beside_the_search_space_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_package(tmp_path / "beside")
    source = tmp_path / "beside" / "space.yaml"
    import_plugins(parse_spec(SPACE, source=source))
    # after all others, so that no file of the user's hides a module of a library
    assert sys.path[-1] == str(tmp_path / "beside")
    assert str(Path.cwd()) in sys.path
    forget_package()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "nets:TinyNet",
            "nets:TinyNett",
            r"s.yaml:9:52: model_name: network .*did you mean 'TinyNet'",
        ),
        ("search:stop_odd", "search:stop_od", r"s.yaml:15:16: policy: .*did you mean 'stop_odd'"),
        ("search:first", "serch:first", r"s.yaml:14:35: searcher: .*no module liver_lab.serch"),
        ("metrics:volume_error", "metrics:volumes", r"s.yaml:1:10: metric: .*has no 'volumes'"),
    ],
)
def test_a_path_that_leads_nowhere_names_its_field(
    lab: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        import_plugins(parse(SPACE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mode: [min, max]\n", "", "s.yaml:1:10: mode is needed, since liver_lab.metrics"),
        ("[min, max]", "[least, max]", "mode is needed, since"),
        ("[min, max]", "[min, min]", r"does not fit metric .*: write \[min, max\]"),
        (":TinyNet]", ":Tiny Net]", "is not an import path: write package.module:function"),
        ("val_dice]", "val_dicee]", ""),
    ],
)
def test_what_is_wrong_has_a_place(old: str, new: str, message: str) -> None:
    text = SPACE.replace(old, new)
    if not message:
        # the module may log it, but its mode is not known otherwise
        assert parse(text).further_metrics == (("val_dicee", "max"),)
        text = text.replace("  lightning_module: liver_lab.module:LabModule\n", "")
        message = "unknown metric 'val_dicee'; did you mean 'val_dice'"
    with pytest.raises(SpecError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("liver_lab.training:Smooth", "liver_odd:Smooth", "loss liver_odd:.*argument 'size'"),
        ("liver_lab.training:rms", "liver_odd:rms", "optimizer liver_odd:.*argument 'model'"),
        ("liver_lab.training:halved", "liver_odd:halved", "schedule .*argument 'epochs'"),
        ("liver_lab.metrics:volume", "liver_odd:volume", "metric .*argument 'label'"),
        ("liver_lab.search:first", "liver_odd:first", "searcher .*must take one argument"),
        ("liver_lab.search:stop", "liver_odd:stop", "policy .*argument 'fraction'"),
        ("liver_lab.module:LabM", "liver_odd:LabM", "must be a subclass of training.lightning"),
    ],
)
def test_what_cannot_be_called_is_refused(lab: Path, old: str, new: str, message: str) -> None:
    (lab / "liver_odd.py").write_text(
        "def SmoothCrossEntropy(size): ...\n"
        "def rmsprop(model): ...\n"
        "def halved(epochs): ...\n"
        "def volume_error(label): ...\n"
        "def first_draw(): ...\n"
        "def stop_odd(fraction): ...\n"
        "class LabModule: ...\n"
    )
    with pytest.raises(SpecError, match=message):
        import_plugins(parse(SPACE.replace(old, new)))


def test_what_only_a_module_logs_cannot_be_confirmed() -> None:
    logged = SPACE.replace("liver_lab.metrics:volume_error", "val_epochs_seen")
    assert parse(logged).metric == "val_epochs_seen"
    with pytest.raises(SpecError, match="confirm cannot measure val_epochs_seen on test cases"):
        parse(f"{logged}confirm: {{top: 1}}\n")
    assert parse(f"{SPACE}confirm: {{top: 1}}\n").confirm is not None


def test_functions_become_names(lab: Path) -> None:
    from liver_lab.nets import TinyNet, build_tiny

    given: dict[str, Any] = {
        "config": {"loss": "focal"},
        "space": {"model_name": {"choice": [build_tiny, TinyNet, MODELS.resolve("dynunet")]}},
        "search": {"searcher": SEARCHERS.resolve("tpe")},
    }
    spec = StudySpec.from_dict(given)
    assert spec.space.domains["model_name"].options == (
        "liver_lab.nets:build_tiny",
        "liver_lab.nets:TinyNet",
        "dynunet",
    )
    assert spec.search.searcher == "tpe"
    assert parse(spec.to_yaml()).to_yaml() == spec.to_yaml()
    with pytest.raises(SpecError, match=r"space.model_name.choice.1: .*is a lambda"):
        plain_value({"space": {"model_name": {"choice": [build_tiny, lambda: None]}}}, "")


def test_a_recipe_of_ones_own_is_the_default(lab: Path) -> None:
    spec = parse()
    point = spec.default_point()
    assert point == {
        "model_name": "liver_lab.nets:build_tiny",
        "loss": "dice_ce",
        "learning_rate": 0.02,
        "optimizer": "sgd",
        "momentum": 0.9,
    }
    # of another optimizer its learning rate says nothing
    other = parse(
        SPACE.replace("choice: [sgd, liver", "choice: [adamw, liver").replace(
            "when: {optimizer: sgd}", "when: {optimizer: adamw}"
        )
    )
    assert other.default_point()["learning_rate"] == pytest.approx(1e-4)


def test_a_study_can_be_looked_at_without_its_code() -> None:
    assert parse().default_point()["learning_rate"] == pytest.approx(1e-4)


def test_a_wrong_recipe_is_refused(lab: Path) -> None:
    from liver_lab.nets import build_tiny

    build_tiny.recipe = {"learning_rat": 1}
    with pytest.raises(ValueError, match="'learning_rat', which is not a config field; did you"):
        parse().default_point()
    build_tiny.recipe = ["adamw"]
    with pytest.raises(ValueError, match="must map config fields to values"):
        parse().default_point()


def test_settings_of_a_policy_of_ones_own_fit_its_parameters(tmp_path: Path, lab: Path) -> None:
    import liver_lab.search

    class Share(Policy):
        """Keeps the settings that it was given."""

    def share(record: StudyRecord, part: float = 0.5, whole: bool = False) -> Policy:
        policy = Share(record)
        policy.given = (part, whole)  # type: ignore[attr-defined]
        return policy

    liver_lab.search.share = share
    named = SPACE.replace(
        "{name: liver_lab.search:stop_odd}", "{name: 'liver_lab.search:share', part: 0.25}"
    )
    spec = parse(named)
    assert parse(spec.to_yaml()).policy == spec.policy
    record = StudyRecord(tmp_path, spec.space, spec.mode)
    policy: Any = build_policy(record, spec)
    assert policy.given == (0.25, False)
    with pytest.raises(ValueError, match="has no setting 'prt'; did you mean 'part'"):
        build_policy(record, parse(named.replace("part:", "prt:")))
    liver_lab.search.share = lambda: Decision
    with pytest.raises(ValueError, match="which is not a"):
        build_policy(record, parse(named.replace(", part: 0.25", "")))
    record.close()
