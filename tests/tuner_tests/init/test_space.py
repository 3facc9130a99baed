"""Search spaces that are written for data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from raw_data import boxes, make_data

import tuner
from training.models.patch_plan import PatchPlan
from tuner.api import studies
from tuner.cli.main import main
from tuner.errors import SpecError, StudyError
from tuner.init.candidates import Plan, make_plan
from tuner.init.device import Device, find_device
from tuner.init.measure import Speed, measure
from tuner.init.schedule import plan_schedule
from tuner.init.survey import split_of, survey_data
from tuner.init.write import write_space
from tuner.spec.load import load_spec, parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.create import create_study

GPU = Device("cuda", 21.5e9, 2, 4, False, "a GPU of 24 GB")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "Kidneys: both"
    cases = {f"case_{number:02}": boxes(1, 2) for number in range(12)}
    names = ("background", "left kidney", "right kidney")
    make_data(folder, cases, names=names)
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="this test is of a machine without a GPU")
def test_a_space_for_the_cpu_is_valid_and_says_why(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    spec = tuner.init_space(raw, path, hours=0.5, progress=False)
    assert path.read_text() == spec.source_text
    assert load_spec(path).to_dict() == spec.to_dict()
    config = spec.base_config()
    assert (config.num_classes, config.input_channels) == (3, 1)
    assert config.mirror_axes == ["depth", "height"]
    assert config.data_dir == raw
    assert spec.search.time_budget == 1800
    # every value of the config but those that say what the data are has its reason
    assert "labels name sides (left kidney, right kidney)" in spec.source_text
    assert "(measured)" in spec.source_text
    assert "12 cases of MRI (MR)" in spec.source_text
    default = spec.trial_config(spec.default_point())
    assert (default.optimizer, default.scheduler, default.learning_rate) == ("adamw", "wsd", 1e-3)
    assert default.warmup_epochs >= 1
    assert "momentum" not in spec.space.domains


def test_a_space_for_a_gpu_that_is_elsewhere_is_estimated(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spec = tuner.init_space(raw, hours=8, gpu_memory="24GB", progress=False)
    assert spec.source_text.count("(estimated: as nnU-Net on an A100)") == 4
    assert "which is not in this machine" in spec.source_text
    values = yaml.safe_load(spec.source_text)
    assert values["space"]["model_name"] == {
        "choice": ["resenc_unet", "dynunet", "mednext", "segresnet"]
    }
    # each network has what belongs to it
    point = {**spec.default_point(), "model_name": "segresnet", "model_params.init_filters": 32}
    point.pop("momentum")
    assert spec.trial_config(point).optimizer == "adamw"
    default = spec.trial_config(spec.default_point())
    assert (default.learning_rate, default.momentum, default.nesterov) == (0.01, 0.99, True)


def test_networks_that_do_not_fit_are_left_out_and_named() -> None:
    survey = survey_data("phantom")
    small = Device("cuda", 0.9e9, 1, 4, False, "a small GPU")
    plan = make_plan(survey, small)
    assert "mednext" in plan.left_out
    assert set(plan.networks) | set(plan.left_out) == {
        "resenc_unet",
        "dynunet",
        "mednext",
        "segresnet",
    }
    assert all(needed > small.memory for needed in plan.left_out.values())
    assert plan.patch.bytes <= small.memory
    # a whole case where there is room for it
    assert all(
        patch >= size
        for patch, size in zip(make_plan(survey, GPU).patch.patch_size, survey.shape, strict=True)
    )
    with pytest.raises(StudyError, match="no search space can be written for a tiny GPU"):
        make_plan(survey, Device("cuda", 1e7, 1, 1, False, "a tiny GPU"))


def test_networks_may_have_arguments_of_one_name() -> None:
    survey = survey_data("phantom")
    networks = {
        "dynunet": {"filters": [4, 8, 8, 8], "act_name": "relu"},
        "resenc_unet": {"filters": [8, 8, 8, 8]},
        "segresnet": {},
    }
    plan = Plan(networks, PatchPlan((16, 32, 32), 2, 10**9))
    speeds = {name: Speed(0.1, 1.0, 0, True) for name in networks}
    schedule = plan_schedule(1, 0.1, 1.0, kind="cpu", at_once=1, cases=24)
    text = write_space(survey, GPU, plan, speeds, schedule, 1)
    spec = parse_spec(text, source="s")
    filters = spec.space.domains["model_params.filters"]
    assert filters.options == ([4, 8, 8, 8], [8, 8, 8, 8])
    assert spec.space.conditions["model_params.filters"] == {
        "model_name": ["dynunet", "resenc_unet"]
    }
    assert spec.space.domains["model_params.act_name"].options == ("relu",)


def test_a_step_is_measured_on_the_data() -> None:
    survey = survey_data("phantom")
    config = survey.base_config().model_copy(
        update={
            "model_name": "unet3d",
            "model_params": {"channels": [4, 8], "num_res_units": 0},
            "patch_size": (16, 32, 32),
        }
    )
    threads = torch.get_num_threads()
    device = Device("cpu", 3e9, 1, 1, True, "one core")
    speed = measure(config, device)
    assert speed.measured
    assert 0 < speed.step < 60
    assert 0 < speed.validation < 600
    assert torch.get_num_threads() == threads


def test_few_cases_are_not_kept_apart() -> None:
    assert split_of(6)["test_fraction"] == 0
    assert split_of(10)["test_fraction"] == 0.2


def test_the_device_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device().kind == "cpu"
    elsewhere = find_device(24_000_000_000)
    assert (elsewhere.kind, elsewhere.here) == ("cuda", False)
    assert elsewhere.memory == 21.5e9
    assert elsewhere.precision == "16-mixed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "there.yaml"}, "there.yaml is there already: choose another name, or give"),
        ({"output": "."}, "is a folder: name the file to write"),
        ({"output": "no/such/space.yaml"}, "there is no folder no/such"),
        ({"hours": 0}, "hours=0 is no time for a search"),
        ({"gpu_memory": "much"}, "gpu_memory='much' is not a size: write e.g. 24GB"),
        ({"gpu_memory": "2GB"}, "gpu_memory=2GB is too little to train"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_data_are_read(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("mine")
    with pytest.raises(SpecError, match=message):
        tuner.init_space("no such data", **options)
    assert Path("there.yaml").read_text() == "mine"


def test_the_command_writes_a_space_that_check_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "space.yaml"
    assert main(["init", "phantom", "-o", str(path), "--hours", "0.1"]) == 0
    assert f"next    tune run {path}" in capsys.readouterr().out
    assert main(["check", str(path)]) == 0
    assert "is valid: max val_dice" in capsys.readouterr().out
    assert main(["init", "phantom", "-o", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["run", str(path), "--hours", "1"]) == 2
    assert "--hours 1.0 is for a folder of data" in capsys.readouterr().err


def test_run_writes_the_space_of_a_folder_once(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The study is made, and trains nothing here."""
    begun: list[StudySpec] = []

    def run(spec: StudySpec, name: str, **_: object) -> None:
        create_study(spec, tmp_path, name).record.close()
        begun.append(spec)
        raise StudyError("this test trains nothing")

    monkeypatch.setattr(studies, "run", run)
    command = ["run", str(raw), "--hours", "0.5", "--studies-dir", str(tmp_path)]
    command += ["--name", "both", "--set", "search.seed=7"]
    assert main(command) == 2
    written = tmp_path / "both" / "spec.yaml"
    assert f"the search space is {written}" in capsys.readouterr().out
    assert written.read_text().startswith("# Kidneys: both: 12 cases")
    assert begun[0].search.seed == 7
    assert begun[0].search.time_budget == 1800
    # the same command goes on with the study: nothing is measured again
    monkeypatch.setattr("tuner.init.space.space_for", None)
    assert main(command) == 2
    assert begun[1] == begun[0]
