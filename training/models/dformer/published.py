"""Weights of the published D-Former: its parameter names and how ours map to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from training.models.dformer.network import SegNetwork

# Our names to the published ones, except for the decoder, which counts its levels backwards
_RENAMINGS = [
    (r"^embedding\.", "model_down.patch_embed.proj."),
    (r"^embedding_norm\.", "model_down.patch_embed.norm."),
    (r"^encoder\.(\d+)\.", r"model_down.layers.\1."),
    (r"^mergings\.(\d+)\.", r"model_down.layers.\1.downsample."),
    (r"^encoder_norm\.", "model_down.norm."),
    (r"^decoder_norm\.", "model_down.norm_up."),
    (r"^heads\.(\d+)\.classify\.", r"final.\1.1."),
    (r"^heads\.(\d+)\.", r"final.\1.0."),
    (r"\.position\.", ".pos_block.proj.0."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.projection\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
]
_AUXILIARY = re.compile(r"final\.[1-9]\d*\.")


def published_names(model: SegNetwork) -> dict[str, str]:
    """The published name of every parameter of a `SegNetwork`, by our name."""
    return {name: _published_name(name, model.num_stages) for name in model.state_dict()}


def _published_name(name: str, num_stages: int) -> str:
    room, _, rest = name.partition(".")
    if room in ("decoder", "skips", "expansions"):
        level, _, rest = rest.partition(".")
        # Published entry 0 holds the expansion that leaves the coarsest grid, entry k the
        # decoder stage k levels above that grid, with the expansion that follows it
        entry = num_stages - 1 - int(level)
        if room == "skips":
            return f"model_down.concat_back_dim.{entry}.{rest}"
        if room == "expansions":
            follows = f"{entry - 1}.upsample" if entry > 1 else "0"
            return f"model_down.layers_up.{follows}.{rest}"
        name = f"model_down.layers_up.{entry}.{rest}"
    for pattern, published in _RENAMINGS:
        name = re.sub(pattern, published, name)
    return name


def load_published_weights(model: SegNetwork, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights with the published names into a `SegNetwork`, all or nothing.

    Auxiliary heads among the weights are left out where the model has none, because they
    serve training alone.

    Args:
        model: a `SegNetwork` of the published settings (its defaults), or of those that the
            weights were trained with.
        state_dict: parameters by their published names.

    Raises:
        ValueError: if names are missing or foreign or shapes differ; the model is unchanged.
    """
    names = published_names(model)
    weights = dict(state_dict)
    if not any(_AUXILIARY.match(published) for published in names.values()):
        weights = {name: w for name, w in weights.items() if not _AUXILIARY.match(name)}
    missing = sorted(set(names.values()) - set(weights))
    foreign = sorted(set(weights) - set(names.values()))
    own = model.state_dict()
    shapes = {name: _published_shape(published, own[name]) for name, published in names.items()}
    differing = [
        f"{published} is {tuple(weights[published].shape)} instead of {shapes[name]}"
        for name, published in names.items()
        if published in weights and tuple(weights[published].shape) != shapes[name]
    ]
    problems = [
        f"{len(found)} {kind}: {', '.join(found)}"
        for kind, found in (
            ("missing", missing),
            ("foreign", foreign),
            ("of another shape", differing),
        )
        if found
    ]
    if problems:
        raise ValueError(
            "the weights do not fit this D-Former: build it with the settings that they were "
            f"trained with ({'; '.join(problems)})"
        )
    model.load_state_dict(
        {name: weights[published].reshape(own[name].shape) for name, published in names.items()}
    )


def published_state_dict(model: SegNetwork) -> dict[str, Tensor]:
    """The weights of a `SegNetwork` under their published names, in the published shapes."""
    own = model.state_dict()
    return {
        published: own[name].reshape(_published_shape(published, own[name]))
        for name, published in published_names(model).items()
    }


def _published_shape(published: str, weight: Tensor) -> tuple[int, ...]:
    """The published classifier is a 1x1x1 convolution, ours the same as a linear layer."""
    classifier = re.fullmatch(r"final\.\d+\.1\.weight", published)
    return (*weight.shape, 1, 1, 1) if classifier else tuple(weight.shape)
