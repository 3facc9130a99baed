"""Policies stop, pause or change trials while they train.

Rungs are kept in the study's record, not in the policy, so a resumed study has them at
once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from training.errors import PluginError
from training.registry import taken
from tuner.search.policies.asha import PromotionAsha, RungPolicy, StoppingAsha
from tuner.search.policies.fold_race import FoldRace
from tuner.search.policies.hyperband import Hyperband
from tuner.search.policies.median import MedianStopping
from tuner.search.policies.pasha import Pasha
from tuner.search.policies.pb2 import PopulationBandits
from tuner.search.policies.pbt import PopulationTraining
from tuner.search.policies.planned import PlannedPolicy, planned
from tuner.search.policies.policy import Action, Decision, Policy
from tuner.spec.brackets import hyperband_brackets
from tuner.spec.grid import planned_trials
from tuner.spec.policies import (
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    OwnPolicySettings,
    PashaSettings,
    Pb2Settings,
    PbtSettings,
    PolicySettings,
)
from tuner.spec.registry import POLICIES

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord

__all__ = [
    "POLICIES",
    "Action",
    "Decision",
    "FoldRace",
    "Hyperband",
    "MedianStopping",
    "Pasha",
    "PlannedPolicy",
    "Policy",
    "PopulationBandits",
    "PopulationTraining",
    "PromotionAsha",
    "RungPolicy",
    "StoppingAsha",
    "build_policy",
    "planned",
]

Settings = TypeVar("Settings", bound=PolicySettings)


def _settings(spec: StudySpec, kind: type[Settings]) -> Settings:
    assert isinstance(spec.policy, kind)
    return spec.policy


def asha(record: StudyRecord, spec: StudySpec) -> Policy:
    """ASHA with the rungs of the spec, stopping or promoting."""
    settings = _settings(spec, AshaSettings)
    kind = PromotionAsha if settings.promotion else StoppingAsha
    return kind(
        record, spec.rungs(), settings.reduction_factor, settings.brackets, spec.search.seed
    )


def pasha(record: StudyRecord, spec: StudySpec) -> Policy:
    """Progressive ASHA with the rungs of the spec."""
    settings = _settings(spec, PashaSettings)
    return Pasha(
        record, spec.rungs(), settings.reduction_factor, settings.brackets, spec.search.seed
    )


def median(record: StudyRecord, spec: StudySpec) -> Policy:
    """Median stopping after the spec's grace period."""
    return MedianStopping(record, _settings(spec, MedianSettings).grace_period)


def hyperband(record: StudyRecord, spec: StudySpec) -> Policy:
    """Hyperband with the brackets of the full budget and the spec's reduction factor."""
    factor = _settings(spec, HyperbandSettings).reduction_factor
    brackets = hyperband_brackets(spec.max_epochs, factor)
    return Hyperband(record, brackets, factor, planned_trials(spec))


def pbt(record: StudyRecord, spec: StudySpec) -> Policy:
    """Population based training."""
    settings = _settings(spec, PbtSettings)
    return PopulationTraining(
        record, settings, planned_trials(spec), spec.max_epochs, spec.search.seed
    )


def pb2(record: StudyRecord, spec: StudySpec) -> Policy:
    """Population based bandits."""
    settings = _settings(spec, Pb2Settings)
    return PopulationBandits(
        record, settings, planned_trials(spec), spec.max_epochs, spec.search.seed
    )


def none(record: StudyRecord, spec: StudySpec) -> Policy:
    """Every trial trains to the full budget."""
    return Policy(record)


def build_policy(record: StudyRecord, spec: StudySpec) -> Policy:
    """The policy that the spec asks for; with several folds it is that of the first one.

    Raises:
        PluginError: if a user's own cannot be built with its settings.
    """
    name = spec.policy.name
    build = POLICIES.resolve(name)
    own: dict[str, Any] = {}
    if isinstance(spec.policy, OwnPolicySettings):
        spec.policy.check(build)
        own = spec.policy.settings
    given = {"record": record, "spec": spec}
    policy = build(**taken(build, f"policy {name}", given, own))
    if not isinstance(policy, Policy):
        raise PluginError(
            f"policy {name} gave {policy!r}, which is not a tuner.search.policies.Policy"
        )
    if spec.folds == 1:
        return policy
    return FoldRace(record, policy, spec.folds, planned_trials(spec), race=spec.search.race)
