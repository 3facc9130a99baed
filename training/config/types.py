"""Types of the config's fields, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from training.errors import PluginError, suggestion
from training.registry import (
    AUGMENTATIONS,
    CLASS_WEIGHTS,
    IMPORT_PATH,
    LOSSES,
    LR_SCHEDULES,
    METRICS,
    MODELS,
    MODULES,
    OPTIMIZERS,
    REGION_LOSSES,
    Registry,
    is_plugin,
)


@dataclass(frozen=True, eq=False)
class NameIn:
    """A type: the name of an entry of a registry, or an import path `package.module:function`.

    In Python the function or class itself may be given; its import path is what is kept. The
    path is not followed here: a config is read without running code of others.

    Attributes:
        registry: Its keys are the names.
        others: Further names that are not entries.
        also: A further registry whose keys are names.
    """

    registry: Registry
    others: tuple[str, ...] = ()
    also: Registry | None = None

    def names(self) -> list[str]:
        """The names of now: an entry that is added later is one of them."""
        return [*self.others, *self.registry, *(self.also or ())]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, core_schema.str_schema())

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        path = {"pattern": f"^{IMPORT_PATH}$", "type": "string"}
        names = self.names()
        return {"anyOf": [{"enum": names, "type": "string"}, path]} if names else path

    def _check(self, value: Any) -> str:
        name = self.registry.name_of(value)
        if isinstance(name, str) and name in self.names():
            return name
        if is_plugin(name):
            return str(name)
        if not self.names() or (isinstance(name, str) and ":" in name):
            raise PluginError(
                f"{name!r} is not an import path: write package.module:function, e.g. "
                "my_package.my_module:my_function"
            )
        *first, last = [repr(known) for known in self.names()]
        expected = f"{', '.join(first)} or {last}" if first else last
        raise PydanticKnownError("literal_error", {"expected": expected})


ModelName = Annotated[str, NameIn(MODELS)]
OptimizerName = Annotated[str, NameIn(OPTIMIZERS)]
SchedulerName = Annotated[str, NameIn(LR_SCHEDULES)]
LossName = Annotated[str, NameIn(LOSSES, also=REGION_LOSSES)]
ClassWeightPreset = Annotated[str, NameIn(CLASS_WEIGHTS, ("uniform",))]
AugmentationName = Annotated[str, NameIn(AUGMENTATIONS)]
MetricPath = Annotated[str, NameIn(METRICS)]
ModulePath = Annotated[str, NameIn(MODULES)]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
Mode = Literal["min", "max"]


def _reject_bool(value: Any) -> Any:
    """Refuse a boolean where a number is meant: YAML's `yes` would otherwise be 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed here, not true or false")
    return value


def _require_bool(value: Any) -> Any:
    """Refuse words: pydantic takes `yes` and `off` for booleans, YAML 1.2 does not."""
    if not isinstance(value, bool):
        raise ValueError("write true or false")
    return value


Bool = Annotated[bool, BeforeValidator(_require_bool)]
Int = Annotated[int, BeforeValidator(_reject_bool)]
Float = Annotated[float, BeforeValidator(_reject_bool)]
PositiveWeight = Annotated[Float, Field(ge=0)]
Size3d = tuple[
    Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)]
]


def _auto_or_size(value: Any) -> Any:
    """Refuse words other than auto with the way to write a size."""
    if isinstance(value, str) and value != "auto":
        raise ValueError("write auto, or three sizes: [depth, height, width]")
    return value


def _auto_or_number(value: Any) -> Any:
    """Refuse words other than auto with the way to write a number."""
    if isinstance(value, str) and value != "auto":
        raise ValueError("write auto, or a whole number of at least 1")
    return value


PatchSize = Annotated[Size3d | Literal["auto"], BeforeValidator(_auto_or_size)]
BatchSize = Annotated[
    Annotated[Int, Field(ge=1)] | Literal["auto"], BeforeValidator(_auto_or_number)
]
Spacing3d = tuple[
    Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)], Annotated[Float, Field(gt=0)]
]

MIRROR_AXES: Final = ("depth", "height", "width")
"""Names of the spatial axes, in array order."""


def _axis_name(value: Any) -> Any:
    """The name of an axis that is given by its number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(MIRROR_AXES):
        return MIRROR_AXES[value]
    return value


MirrorAxis = Annotated[Literal["depth", "height", "width"], BeforeValidator(_axis_name)]


def _auto_or_list(value: Any) -> Any:
    """Refuse words other than auto with the way to write axes."""
    if isinstance(value, str) and value != "auto":
        raise ValueError("write auto, or a list of depth, height and width; [] mirrors none")
    return value


MissingChannels = Literal["refused", "allowed"]

NormalisationScheme = Literal["CT", "zscore", "noNorm", "rescale_to_0_1", "rgb_to_0_1"]

NORMALISATION_SCHEMES: Final[tuple[NormalisationScheme, ...]] = get_args(NormalisationScheme)
"""Names of the schemes, which are nnU-Net's."""


def _scheme_of_each_channel(value: Any) -> Any:
    """Schemes with the spelling of `NORMALISATION_SCHEMES`; refuses others by name."""
    if not isinstance(value, Mapping):
        if value in ("auto", "modality"):
            return value
        raise ValueError(
            f"write auto, modality, or a mapping of channels to {', '.join(NORMALISATION_SCHEMES)},"
            f" e.g. {{T1: zscore}}, not {value!r}"
        )
    known = {scheme.casefold(): scheme for scheme in NORMALISATION_SCHEMES}
    schemes = {}
    for name, scheme in value.items():
        if str(scheme).casefold() not in known:
            near = suggestion(str(scheme), NORMALISATION_SCHEMES)
            raise ValueError(f"there is no normalisation {scheme!r} for the channel {name!r}{near}")
        schemes[str(name)] = known[str(scheme).casefold()]
    return schemes


Normalisation = Annotated[
    Literal["auto", "modality"] | dict[str, NormalisationScheme],
    BeforeValidator(_scheme_of_each_channel),
]

MirrorAxes = Annotated[Literal["auto"] | list[MirrorAxis], BeforeValidator(_auto_or_list)]

NOT_SEARCHABLE: dict[str, Any] = {"searchable": False}
