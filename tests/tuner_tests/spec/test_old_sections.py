"""Sections that `policy` has replaced: translated in old studies, refused in new files."""

from __future__ import annotations

from pathlib import Path

import pytest
from spec_text import parse

from tuner.errors import SpecError
from tuner.spec.load import load_resolved_spec
from tuner.spec.policies import (
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    NoPolicy,
    PbtSettings,
    PolicySettings,
)
from tuner.study.create import create_study
from tuner.study.driver import change_budgets
from tuner.study.folder import RESOLVED_SPEC
from tuner.study.open import open_study
from tuner.study.spec_changes import spec_changes

GIVEN = """\
config: {max_epochs: 9, data_dir: phantom}
space: {learning_rate: {loguniform: [1e-4, 1e-2]}, scheduler: {choice: [cosine, poly]}}
search: {num_trials: 8}
"""

RESOLVED = """\
metric: val_dice
mode: max
config: {max_epochs: 9, data_dir: phantom}
space:
  learning_rate:
    loguniform: [0.0001, 0.01]
  scheduler:
    choice: [cosine, poly]
search:
  searcher: gp
  default_first: true
  start_from: []
  warm_start: []
  num_trials: 8
  epoch_budget: null
  gpu_hours: null
  seed: 0
  time_budget: null
%s
resources: {cpu: auto, gpu: auto, logical_gpus: false, max_concurrent: auto}
failures: {max_failures: 2, hang_timeout: null, on_out_of_memory: fail}
checkpoints: {keep: 5, disk_budget: null}
constraints: {max_parameters: null, max_memory: null}
confirm: false
"""
"""What the last version with the old sections wrote of `GIVEN`, but for these sections."""

PBT = """\
pbt: {perturbation_interval: 5, quantile_fraction: 0.25, resample_probability: 0.25,
  synchronous: true}"""

OLD = {
    "asha": (
        "scheduler: asha\n"
        "asha: {grace_period: 2, reduction_factor: 3, promotion: false, brackets: 1}\n" + PBT,
        "policy: {name: asha, grace_period: 2, promotion: false}",
        AshaSettings(grace_period=2, promotion=False),
    ),
    "none": ("scheduler: none\nasha: false\n" + PBT, "policy: none", NoPolicy()),
    "hyperband": (
        "scheduler: hyperband\n"
        "asha: {grace_period: 1, reduction_factor: 3, promotion: true, brackets: 1}\n" + PBT,
        "policy: hyperband",
        HyperbandSettings(),
    ),
    "median": (
        "scheduler: median\n"
        "asha: {grace_period: 3, reduction_factor: 3, promotion: true, brackets: 1}\n" + PBT,
        "policy: {name: median, grace_period: 3}",
        MedianSettings(grace_period=3),
    ),
    "pbt": (
        "scheduler: pbt\n"
        "asha: {grace_period: 4, reduction_factor: 3, promotion: true, brackets: 1}\n"
        + PBT.replace("l: 5", "l: 2"),
        "policy: {name: pbt, perturbation_interval: 2}",
        PbtSettings(perturbation_interval=2),
    ),
}


@pytest.mark.parametrize(("old", "new", "policy"), OLD.values(), ids=OLD)
def test_a_study_of_an_earlier_version_opens_and_goes_on(
    tmp_path: Path, old: str, new: str, policy: PolicySettings
) -> None:
    given = parse(f"{GIVEN}{new}\n")
    create_study(given, tmp_path, "s").record.close()
    resolved = tmp_path / "s" / RESOLVED_SPEC
    resolved.write_text(RESOLVED % old)
    study = open_study(tmp_path, "s")
    assert study.spec.policy == policy
    # what it does not name has the defaults of its time
    assert [change.describe() for change in spec_changes(study.spec, given)] == ["format: 1 -> 3"]
    study.record.close()
    # `tune run` with the new file, and a resumed study, take it as the same one
    again = create_study(given, tmp_path, "s")
    assert change_budgets(again, {}).spec.policy == policy
    again.record.close()
    assert load_resolved_spec(resolved).policy == policy
    assert "policy:" in resolved.read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("asha: {grace_period: 2}", "asha is now one section, policy: write `policy: {name: asha,"),
        ("asha: false", "section asha is now one section, policy: write `policy: none` instead"),
        ("scheduler: pasha", "scheduler is now one section, policy: write `policy: pasha`"),
        (
            "scheduler: pbt\nasha: {grace_period: 2}\npbt: {perturbation_interval: 3}",
            "sections scheduler, asha, pbt are now one section, policy: write "
            "`policy: {name: pbt, perturbation_interval: 3}` instead; pbt does not read "
            "asha.grace_period",
        ),
        (
            "asha: {grace_perod: 2, promotion: false}\npbt: {perturbation_interval: 3}",
            "`policy: {name: asha, promotion: false}` instead; asha does not read "
            "asha.grace_perod, pbt.perturbation_interval",
        ),
    ],
)
def test_a_new_file_with_old_sections_is_told_the_new_spelling(old: str, new: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(f"{GIVEN}{old}\n")
    (line,) = str(error.value).splitlines()
    assert line.startswith("s.yaml:4:1: ")
    assert new in line


def test_an_option_for_an_old_section_is_told_the_new_spelling() -> None:
    with pytest.raises(SpecError, match=r"--set asha=false: .* `policy: none`"):
        parse(GIVEN, asha="false")
    with pytest.raises(SpecError, match=r"asha__grace_period=2: .* `policy: \{name: asha, grace"):
        parse(GIVEN, asha__grace_period="2")


def test_a_schedule_outside_the_config_is_told_its_place() -> None:
    with pytest.raises(SpecError, match=r"e\.g\. config\.scheduler"):
        parse(f"{GIVEN}scheduler: cosine\n")
