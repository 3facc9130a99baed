"""A search space for data, a device and a number of hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from training.config import ModelTrainingConfig
from tuner.errors import StudyError
from tuner.init.candidates import Plan, make_plan
from tuner.init.device import Device, find_device
from tuner.init.measure import Speed, estimate, measure
from tuner.init.schedule import plan_schedule
from tuner.init.survey import DataSurvey, survey_data
from tuner.init.write import write_space
from tuner.spec.load import parse_spec
from tuner.spec.recipes import unnamed_values
from tuner.spec.study_spec import StudySpec


def space_for(
    data_dir: str | Path,
    *,
    hours: float,
    gpu_memory: int | None = None,
    source: Path,
    on_progress: Callable[[str], None] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> StudySpec:
    """The search space for data; `source_text` is its commented YAML.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout, or `phantom`.
        hours: What a study may take.
        gpu_memory: Bytes of the GPU that it is for; that of this machine by default.
        source: Name of the file that it will be.
        on_progress: Called with a line about each step.
        on_case: Called with the step and its progress, after each case.

    Raises:
        DatasetError: for every problem of the data at once, by file.
        StudyError: if no network fits into the memory.
    """
    tell = on_progress or (lambda line: None)
    survey = survey_data(data_dir, on_progress, on_case)
    device = find_device(gpu_memory)
    plan = make_plan(survey, device)
    speeds: dict[str, Speed] = {}
    for name in list(plan.networks):
        speed = _speed(name, survey, device, plan)
        if speed is None:
            tell(f"{name} ran out of memory in a step, and is left out")
            plan.left_out[name] = plan.patch.bytes
            del plan.networks[name]
            continue
        speeds[name] = speed
        how = "measured" if speed.measured else "estimated"
        tell(f"{name}: {speed.step:.2g} s a step, {speed.validation:.2g} s a validation ({how})")
    if not speeds:
        raise StudyError(
            f"no network trains on {device.described}: give less with --gpu-memory, e.g. 8GB"
        )
    schedule = plan_schedule(
        hours,
        # trials are of all networks alike
        sum(speed.step for speed in speeds.values()) / len(speeds),
        sum(speed.validation for speed in speeds.values()) / len(speeds),
        kind=device.kind,
        at_once=device.trials,
        cases=len(survey.dataset.cases),
        alone=device.alone,
    )
    text = write_space(survey, device, plan, speeds, schedule, hours)
    return parse_spec(text, source=source)


def _speed(name: str, survey: DataSurvey, device: Device, plan: Plan) -> Speed | None:
    """What a network takes; None where a step runs out of memory."""
    base = {"model_name": name, "max_epochs": 81, "optimizer": plan.optimizer_of(name)}
    values = {
        **unnamed_values(base, set()),
        **base,
        "model_params": plan.networks[name],
        "patch_size": plan.patch.patch_size,
        "train_batch_size": plan.patch.batch_size,
        "gpus": 0 if device.kind == "cpu" else 1,
    }
    config = ModelTrainingConfig(**{**survey.base_config().model_dump(), **values})
    if not device.here:
        return estimate(config)
    try:
        return measure(config, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        if device.kind == "cuda":
            torch.cuda.empty_cache()
