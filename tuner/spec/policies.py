"""The section `policy`: what stops, pauses or changes trials, and the settings that each reads.

A policy here is its settings alone; what it decides is in `tuner.search.policies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from training.errors import PluginError
from training.registry import is_plugin, parameters_of, taken
from tuner.errors import suggestion
from tuner.spec.brackets import expected_epochs, hyperband_brackets
from tuner.spec.settings import Number, Section, Whole

DEFAULT_POLICY = "asha"


class PolicySettings(Section):
    """Base of the settings of all policies: every trial trains to the end."""

    FORM: ClassVar[str] = "a name, or a mapping such as {name: asha, grace_period: 2}"

    name: str
    """Key of `tuner.spec.registry.POLICIES`, or an import path of your own."""

    exchanges_weights: ClassVar[bool] = False
    """Whether trials copy each other's weights."""

    @classmethod
    def expand(cls, given: Any) -> Any:
        """`asha` is short for `{name: asha}`."""
        return {"name": given} if isinstance(given, str) else given

    @classmethod
    def kind(cls, settings: Mapping[str, Any]) -> type[Section]:
        """The settings of the policy that is named.

        Raises:
            ValueError: if there is no policy of that name.
        """
        name = settings.get("name", DEFAULT_POLICY)
        if is_plugin(name):
            return OwnPolicySettings
        if not isinstance(name, str) or name not in POLICY_SETTINGS:
            raise ValueError(f"unknown policy {name!r}{suggestion(name, POLICY_SETTINGS)}")
        return POLICY_SETTINGS[name]

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Settings of all policies; `name` alone would not say of what."""
        names = dict.fromkeys(
            name for kind in POLICY_SETTINGS.values() for name in kind.model_fields
        )
        return tuple(name for name in names if name != "name")

    stops_trials: ClassVar[bool] = False
    """Whether trials end early at epochs that are not known before."""

    def describe(self, max_epochs: int) -> str:
        """A line on what the policy does; empty for nothing."""
        return ""

    def rungs(self, max_epochs: int) -> tuple[int, ...]:
        """Epochs below `max_epochs` at which trials are compared by rungs, ascending."""
        return ()

    def expected_epochs(self, max_epochs: int, trials: int) -> float:
        """Epochs that a study of so many trials is expected to take."""
        return float(trials * max_epochs)

    def expected_full_trainings(self, max_epochs: int, trials: int) -> float:
        """How many of so many trials are expected to train to the end."""
        return float(trials)

    def snapshot_interval(self, max_epochs: int) -> int:
        """Epochs after which a trial keeps its checkpoint for others to copy."""
        return max_epochs + 1

    def problems(self, max_epochs: int) -> Iterator[tuple[str, str]]:
        """Settings that do not fit the full budget, each with the reason."""
        return iter(())


class NoPolicy(PolicySettings):
    """Every trial trains to the end."""

    name: Literal["none"] = "none"


def _comparisons(rungs: tuple[int, ...], reduction_factor: int) -> str:
    """A line on the rungs and how many trials go on; empty without rungs."""
    if not rungs:
        return ""
    epochs = ", ".join(str(rung) for rung in rungs)
    return f"compares at epochs {epochs}; about 1 in {reduction_factor} goes on"


class _GracePeriod(PolicySettings):
    """A policy that stops no trial in its first epochs."""

    grace_period: Annotated[Whole, Field(ge=1)] = 1
    """Epochs that every trial trains; the first rung, where there are rungs."""

    def problems(self, max_epochs: int) -> Iterator[tuple[str, str]]:
        """Refuses a grace period that is longer than the full budget."""
        if self.grace_period > max_epochs:
            yield (
                "grace_period",
                f"grace_period={self.grace_period} must not be above max_epochs={max_epochs}: "
                "no trial could be stopped",
            )


class _Rungs(_GracePeriod):
    """A policy that compares trials at the epochs grace_period * reduction_factor^k."""

    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    """One of so many trials survives a rung; rungs are apart by this factor."""

    brackets: Annotated[Whole, Field(ge=1)] = 1
    """Ladders of rungs (Hyperband): each leaves out one more of the lowest rungs."""

    def describe(self, max_epochs: int) -> str:
        """A line on the rungs."""
        return _comparisons(self.rungs(max_epochs), self.reduction_factor)

    def rungs(self, max_epochs: int) -> tuple[int, ...]:
        """The epochs grace_period * reduction_factor^k below `max_epochs`."""
        rungs = []
        rung = self.grace_period
        while rung < max_epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return tuple(rungs)

    def expected_epochs(self, max_epochs: int, trials: int) -> float:
        """Epochs of a study in which one of `reduction_factor` trials survives each rung."""
        steps = [0, *self.rungs(max_epochs), max_epochs]
        per_trial = sum(
            (after - before) / float(self.reduction_factor) ** survived
            for survived, (before, after) in enumerate(pairwise(steps))
        )
        return per_trial * trials

    def expected_full_trainings(self, max_epochs: int, trials: int) -> float:
        """Trials that survive every rung."""
        return trials / float(self.reduction_factor) ** len(self.rungs(max_epochs))


class AshaSettings(_Rungs):
    """Asynchronous successive halving (Li et al., 2020)."""

    name: Literal["asha"] = "asha"

    promotion: bool = True
    """Whether trials pause at a rung and the best go on when a worker is free, rather than
    stop there for good."""


class PashaSettings(_Rungs):
    """Progressive ASHA (Bohdal et al., 2023): one rung more only while the highest two disagree."""

    name: Literal["pasha"] = "pasha"


class HyperbandSettings(PolicySettings):
    """Hyperband (Li et al., 2018): brackets of successive halving whose rounds wait for all."""

    name: Literal["hyperband"] = "hyperband"

    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    """One of so many trials survives a round; rounds are apart by this factor."""

    def describe(self, max_epochs: int) -> str:
        """A line on the milestones."""
        return _comparisons(self.rungs(max_epochs), self.reduction_factor)

    def rungs(self, max_epochs: int) -> tuple[int, ...]:
        """The milestones of all brackets."""
        brackets = hyperband_brackets(max_epochs, self.reduction_factor)
        return tuple(sorted({m for bracket in brackets for m in bracket.milestones[:-1]}))

    def expected_epochs(self, max_epochs: int, trials: int) -> float:
        """Epochs of the brackets that so many trials fill."""
        brackets = hyperband_brackets(max_epochs, self.reduction_factor)
        return expected_epochs(brackets, self.reduction_factor, trials)

    def expected_full_trainings(self, max_epochs: int, trials: int) -> float:
        """Trials that survive every round of their bracket, of full bands."""
        brackets = hyperband_brackets(max_epochs, self.reduction_factor)
        survivors = 0
        for bracket in brackets:
            going = bracket.size
            for _ in bracket.milestones[:-1]:
                going = -(-going // self.reduction_factor)
            survivors += going
        return trials * survivors / sum(bracket.size for bracket in brackets)


class MedianSettings(_GracePeriod):
    """Median stopping (Golovin et al., 2017)."""

    name: Literal["median"] = "median"

    stops_trials: ClassVar[bool] = True

    def describe(self, max_epochs: int) -> str:
        """A line on what a trial is compared with."""
        return (
            "stops a trial whose best is below the median of the others' averages, from epoch "
            f"{self.grace_period} on"
        )


class PbtSettings(PolicySettings):
    """Population based training (Jaderberg et al., 2017)."""

    name: Literal["pbt"] = "pbt"

    exchanges_weights: ClassVar[bool] = True

    perturbation_interval: Annotated[Whole, Field(ge=1)] = 5
    """Epochs after which a trial is compared with the others, again and again."""

    quantile_fraction: Annotated[Number, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that are weak, each of which copies the weights of one of the best
    (exploit); as large a share are those."""

    resample_probability: Annotated[Number, Field(ge=0, le=1)] = 0.25
    """How likely a value is drawn anew (explore); else a number is multiplied by 0.8 or 1.2, and
    a choice stays (among numbers, it moves to the next one)."""

    synchronous: bool = True
    """Whether a trial is compared when all have come as far, and waits for them where there are
    as many workers as trials. If not, it is compared with those that are there: no worker
    waits, but what is decided depends on who is fast, and the fastest never changes."""

    def describe(self, max_epochs: int) -> str:
        """A line on how often trials are compared."""
        return (
            f"compares every {self.perturbation_interval} epochs; about "
            f"{self.quantile_fraction:.0%} of the trials copy the weights of a better one"
        )

    def snapshot_interval(self, max_epochs: int) -> int:
        """Trials copy weights at each comparison."""
        return self.perturbation_interval

    def problems(self, max_epochs: int) -> Iterator[tuple[str, str]]:
        """Refuses an interval that is not shorter than the full budget."""
        if self.perturbation_interval >= max_epochs:
            yield (
                "perturbation_interval",
                f"perturbation_interval={self.perturbation_interval} must be below "
                f"max_epochs={max_epochs}: no trial would be compared with others",
            )


class Pb2Settings(PbtSettings):
    """Population based bandits (Parker-Holder et al., 2020)."""

    name: Literal["pb2"] = "pb2"  # type: ignore[assignment]


class OwnPolicySettings(PolicySettings):
    """A policy of the user's own, by its import path; its function takes the other settings."""

    model_config = ConfigDict(extra="allow")

    @property
    def settings(self) -> dict[str, Any]:
        """The other settings, as given."""
        return dict(self.__pydantic_extra__ or {})

    def check(self, function: Callable[..., Any]) -> None:
        """Check that the function has a parameter for each setting, and needs no others.

        Raises:
            PluginError: naming the setting and the nearest parameter, or what is missing.
        """
        parameters = parameters_of(function, f"policy {self.name}")
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        known = [name for name in parameters if name not in {"record", "spec"}]
        for setting in self.settings:
            if setting not in known and not takes_any:
                near = suggestion(setting, known) if known else ": it takes none"
                raise PluginError(f"policy {self.name} has no setting {setting!r}{near}")
        given = dict.fromkeys(("record", "spec"))
        taken(function, f"policy {self.name}", given, self.settings)


POLICY_SETTINGS: dict[str, type[PolicySettings]] = {
    "asha": AshaSettings,
    "pasha": PashaSettings,
    "hyperband": HyperbandSettings,
    "median": MedianSettings,
    "pbt": PbtSettings,
    "pb2": Pb2Settings,
    "none": NoPolicy,
}
"""Settings of each policy, by its name."""
