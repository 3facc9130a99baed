from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from spec_text import parse

from training.config import ModelTrainingConfig
from tuner.errors import SpecError
from tuner.search.policies import POLICIES
from tuner.search.searchers import SEARCHERS
from tuner.spec.domains import Choice, LogUniform, QUniform, RandInt, Uniform
from tuner.spec.load import load_spec
from tuner.spec.policies import POLICY_SETTINGS, AshaSettings, MedianSettings, PashaSettings
from tuner.spec.read_metrics import METRICS
from tuner.spec.settings import SearchSettings

POLICY = "policy: {name: asha, grace_period: 1, reduction_factor: 3}"

GOOD = """\
metric: val_dice
config:
  max_epochs: 27
  data_dir: phantom
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  train_batch_size: {randint: [1, 4]}
  foreground_fraction: {quniform: [0.25, 0.75, 0.25]}
search: {num_trials: 9, time_budget: 1.5h}
policy: {name: asha, grace_period: 1, reduction_factor: 3}
resources: {gpu: 0.5}
"""


def problems(text: str, **overrides: Any) -> list[str]:
    with pytest.raises(SpecError) as error:
        parse(text, **overrides)
    return str(error.value).splitlines()


def test_a_good_file() -> None:
    spec = parse(GOOD)
    assert dict(spec.space.items()) == {
        "learning_rate": LogUniform(1e-5, 1e-2),
        "optimizer": Choice(("adamw", "sgd")),
        "momentum": Uniform(0.8, 0.99),
        "train_batch_size": RandInt(1, 4),
        "foreground_fraction": QUniform(0.25, 0.75, 0.25),
    }
    assert (spec.metric, spec.mode, spec.max_epochs) == ("val_dice", "max", 27)
    assert spec.search == SearchSettings(num_trials=9, time_budget=5400)
    assert spec.resources.gpu == 0.5
    assert spec.resources.cpu == "auto"
    config = spec.trial_config({"optimizer": "sgd", "momentum": 0.95})
    assert (config.optimizer, config.momentum, config.max_epochs) == ("sgd", 0.95, 27)
    assert (config.monitor, config.monitor_mode) == ("val_dice", "max")


def test_the_resolved_file_reads_back_the_same() -> None:
    for text in (GOOD, GOOD.replace(POLICY, "policy: none")):
        spec = parse(text)
        again = parse(spec.to_yaml())
        assert again.to_yaml() == spec.to_yaml()
        assert again.model_dump(exclude={"source_text", "space"}) == spec.model_dump(
            exclude={"source_text", "space"}
        )
        assert dict(again.space.items()) == dict(spec.space.items())
        assert again.space.conditions == spec.space.conditions


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.e-5", ".00001", "0.00001", "+1e-05"])
def test_numbers_as_people_write_them(number: str) -> None:
    domain = dict(parse(GOOD.replace("1e-5", number)).space.items())["learning_rate"]
    assert domain == LogUniform(1e-5, 1e-2)


def test_yes_no_and_norway_are_text() -> None:
    found = problems(GOOD.replace("max_epochs: 27", "deterministic: off"))
    assert found == ["s.yaml:3:18: deterministic='off': write true or false"]
    assert parse(GOOD.replace("max_epochs: 27", "deterministic: true")).base_config().deterministic


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "rungs"),
    [
        (1, 3, 243, (1, 3, 9, 27, 81)),
        (1, 3, 244, (1, 3, 9, 27, 81, 243)),
        (2, 4, 100, (2, 8, 32)),
        (5, 2, 5, ()),
        (1, 3, 1, ()),
    ],
)
def test_rungs(grace: int, factor: int, epochs: int, rungs: tuple[int, ...]) -> None:
    text = GOOD.replace("max_epochs: 27", f"max_epochs: {epochs}").replace(
        "grace_period: 1, reduction_factor: 3}",
        f"grace_period: {grace}, reduction_factor: {factor}}}",
    )
    assert parse(text).rungs() == rungs


def test_failures_and_checkpoints() -> None:
    text = GOOD + "failures: {hang_timeout: 30m}\ncheckpoints: {disk_budget: 20GB}\n"
    spec = parse(text)
    assert spec.failures.hang_timeout == 1800
    assert spec.checkpoints.disk_budget == 20 * 10**9
    again = parse(spec.to_yaml())
    assert (again.failures, again.checkpoints) == (spec.failures, spec.checkpoints)
    plain = parse(GOOD)
    assert (plain.failures.max_failures, plain.failures.on_out_of_memory) == (2, "fail")
    assert (plain.checkpoints.keep, plain.checkpoints.disk_budget) == (5, None)


def test_expected_epochs() -> None:
    # nine trials: all train 1 epoch, three 2 more, one 6 more, a third of one 18 more
    assert parse(GOOD).expected_epochs() == pytest.approx(9 * 1 + 3 * 2 + 1 * 6 + 18 / 3)
    plain = GOOD.replace(POLICY, "policy: none")
    assert parse(plain).expected_epochs() == 9 * 27


WRONG = [
    (
        "max_epochs: 27",
        "max_epoch: 27",
        "3:3: unknown field 'max_epoch'; did you mean 'max_epochs'",
    ),
    ("max_epochs: 27", "max_epochs: 0", "3:15: max_epochs=0: input should be greater than"),
    ("max_epochs: 27", "max_epochs: many", "3:15: max_epochs='many': input should be a valid int"),
    ("max_epochs: 27", "gpus: 2", "3:9: gpus is not set here: give it as `resources"),
    ("max_epochs: 27", "monitor: val_iou", "3:12: monitor is not set here: give it as `metric:`"),
    ("max_epochs: 27", "optimizer: adamw", "optimizer is fixed under `config` (s.yaml:3:14)"),
    ("max_epochs: 27", "loss: dice", "3:9: loss='dice' is not known; did you mean 'dice_ce'?"),
    ("max_epochs: 27", "class_weights.7: 2", "3:20: class_weights.7 names no class"),
    ("max_epochs: 27", "class_weights: [1, 2]", "3:3: class_weights has 2 entries"),
    ("max_epochs: 27", "patch_size: [8, 8]", "3:3: patch_size=[8, 8] has 2 entries"),
    ("max_epochs: 27", "nesterov: yes", "3:13: nesterov='yes'"),
    ("metric: val_dice", "metric: val_dic", "1:9: unknown metric 'val_dic'; did you mean 'val_di"),
    ("metric: val_dice", "mode: min", "1:7: mode='min' does not fit metric val_dice"),
    ("metric: val_dice", "metrics: val_dice", "1:1: unknown section 'metrics'; did you mean 'met"),
    ("metric: val_dice", "learning_rate: 1", "1:1: unknown section 'learning_rate': fixed values"),
    ("[1e-5, 1e-2]", "[1e-2, 1e-5]", "6:19: `low < high` must hold, but got (low=0.01, high=1e-0"),
    ("[1e-5, 1e-2]", "[0, 1e-2]", "6:19: loguniform needs low > 0"),
    ("[1e-5, 1e-2]", "[1e-5]", "6:19: loguniform needs [low, high], but got [1e-05]"),
    ("loguniform", "loguniforn", "6:19: unknown domain 'loguniforn'; did you mean 'loguniform'"),
    ("{loguniform: [1e-5, 1e-2]}", "1e-4", "6:18: learning_rate needs a domain"),
    ("[adamw, sgd]", "[adamw, sdg]", "7:31: optimizer='sdg' is not known; did you mean 'sgd'?"),
    ("[adamw, sgd]", "adamw", "7:23: choice needs a list of values, but got 'adamw'"),
    ("[adamw, sgd]", "[]", "7:15: choice needs at least one value"),
    ("[0.8, 0.99]", "[0.8, 1.0]", "8:14: momentum=1.0: input should be less than 1"),
    ("optimizer: sgd}", "optimizer: sdg}", "8:54: optimizer is never 'sdg' in this space; did yo"),
    ("optimizer: sgd}", "optimiser: sgd}", "8:43: unknown field 'optimiser'; did you mean 'opti"),
    ("{optimizer: sgd}", "{learning_rate: 1e-3}", "when needs a choice or randint, but learning"),
    ("randint: [1, 4]", "uniform: [1, 4]", "9:22: train_batch_size=1.9549"),
    ("randint: [1, 4]", "randint: [0, 4]", "9:22: train_batch_size=0: input should be greater"),
    ("train_batch_size", "max_epochs", "9:3: max_epochs is the full budget"),
    ("train_batch_size", "split_seed", "9:3: split_seed cannot vary"),
    ("[0.25, 0.75, 0.25]", "[0.25, 0.7, 0.25]", "10:25: steps of 0.25 from 0.25 do not end at"),
    ("num_trials: 9", "num_trial: 9", "11:10: unknown name 'num_trial'; did you mean 'num_trials"),
    ("num_trials: 9", "num_trials: 0", "11:22: num_trials=0: input should be greater than or"),
    ("num_trials: 9", "searcher: tpee", "11:20: searcher='tpee' is not known; did you mean 'tpe"),
    ("1.5h", "soon", "11:38: time_budget='soon': 'soon' is not a duration"),
    ("grace_period: 1", "grace_period: 30", "12:36: grace_period=30 must not be above max_epochs="),
    ("reduction_factor: 3", "reduction_factor: 1", "12:57: reduction_factor=1: input should be"),
    ("gpu: 0.5", "gpu: 1.5", "13:18: gpu=1.5: a trial uses whole GPUs, or a fraction of one"),
    ("gpu: 0.5", "gpu: -1", "13:18: gpu=-1: input should be greater than or equal to 0"),
    (
        "gpu: 0.5",
        "cpu: lots",
        "13:18: cpu='lots' is not known and is not a number; choose from auto",
    ),
    ("resources: {gpu: 0.5}", "resources: 3", "13:12: resources must be a mapping"),
    ("resources: {gpu: 0.5}", "failures: [1]", "13:1: failures must be a mapping of names"),
    ("resources: {gpu: 0.5}", "failures: {max_failures: -1}", "13:26: max_failures=-1: input sho"),
    ("resources: {gpu: 0.5}", "failures: {hang_timeout: 0}", "13:26: hang_timeout=0"),
    ("resources: {gpu: 0.5}", "failures: {on_out_of_memory: no}", "13:30: on_out_of_memory"),
    ("resources: {gpu: 0.5}", "checkpoints: {keep: 0}", "13:21: keep=0: input should be greater"),
    ("resources: {gpu: 0.5}", "checkpoints: {disk_budget: much}", "13:28: disk_budget='much'"),
    ("resources: {gpu: 0.5}", "checkpoint: {keep: 1}", "13:1: unknown section 'checkpoint'; did"),
    ("resources: {gpu: 0.5}", "metric: val_iou", "13:1: 'metric' comes twice, first at s.yaml:1:1"),
    ("resources: {gpu: 0.5}", "resources: {gpu: 0.5", "not valid YAML"),
    (POLICY, "policy: {name: ashs}", "12:16: unknown policy 'ashs'; did you mean 'asha'?"),
    (POLICY, "policy: hyperbnd", "12:9: unknown policy 'hyperbnd'; did you mean 'hyperband'?"),
    (POLICY, "policy: [asha]", "12:1: policy must be a name, or a mapping such as"),
    (POLICY, "policy: {name: hyperband, grace_period: 2}", "12:27: policy=hyperband: unknown name"),
    (POLICY, "policy: {name: pasha, promotion: true}", "12:23: policy=pasha: unknown name 'promo"),
    (POLICY, "policy: {name: median, grace_period: 28}", "12:38: grace_period=28 must not be abo"),
    ("resources: {gpu: 0.5}", "\tresources: 1", "13:1: not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_files(old: str, new: str, message: str) -> None:
    assert GOOD.count(old) >= 1
    found = problems(GOOD.replace(old, new, 1))
    assert any(message in line and line.startswith("s.yaml:") for line in found), found


def test_all_problems_come_at_once() -> None:
    text = GOOD.replace("max_epochs", "max_epoch").replace("sgd]", "sdg]").replace("0.5}", "1.5}")
    assert [line.split(":")[1] for line in problems(text)] == ["3", "7", "13"]


def test_values_that_do_not_fit_together_are_found_before_the_start() -> None:
    text = GOOD.replace("max_epochs: 27", "max_epochs: 4").replace(
        "  train_batch_size: {randint: [1, 4]}",
        "  scheduler: {choice: [none, cosine]}\n"
        "  warmup_epochs: {randint: [0, 8], when: {scheduler: cosine}}",
    )
    (found,) = problems(text)
    assert found.startswith("s.yaml:10:3: with ")
    assert "must be below max_epochs=4" in found


@pytest.mark.parametrize("text", ["", "# nothing\n", "metric: val_dice\n", "space: {}\n"])
def test_files_without_a_space(text: str) -> None:
    assert "space" in problems(text)[0]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_files_that_are_no_mapping(text: str) -> None:
    assert "a search space is a mapping of metric, mode, config" in problems(text)[0]


def test_overrides_fix_fields_and_settings() -> None:
    spec = parse(GOOD, optimizer="adamw", search__num_trials="3", config__max_epochs="9")
    assert "optimizer" not in dict(spec.space.items())
    assert "momentum" not in dict(spec.space.items())
    assert spec.config["optimizer"] == "adamw"
    assert (spec.search.num_trials, spec.max_epochs) == (3, 9)
    always = parse(GOOD, optimizer="sgd")
    assert not always.space.conditions
    assert "momentum" in dict(always.space.items())
    widened = parse(GOOD, space__weight_decay="{uniform: [0, 0.1]}", policy="none")
    assert "weight_decay" in dict(widened.space.items())
    assert widened.policy.name == "none"


def test_the_policy_is_given_by_name_or_with_settings() -> None:
    plain = GOOD.replace(POLICY, "")
    assert parse(plain).policy == AshaSettings()
    for text in ("policy: pasha", "policy: {name: pasha}"):
        assert parse(plain + text).policy == PashaSettings()
    assert parse(plain + "policy: {grace_period: 2}").policy == AshaSettings(grace_period=2)
    widened = parse(plain + "policy: median", policy__grace_period="3")
    assert widened.policy == MedianSettings(grace_period=3)
    assert parse(plain, policy__reduction_factor="2").policy == AshaSettings(reduction_factor=2)
    # beside the learning-rate schedule, which is a field of the config
    assert parse(GOOD, scheduler="cosine").config["scheduler"] == "cosine"
    (found,) = problems(GOOD, scheduler="pasha")
    assert "scheduler='pasha' is not known" in found
    assert "what stops trials is the section policy: policy=pasha" in found


def test_a_setting_of_a_policy_needs_no_section() -> None:
    plain = GOOD.replace(POLICY, "")
    assert parse(plain, grace_period="2").policy == AshaSettings(grace_period=2)
    assert parse(plain + "policy: pasha", grace_period="2").policy == PashaSettings(grace_period=2)
    assert problems(GOOD, perturbation_interval="2") == [
        "--set perturbation_interval=2: policy=asha: unknown name 'perturbation_interval'; choose "
        "from name, grace_period, reduction_factor, brackets, promotion"
    ]
    # of what, a name by itself does not say
    assert problems(GOOD, name="pbt")[0].startswith("--set name=pbt: unknown field 'name'")


def test_the_nearest_name_of_an_option_may_be_a_setting() -> None:
    assert problems(GOOD, num_trils="3") == [
        "--set num_trils=3: unknown field 'num_trils'; did you mean 'num_trials'?"
    ]


def test_a_metric_has_no_parts() -> None:
    assert problems(GOOD, metric__name="val_iou") == [
        "--set metric__name=val_iou: metric has no parts: write metric=VALUE"
    ]


def test_a_value_that_contains_itself_is_refused() -> None:
    assert problems("metric: &a [*a]\nspace: {}\n") == [
        "s.yaml:1:9: a value must not contain itself"
    ]
    # the same values in two places are not that
    domain = "&rate {uniform: [0.1, 0.2]}"
    twice = f"space:\n  learning_rate: {domain}\n  weight_decay: *rate\n"
    domains = parse(twice).space.domains
    assert domains["weight_decay"] == domains["learning_rate"]


def test_a_choice_of_no_number_is_found_at_its_place() -> None:
    (found,) = problems("space:\n  learning_rate: {choice: [0.1, .nan]}\n")
    assert found == "s.yaml:2:33: learning_rate=nan: input should be a finite number"


def test_a_wrong_entry_is_shown_in_its_list() -> None:
    (found,) = problems(GOOD, patch_size="[32, 0, 64]")
    assert "patch_size=[32, 0, 64]: input should be greater than" in found


def test_wrong_overrides_name_the_option() -> None:
    assert problems(GOOD, optimiser="sgd") == [
        "--set optimiser=sgd: unknown field 'optimiser'; did you mean 'optimizer'?"
    ]
    assert problems(GOOD, search__num_trials="x")[0].startswith("--set search__num_trials=x: ")
    assert "not valid YAML" in problems(GOOD, patch_size="[1, 2")[0]


@pytest.mark.parametrize("metric", [*METRICS, "val_dice_1", "val_nsd_2"])
def test_metrics_are_logged_and_have_their_mode(metric: str) -> None:
    spec = parse(GOOD.replace("val_dice", metric))
    assert spec.mode == ("min" if metric == "val_loss" else "max")


@pytest.mark.parametrize("metric", ["val_dice_3", "val_nsd_3"])
def test_a_class_metric_needs_its_class(metric: str) -> None:
    text = GOOD.replace("metric: val_dice", f"metric: {metric}")
    assert parse(text).metric == metric
    found = problems(text, num_classes=3)
    assert f"{metric} names no foreground class: they are 1, 2" in found[0]


def test_relative_data_folders_are_fixed_to_where_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = parse(GOOD, data_dir="data/liver")
    assert spec.config["data_dir"] == str(tmp_path / "data" / "liver")
    assert parse(GOOD).config["data_dir"] == "phantom"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "liver.yaml").write_text(GOOD)
    with pytest.raises(
        SpecError, match=r"no search space .*livr\.yaml; did you mean .*liver\.yaml"
    ):
        load_spec(tmp_path / "livr.yaml")
    with pytest.raises(SpecError, match=r"is a folder, not a search space: `tune init .*` writes"):
        load_spec(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        load_spec(tmp_path / "binary.yaml")


def test_names_known_to_the_spec_are_those_that_exist() -> None:
    for name in SEARCHERS:
        assert SearchSettings(searcher=name).searcher == name
        assert callable(SEARCHERS.resolve(name))
    assert set(POLICIES) == set(POLICY_SETTINGS)


def test_reading_a_space_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, tuner.spec, training.config;"
        "print({'torch', 'ray', 'monai', 'optuna', 'pytorch_lightning'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_every_config_field_is_documented() -> None:
    for name, field in ModelTrainingConfig.model_fields.items():
        assert field.description, name
