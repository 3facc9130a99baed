"""D-Former against the stored outputs of the published code, and the laws that it keeps."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training.models.dformer import blocks as dformer_blocks
from training.models.dformer import head as dformer_head
from training.models.dformer.blocks import DropPath, GroupedAttention, Grouping
from training.models.dformer.head import SegmentationHead
from training.models.dformer.network import SegNetwork
from training.models.dformer.published import load_published_weights, published_state_dict

TINY: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
SIZES = st.tuples(*[st.integers(1, 40)] * 3)


def tiny(**changes: Any) -> SegNetwork:
    torch.manual_seed(0)
    return SegNetwork(3, 1, **{**TINY, **changes})


def published_parameters(shared_dir: Path) -> dict[str, Tensor]:
    """The parameters that the stored outputs were computed with."""
    shapes = json.loads((shared_dir / "fixtures" / "dformer_published_keys.json").read_text())
    filled = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("bias"):
            filled[name] = 0.02 * x
        elif len(shape) == 1:
            filled[name] = 1 + 0.1 * x
        else:
            filled[name] = x / math.sqrt(math.prod(shape[1:]))
    return filled


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> tuple[SegNetwork, dict[str, Tensor]]:
    model = SegNetwork(14, 1, deep_supervision=True)
    parameters = published_parameters(shared_dir)
    load_published_weights(model, parameters)
    return model, parameters


class TestPublished:
    @pytest.mark.parametrize("size", [(32, 64, 64), (16, 96, 64)])
    def test_outputs_are_the_published_ones(
        self, shared_dir: Path, published: tuple[SegNetwork, dict[str, Tensor]], size: tuple[int]
    ) -> None:
        model, _ = published
        image = torch.randn((1, 1, *size), generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            outputs = model.train()(image)
            full = model.eval()(image)
        assert torch.equal(full, outputs[0])
        stored = np.load(shared_dir / "fixtures" / "dformer_published_outputs.npz")
        for index in (0, 1):
            key = f"{'x'.join(map(str, size))}/output{index}"
            strided = outputs[index][0, :, ::4, ::4, ::4].numpy()
            np.testing.assert_allclose(strided, stored[f"{key}_strided"], rtol=0, atol=1e-4)
            moments = [outputs[index].mean().item(), outputs[index].std().item()]
            np.testing.assert_allclose(moments, stored[f"{key}_mean_std"], rtol=0, atol=1e-4)

    def test_every_weight_travels_both_ways(
        self, published: tuple[SegNetwork, dict[str, Tensor]]
    ) -> None:
        model, parameters = published
        back = published_state_dict(model)
        assert back.keys() == parameters.keys()
        for name, weight in parameters.items():
            assert torch.equal(back[name], weight), name

    def test_a_published_checkpoint_continues_training(self) -> None:
        weights = published_state_dict(tiny(deep_supervision=True))
        torch.manual_seed(1)
        model = SegNetwork(3, 1, **TINY, deep_supervision=True)
        load_published_weights(model, weights)
        image, target = torch.randn(1, 1, 8, 16, 16), torch.randint(3, (1, 8, 16, 16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(image)[0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]

    def test_auxiliary_heads_are_left_out_where_the_model_has_none(self) -> None:
        weights = published_state_dict(tiny(deep_supervision=True))
        model = tiny()
        load_published_weights(model, weights)
        assert torch.equal(model.embedding.weight, weights["model_down.patch_embed.proj.weight"])

    def test_misfits_are_listed_and_change_nothing(self) -> None:
        model = tiny()
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        weights = {name: weight + 1 for name, weight in published_state_dict(model).items()}
        del weights["model_down.norm.bias"]
        weights["layers.0.relative_position"] = torch.zeros(3)
        weights["model_down.norm_up.weight"] = torch.zeros(7)
        with pytest.raises(ValueError, match="do not fit") as caught:
            load_published_weights(model, weights)
        assert "1 missing: model_down.norm.bias" in str(caught.value)
        assert "1 foreign: layers.0.relative_position" in str(caught.value)
        assert "model_down.norm_up.weight is (7,) instead of (12,)" in str(caught.value)
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name])

    def test_size_of_the_published_network(self) -> None:
        with torch.device("meta"):
            model = SegNetwork(14, 1)
        assert sum(p.numel() for p in model.parameters()) == 44_649_792


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_heads": (1, 2, 5, 4)}, r"num_heads\[2\]=5 does not divide.*48"),
            ({"depths": (1, 1)}, r"2 stages.*has 4"),
            ({"depths": (2,), "num_heads": (1,)}, "at least two stages"),
            ({"depths": (1, 1, 0, 1)}, r"depths\[2\]=0 must be a positive integer"),
            ({"depths": 4}, "depths=4 must be a list"),
            ({"embed_dim": -12}, "embed_dim=-12 must be a positive integer"),
            ({"embed_dim": 12.0}, "embed_dim=12.0 must be a positive integer"),
            ({"patch_size": (2, 4)}, r"patch_size=\[2, 4\] needs three entries"),
            ({"group_size": (2, 8, 0)}, r"group_size\[2\]=0"),
            ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
            ({"drop_rate": -0.1}, "drop_rate=-0.1"),
            ({"attn_drop_rate": "0.1"}, "attn_drop_rate='0.1'"),
            ({"mlp_ratio": 0}, "mlp_ratio=0"),
            ({"qkv_bias": "no"}, "qkv_bias='no' must be true or false"),
        ],
    )
    def test_impossible_settings_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tiny(**changes)

    def test_lists_are_taken_for_tuples(self) -> None:
        model = SegNetwork(
            2, 1, embed_dim=8, depths=[1, 1], num_heads=[1, 2], patch_size=[1, 2, 2],
            group_size=[2, 2, 2],
        )  # fmt: skip
        assert model(torch.zeros(1, 1, 3, 4, 5)).shape == (1, 2, 3, 4, 5)

    @pytest.mark.parametrize(
        "change",
        [
            {"embed_dim": 24},
            {"depths": (1, 2, 1, 1)},
            {"patch_size": (1, 2, 2)},
            {"mlp_ratio": 2.5},
            {"qkv_bias": False},
            {"deep_supervision": True},
        ],
    )
    def test_settings_shape_the_parameters(self, change: dict[str, Any]) -> None:
        def shapes(model: nn.Module) -> dict[str, torch.Size]:
            return {name: weight.shape for name, weight in model.state_dict().items()}

        assert shapes(tiny(**change)) != shapes(tiny())

    @pytest.mark.parametrize("change", [{"num_heads": (3, 3, 3, 3)}, {"group_size": (2, 4, 4)}])
    def test_settings_of_the_attention_take_effect(self, change: dict[str, Any]) -> None:
        image = torch.randn(1, 1, 16, 64, 64)
        assert not torch.allclose(tiny(**change)(image), tiny()(image), atol=1e-5)

    @pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
    def test_dropout_acts_in_training_alone(self, rate: str) -> None:
        model = tiny(**{rate: 0.5})
        image = torch.randn(1, 1, 16, 64, 64)
        assert not torch.equal(model(image), model(image))
        model.eval()
        assert torch.equal(model(image), model(image))
        assert torch.equal(model(image), tiny()(image))

    def test_drop_path_keeps_the_expectation(self) -> None:
        torch.manual_seed(0)
        out = DropPath(0.25)(torch.ones(10_000, 1, 1, 1, 1))
        assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert out.mean().item() == pytest.approx(1, abs=0.03)

    def test_linear_layers_start_from_a_truncated_normal(self) -> None:
        for name, module in tiny(embed_dim=24).named_modules():
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.25), name
                assert module.bias is None or not module.bias.any()


class TestForward:
    @settings(max_examples=20, deadline=None)
    @given(size=SIZES)
    def test_any_size_gives_logits_of_that_size(self, size: tuple[int, int, int]) -> None:
        model = tiny().eval()
        with torch.no_grad():
            logits = model(torch.randn(1, 1, *size))
        assert logits.shape == (1, 3, *size)
        assert logits.isfinite().all()

    @settings(max_examples=20, deadline=None)
    @given(
        size=SIZES,
        batch=st.integers(1, 3),
        channels=st.integers(1, 4),
        groups=st.tuples(*[st.integers(1, 9)] * 3),
        patch=st.tuples(*[st.integers(1, 5)] * 3),
    )
    def test_any_batch_channels_groups_and_patches(
        self, size: Any, batch: int, channels: int, groups: Any, patch: Any
    ) -> None:
        torch.manual_seed(0)
        model = SegNetwork(2, channels, embed_dim=4, depths=(2, 2), num_heads=(1, 2),
                           group_size=groups, patch_size=patch).eval()  # fmt: skip
        shape = [min(n, 12 * p) for n, p in zip(size, patch, strict=True)]
        image = torch.randn(batch, channels, *shape)
        with torch.no_grad():
            logits = model(image)
        assert logits.shape == (batch, 2, *image.shape[2:])
        assert logits.isfinite().all()

    @settings(max_examples=10, deadline=None)
    @given(size=SIZES)
    def test_samples_of_a_batch_do_not_mix(self, size: tuple[int, int, int]) -> None:
        model = tiny().eval()
        images = torch.randn(2, 1, *size)
        with torch.no_grad():
            together, alone = model(images), model(images[1:])
        torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)

    def test_padding_of_the_groups_changes_no_logit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny(patch_size=(1, 2, 2), group_size=(2, 4, 4)).eval()
        split = Grouping.split
        padded: set[tuple[str, int]] = set()

        def split_with_garbage(grouping: Grouping, tokens: Tensor) -> Tensor:
            groups = split(grouping, tokens)
            mask = grouping.mask(tokens.device)
            if mask is None:
                return groups
            for axis in range(3):
                if grouping.padded[axis] > grouping.size[axis]:
                    padded.add((grouping.scope, axis))
            keys = mask.reshape(-1, groups.shape[1], 1)
            return torch.where(keys, groups, 1e3 * torch.randn_like(groups))

        for size in ((5, 61, 39), (7, 90, 33), (5, 26, 38)):
            image = torch.randn(1, 1, *size)
            with torch.no_grad():
                expected = model(image)
                with monkeypatch.context() as patch:
                    patch.setattr(dformer_blocks.Grouping, "split", split_with_garbage)
                    logits = model(image)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        assert padded == {(scope, axis) for scope in ("local", "global") for axis in range(3)}

    def test_forward_changes_no_state(self) -> None:
        model = tiny().eval()
        image = torch.randn(1, 1, 16, 32, 32)
        state = {name: weight.clone() for name, weight in model.state_dict().items()}
        attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
        first = model(image)
        model(torch.randn(1, 1, 3, 70, 9))
        assert torch.equal(model(image), first)
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, state[name])
        assert {name: dict(vars(m)) for name, m in model.named_modules()} == attributes

    @pytest.mark.parametrize("deep_supervision", [False, True])
    @pytest.mark.parametrize("size", [(16, 64, 64), (9, 35, 50)])
    def test_every_parameter_gets_a_gradient(
        self, deep_supervision: bool, size: tuple[int, int, int]
    ) -> None:
        model = tiny(deep_supervision=deep_supervision)
        output = model(torch.randn(2, 1, *size))
        levels = output if deep_supervision else [output]
        loss = sum(((level - 1) ** 2).mean() for level in levels)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name

    def test_deep_supervision_gives_every_scale_in_training_alone(self) -> None:
        model = tiny(deep_supervision=True)
        image = torch.randn(1, 1, 9, 35, 50)
        outputs = model(image)
        assert [tuple(output.shape[2:]) for output in outputs] == [
            (9, 35, 50), (5, 18, 25), (3, 9, 13),
        ]  # fmt: skip
        assert torch.equal(model.eval()(image), outputs[0])

    def test_gradient_checkpointing_changes_no_gradient(self) -> None:
        image = torch.randn(1, 1, 9, 35, 50)
        gradients = []
        for checkpointing in (False, True):
            model = tiny(gradient_checkpointing=checkpointing, deep_supervision=True)
            sum(output.square().mean() for output in model(image)).backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for plain, recomputed in zip(*gradients, strict=True):
            torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-6)

    def test_gradient_checkpointing_keeps_half_of_the_activations(self) -> None:
        def saved(model: nn.Module) -> int:
            kept = 0

            def count(tensor: Tensor) -> Tensor:
                nonlocal kept
                kept += 0 if tensor.requires_grad and tensor.is_leaf else tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                model(torch.randn(1, 1, 16, 64, 64))
            return kept

        published = {"embed_dim": 48, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
        assert saved(tiny(gradient_checkpointing=True, **published)) < 0.5 * saved(
            tiny(**published)
        )

    @pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
    def test_compiles_as_one_graph_forward_and_backward(self) -> None:
        model = tiny(deep_supervision=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        image = torch.randn(1, 1, 9, 35, 50)
        gradients = []
        for network in (model, compiled):
            model.zero_grad()
            sum(level.square().mean() for level in network(image)).backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        for eager, of_graph in zip(*gradients, strict=True):
            torch.testing.assert_close(of_graph, eager, rtol=1e-4, atol=1e-6)

    def test_bf16_stays_near_fp32(self) -> None:
        model = tiny()
        image = torch.randn(1, 1, 9, 35, 50)
        gradients = []
        for enabled in (False, True):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits = model(image)
            assert logits.dtype is (torch.bfloat16 if enabled else torch.float32)
            logits.float().square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert torch.cosine_similarity(*gradients, dim=0).item() > 0.99

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 1, 8, 8), "a 2D mode does not exist"),
            ((1, 8, 8), r"needs \(batch, channels, depth, height, width\)"),
            ((1, 2, 8, 8, 8), "in_chan=1.*has 2 channels"),
        ],
    )
    def test_wrong_inputs_are_refused(self, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tiny()(torch.zeros(shape))


class TestGrouping:
    @settings(max_examples=60, deadline=None)
    @given(
        size=st.tuples(*[st.integers(1, 20)] * 3),
        nominal=st.tuples(*[st.integers(1, 8)] * 3),
        scope=st.sampled_from(["local", "global"]),
    )
    def test_groups_partition_the_grid(self, size: Any, nominal: Any, scope: Any) -> None:
        tokens = torch.arange(1.0, 1 + math.prod(size)).reshape(1, *size, 1)
        grouping = Grouping.of(size, nominal, scope)
        groups = grouping.split(tokens)
        assert torch.equal(grouping.join(groups), tokens)
        mask = grouping.mask(tokens.device)
        real = torch.ones_like(groups, dtype=torch.bool)
        if mask is not None:
            real = mask.reshape(groups.shape)
        assert torch.equal(groups[real].sort().values, tokens.flatten())
        assert not groups[~real].any()
        assert real.any(dim=1).all()
        assert groups.shape[1] <= 8 * math.prod(nominal)

    def test_local_groups_are_windows_and_global_groups_are_strided(self) -> None:
        line = torch.arange(8.0).reshape(1, 1, 1, 8, 1)
        local = Grouping.of((1, 1, 8), (1, 1, 4), "local").split(line)
        strided = Grouping.of((1, 1, 8), (1, 1, 4), "global").split(line)
        assert local[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert strided[..., 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]

    def test_a_grid_smaller_than_the_group_is_one_group(self) -> None:
        assert Grouping.of((4, 4, 4), (2, 8, 8), "local").group == (4, 4, 4)

    def test_attention_is_multi_head_attention_within_each_group(self) -> None:
        torch.manual_seed(0)
        attention = GroupedAttention(
            8, 2, (2, 3, 3), "local", qkv_bias=True, drop_rate=0.0, attn_drop_rate=0.0
        )
        reference = nn.MultiheadAttention(8, 2, batch_first=True)
        reference.in_proj_weight = attention.qkv.weight
        reference.in_proj_bias = attention.qkv.bias
        reference.out_proj = attention.projection
        tokens = torch.randn(1, 2, 5, 3, 8)
        with torch.no_grad():
            mixed = attention(tokens)
            for rows in (slice(0, 3), slice(3, 5)):
                window = tokens[:, :, rows].reshape(1, -1, 8)
                expected, _ = reference(window, window, window)
                torch.testing.assert_close(mixed[:, :, rows].reshape(1, -1, 8), expected)


class TestHead:
    def plain(self, head: SegmentationHead, tokens: Tensor) -> Tensor:
        """The head as published: every voxel's features are made, placed, normed, classified."""
        depth, height, width = head.patch_size
        features = rearrange(
            head.expand(tokens), "b d h w (x y z c) -> b (d x) (h y) (w z) c",
            x=depth, y=height, z=width,
        )  # fmt: skip
        return head.classify(head.norm(features)).movedim(-1, 1)

    def head(self) -> SegmentationHead:
        torch.manual_seed(0)
        head = SegmentationHead(6, 5, (1, 2, 3)).double()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return head

    @pytest.mark.parametrize("at_once", [1, 100, 2**22])
    def test_logits_and_gradients_are_those_of_the_published_head(
        self, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(dformer_head.FEATURES_AT_ONCE, "cpu", at_once)
        head = self.head()
        tokens = torch.randn(2, 2, 3, 4, 6, dtype=torch.double, requires_grad=True)
        inputs = (tokens, *head.parameters())
        weights = torch.randn(2, 5, 2, 6, 12, dtype=torch.double)
        expected, logits = self.plain(head, tokens), head(tokens)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        wanted = torch.autograd.grad((expected * weights).sum(), inputs)
        found = torch.autograd.grad((logits * weights).sum(), inputs)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    def test_gradients_are_those_of_finite_differences(self) -> None:
        tokens = torch.randn(1, 1, 1, 3, 6, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(self.head(), (tokens,))
