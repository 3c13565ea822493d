"""The control network and the plain backbone on a tiny shape, against numpy and by what must and must not matter.

The whole forward pass is compared with the reference's tensors in tests/parity; here is what those cannot show.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvie_core.model.conditioning import history_input
from longvie_core.model.dual_control import DualControl, DualControlConfig, Strengths, torch_dual_control, velocity
from longvie_core.model.wan import WanConfig, WanModel, apply_rope, attention, rope_frequencies, sinusoidal_embedding

BACKBONE = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=4, text_dim=12, freq_dim=16, has_image_input=False)
CONTROL = DualControlConfig(dim=32, control_dim=16, ffn_dim=24, num_heads=1, num_layers=3, image=False)
FRAMES, HEIGHT, WIDTH = 3, 4, 6
TOKENS_A_FRAME = HEIGHT * WIDTH // 4


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter random, the zero-initialised ones and the norm gains too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    return module.double()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Setting:
    """A tiny controlled backbone in float64 with inputs for one evaluation."""

    def __init__(self) -> None:
        self.backbone: WanModel = randomise(WanModel(BACKBONE), 0)
        self.control: DualControl = randomise(torch_dual_control(CONTROL), 1)
        self.x = noise(2, 1, 36, FRAMES, HEIGHT, WIDTH)
        self.dense = noise(3, 1, 36, FRAMES, HEIGHT, WIDTH)
        self.sparse = noise(4, 1, 36, FRAMES, HEIGHT, WIDTH)
        self.text = noise(5, 1, 7, BACKBONE.text_dim)
        self.history = history_input(noise(6, 1, 16, 2, HEIGHT, WIDTH))
        self.timestep = torch.tensor([700.5], dtype=torch.float64)

    def velocity(self, **changes: object) -> Tensor:
        given = {"control": self.control, "x": self.x, "dense": self.dense, "sparse": self.sparse} | changes
        return velocity(self.backbone, timestep=self.timestep, text=self.text, **given)


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest):
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


@pytest.fixture
def setting() -> Setting:
    return Setting()


def count_calls(network: nn.Module) -> Counter[str]:
    """How often each leaf module of a network is called from now on."""
    calls: Counter[str] = Counter()
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def record_outputs(modules: nn.ModuleList) -> list[Tensor]:
    outputs: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    return outputs


def record_inputs(modules: nn.ModuleList) -> list[Tensor]:
    inputs: list[Tensor] = []
    for module in modules:
        module.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    return inputs


class TestStrengths:
    def test_both_zero_computes_nothing_and_adds_nothing(self, setting: Setting) -> None:
        calls = count_calls(setting.control)
        alone = setting.velocity(control=None)
        got = setting.velocity(strengths=Strengths(0, 0), dense=None, sparse=None)
        assert torch.equal(got, alone)
        assert not calls
        assert not torch.equal(setting.velocity(), alone), "the control changes nothing at all"

    @pytest.mark.parametrize("off", ["dense", "sparse"])
    def test_a_stream_at_zero_is_neither_read_nor_computed(self, setting: Setting, off: str) -> None:
        calls = count_calls(setting.control)
        strengths = Strengths(**{off: 0.0})
        got = setting.velocity(strengths=strengths)
        assert torch.equal(got, setting.velocity(strengths=strengths, **{off: None}))
        on = "sparse" if off == "dense" else "dense"
        assert not [name for name in calls if off in name]
        assert calls[f"control_initial_combine_linear_{on}"] == 2
        assert calls[f"control_blocks_{on}.2.self_attn.q"] == 2

    def test_strengths_weigh_the_streams_before_the_shared_linear(self, setting: Setting) -> None:
        dense = record_outputs(setting.control.control_blocks_dense)
        sparse = record_outputs(setting.control.control_blocks_sparse)
        into = record_inputs(setting.control.control_combine_linears)
        setting.velocity(strengths=Strengths(0.3, 1.75))
        assert len(into) == CONTROL.num_layers
        for layer in range(CONTROL.num_layers):
            expected = 0.3 * dense[layer].numpy() + 1.75 * sparse[layer].numpy()
            np.testing.assert_allclose(into[layer].numpy(), expected, rtol=0, atol=1e-12)

    def test_what_is_added_has_the_bias_once_and_unscaled(self, setting: Setting) -> None:
        tokens = record_inputs(setting.backbone.blocks)
        after = record_outputs(setting.backbone.blocks)
        into = record_inputs(setting.control.control_combine_linears)
        setting.velocity(strengths=Strengths(2, 2))
        for layer, linear in enumerate(setting.control.control_combine_linears):
            added = tokens[layer + 1] - after[layer]
            expected = into[layer].numpy() @ linear.weight.numpy().T + linear.bias.numpy()
            np.testing.assert_allclose(added.numpy(), expected, rtol=0, atol=1e-12)

    def test_strengths_do_not_change_the_streams_themselves(self, setting: Setting) -> None:
        streams = record_outputs(setting.control.control_blocks_dense)
        setting.velocity()
        setting.velocity(strengths=Strengths(0.2, 3))
        half = CONTROL.num_layers
        assert all(torch.equal(a, b) for a, b in zip(streams[:half], streams[half:], strict=True))

    @pytest.mark.parametrize(
        ("strengths", "active"),
        [(Strengths(), True), (Strengths(0, 0), False), (Strengths(0, 0.1), True), (Strengths(-1, 0), True)],
    )
    def test_active(self, strengths: Strengths, active: bool) -> None:
        assert strengths.active is active


class TestWhatMatters:
    def test_dense_and_sparse_are_not_interchangeable(self, setting: Setting) -> None:
        swapped = setting.velocity(dense=setting.sparse, sparse=setting.dense)
        assert (swapped - setting.velocity()).abs().max() > 1e-2

    @pytest.mark.parametrize("name", ["dense", "sparse"])
    def test_each_control_matters(self, setting: Setting, name: str) -> None:
        changed = setting.velocity(**{name: getattr(setting, name) * 0.5})
        assert (changed - setting.velocity()).abs().max() > 1e-3

    def test_control_adds_after_the_first_blocks_only(self, setting: Setting) -> None:
        tokens = record_inputs(setting.backbone.blocks)
        after = record_outputs(setting.backbone.blocks)
        head = record_inputs(nn.ModuleList([setting.backbone.head]))
        setting.velocity()
        changes = [(tokens[layer + 1] - after[layer]).abs().max() for layer in range(3)]
        assert all(change > 1e-3 for change in changes)
        assert torch.equal(head[0], after[3])

    def test_inputs_stay_as_they_are(self, setting: Setting) -> None:
        fresh = Setting()
        setting.velocity(history=setting.history, strengths=Strengths(0.5, 2))
        for name in ("x", "dense", "sparse", "text", "history", "timestep"):
            assert torch.equal(getattr(setting, name), getattr(fresh, name)), name

    def test_a_batch_is_its_single_evaluations(self, setting: Setting) -> None:
        other = {"x": noise(12, *setting.x.shape), "dense": noise(13, *setting.x.shape), "sparse": noise(14, *setting.x.shape)}
        timestep, text = torch.tensor([37.0], dtype=torch.float64), noise(15, *setting.text.shape)
        both = velocity(
            setting.backbone,
            setting.control,
            torch.cat([setting.x, other["x"]]),
            torch.cat([setting.timestep, timestep]),
            torch.cat([setting.text, text]),
            dense=torch.cat([setting.dense, other["dense"]]),
            sparse=torch.cat([setting.sparse, other["sparse"]]),
        )
        torch.testing.assert_close(both[:1], setting.velocity(), rtol=0, atol=1e-10)
        second = velocity(setting.backbone, setting.control, timestep=timestep, text=text, **other)
        torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-10)


class TestWhatTheBlocksRead:
    @pytest.mark.parametrize("past", [False, True])
    def test_positions_start_at_0_with_and_without_history(self, setting: Setting, past: bool) -> None:
        read: list[dict] = []
        blocks = (*setting.control.control_blocks_dense, *setting.control.control_blocks_sparse)
        for block in blocks:
            block.register_forward_pre_hook(lambda _module, _args, given: read.append(given), with_kwargs=True)
        setting.velocity(history=setting.history if past else None)
        places = [(f, r, c) for f in range(FRAMES) for r in range(HEIGHT // 2) for c in range(WIDTH // 2)]
        # 16 dimensions a head: 8 for the frame, 4 for the row, 4 for the column; each is turned by place * 10000^(-2i/n)
        split = (8, 4, 4)
        speeds = [[10000 ** (-2 * i / n) for i in range(n // 2)] for n in split]
        angles = [np.concatenate([at * np.array(speed) for at, speed in zip(place, speeds, strict=True)]) for place in places]
        assert len(read) == 6
        for given in read:
            np.testing.assert_allclose(given["freqs"].numpy(), np.exp(1j * np.array(angles)), rtol=0, atol=1e-12)

    def test_context_and_time_are_the_backbones_brought_to_half_width(self, setting: Setting) -> None:
        read: list[dict] = []
        setting.control.control_blocks_sparse[1].register_forward_pre_hook(
            lambda _module, _args, given: read.append(given), with_kwargs=True
        )
        setting.velocity()
        context, image_tokens = setting.backbone.embed_context(setting.text, None)
        _, e0 = setting.backbone.embed_time(setting.timestep)
        for name, linear, full in (
            ("context", setting.control.control_text_linear, context),
            ("e", setting.control.control_t_mod, e0),
        ):
            expected = full.numpy() @ linear.weight.numpy().T + linear.bias.numpy()
            np.testing.assert_allclose(read[0][name].numpy(), expected, rtol=0, atol=1e-12)
        assert read[0]["e"].shape == (1, 6, 16) and read[0]["context_img_len"] is image_tokens is None

    @pytest.mark.parametrize("name", ["dense", "sparse"])
    def test_streams_start_as_the_backbones_tokens_brought_to_half_width(self, setting: Setting, name: str) -> None:
        tokens = record_inputs(getattr(setting.control, f"control_blocks_{name}"))
        setting.velocity()
        linear = getattr(setting.control, f"control_initial_combine_linear_{name}")
        full = setting.backbone.patchify(getattr(setting, name)).numpy()
        np.testing.assert_allclose(tokens[0].numpy(), full @ linear.weight.numpy().T + linear.bias.numpy(), rtol=0, atol=1e-12)


class TestHistory:
    def test_control_residuals_are_the_same_bits_with_and_without(self, setting: Setting) -> None:
        residuals = record_outputs(setting.control.control_combine_linears)
        setting.velocity()
        setting.velocity(history=setting.history)
        layers = CONTROL.num_layers
        assert len(residuals) == 2 * layers
        assert all(torch.equal(a, b) for a, b in zip(residuals[:layers], residuals[layers:], strict=True))

    def test_only_the_clips_tokens_are_controlled(self, setting: Setting) -> None:
        tokens = record_inputs(setting.backbone.blocks)
        after = record_outputs(setting.backbone.blocks)
        residuals = record_outputs(setting.control.control_combine_linears)
        setting.velocity(history=setting.history)
        past = 2 * TOKENS_A_FRAME
        for layer, residual in enumerate(residuals):
            assert torch.equal(tokens[layer + 1][:, :past], after[layer][:, :past])
            torch.testing.assert_close(tokens[layer + 1][:, past:] - after[layer][:, past:], residual, rtol=0, atol=1e-12)

    def test_history_is_in_front_and_cut_off_before_the_head(self, setting: Setting) -> None:
        tokens = record_inputs(setting.backbone.blocks)
        after = record_outputs(setting.backbone.blocks)
        head = record_inputs(nn.ModuleList([setting.backbone.head]))
        got = setting.velocity(history=setting.history)
        past = 2 * TOKENS_A_FRAME
        assert got.shape == (1, 16, FRAMES, HEIGHT, WIDTH)
        # A kernel of one frame sees no neighbours: the same tokens whether history and clip are embedded together or apart.
        torch.testing.assert_close(tokens[0][:, :past], setting.backbone.patchify(setting.history), rtol=0, atol=1e-12)
        torch.testing.assert_close(tokens[0][:, past:], setting.backbone.patchify(setting.x), rtol=0, atol=1e-12)
        assert torch.equal(head[0], after[-1][:, past:])

    def test_history_and_its_order_matter(self, setting: Setting) -> None:
        got = setting.velocity(history=setting.history)
        assert (got - setting.velocity()).abs().max() > 1e-3
        assert (got - setting.velocity(history=setting.history.flip(2))).abs().max() > 1e-4


class TestImageBranch:
    def test_clip_features_reach_the_control_blocks(self) -> None:
        backbone = randomise(WanModel(WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=12, freq_dim=16)), 0)
        config = DualControlConfig(dim=32, control_dim=16, ffn_dim=24, num_heads=1, num_layers=1)
        control = randomise(torch_dual_control(config), 1)
        residuals = record_outputs(control.control_combine_linears)
        shape = (1, 36, 1, 2, 2)
        for seed in (7, 8):
            velocity(
                backbone,
                control,
                noise(2, *shape),
                torch.tensor([500.0], dtype=torch.float64),
                noise(3, 1, 3, 12),
                noise(seed, 1, 257, 1280),
                noise(4, *shape),
                noise(5, *shape),
            )
        assert (residuals[0] - residuals[1]).abs().max() > 1e-6

    def test_missing_features_are_named(self) -> None:
        with torch.device("meta"):
            backbone = WanModel(WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=1, text_dim=12, freq_dim=16))
            text = torch.zeros(1, 3, 12)
        with pytest.raises(ValueError, match="image branch .*CLIP vision"):
            backbone.embed_context(text, None)


class TestGradients:
    def test_a_fresh_network_is_silent_and_its_gradients_reach_the_combine_linears(self, setting: Setting) -> None:
        fresh = torch_dual_control(CONTROL).double()
        out = setting.velocity(control=fresh)
        with torch.no_grad():
            assert torch.equal(out, setting.velocity(control=None))
        out.square().mean().backward()
        for linear in fresh.control_combine_linears:
            assert linear.weight.grad.abs().max() > 0 and linear.bias.grad.abs().max() > 0
        assert all(
            parameter.grad.abs().max() == 0 for name, parameter in fresh.named_parameters() if "combine_linears" not in name
        )

    def test_gradients_reach_every_parameter_and_both_controls(self, setting: Setting) -> None:
        dense, sparse = setting.dense.clone().requires_grad_(), setting.sparse.clone().requires_grad_()
        setting.velocity(dense=dense, sparse=sparse, history=setting.history).square().mean().backward()
        without = [name for name, value in setting.control.named_parameters() if value.grad is None or not value.grad.any()]
        assert without == []
        assert dense.grad.abs().max() > 0 and sparse.grad.abs().max() > 0

    def test_gradients_are_the_slope(self, setting: Setting) -> None:
        """A central difference along one direction, as an independent truth."""
        dense = setting.dense.clone().requires_grad_()
        setting.velocity(dense=dense).square().mean().backward()
        direction, step = noise(9, *dense.shape), 1e-5
        with torch.no_grad():
            ahead, behind = (setting.velocity(dense=dense + sign * step * direction).square().mean() for sign in (1, -1))
        slope = ((ahead - behind) / (2 * step)).item()
        assert (dense.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


class TestBackboneParts:
    def test_sinusoid_has_the_cosines_first(self) -> None:
        got = sinusoidal_embedding(torch.tensor([700.5, 0.0], dtype=torch.float64), 8)
        angles = [700.5 * 10000 ** (-index / 4) for index in range(4)]
        np.testing.assert_allclose(got[0].numpy(), [*map(math.cos, angles), *map(math.sin, angles)], rtol=0, atol=1e-12)
        assert got[1].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]

    def test_timestep_keeps_its_type(self) -> None:
        assert sinusoidal_embedding(torch.tensor([3.0]), 8).dtype == torch.float32

    @pytest.mark.parametrize(("head_dim", "split"), [(128, (44, 42, 42)), (32, (12, 10, 10)), (16, (8, 4, 4))])
    def test_rope_by_brute_force(self, head_dim: int, split: tuple[int, int, int]) -> None:
        grid = (3, 2, 4)
        got = rope_frequencies(grid, head_dim)
        assert got.shape == (24, head_dim // 2)
        number = 0
        for frame in range(3):
            for row in range(2):
                for column in range(4):
                    place = zip((frame, row, column), split, strict=True)
                    angles = [at * 10000 ** (-2 * i / dim) for at, dim in place for i in range(dim // 2)]
                    np.testing.assert_allclose(got[number].numpy(), np.exp(1j * np.array(angles)), rtol=0, atol=1e-12)
                    number += 1

    def test_rope_turns_neighbouring_pairs(self) -> None:
        x = noise(0, 1, 5, 2, 8)
        freqs = torch.polar(torch.ones(5, 4, dtype=torch.float64), noise(1, 5, 4))
        got = apply_rope(x, freqs)
        angle = np.angle(freqs.numpy())
        for token in range(5):
            for pair in range(4):
                cos, sin = math.cos(angle[token, pair]), math.sin(angle[token, pair])
                for head in range(2):
                    a, b = x[0, token, head, 2 * pair : 2 * pair + 2].tolist()
                    expected = [a * cos - b * sin, a * sin + b * cos]
                    np.testing.assert_allclose(got[0, token, head, 2 * pair : 2 * pair + 2].numpy(), expected, atol=1e-12)

    def test_attention_is_softmax_over_each_head(self) -> None:
        q, k, v = (noise(seed, 1, size, 12).numpy() for seed, size in ((0, 4), (1, 6), (2, 6)))
        expected = np.empty((4, 12))
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = np.exp(q[0, :, part] @ k[0, :, part].T / 2)  # sqrt(head width 4)
            expected[:, part] = scores / scores.sum(1, keepdims=True) @ v[0, :, part]
        got = attention(*map(torch.from_numpy, (q, k, v)), heads=3)
        np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=1e-12)

    def test_patchify_is_frame_major(self, setting: Setting) -> None:
        tokens = setting.backbone.patchify(setting.x)[0]
        conv = setting.backbone.patch_embedding
        number = 0
        for frame in range(FRAMES):
            for row in range(0, HEIGHT, 2):
                for column in range(0, WIDTH, 2):
                    patch = setting.x[0, :, frame, row : row + 2, column : column + 2]
                    expected = (conv.weight[:, :, 0] * patch).sum((1, 2, 3)) + conv.bias
                    torch.testing.assert_close(tokens[number], expected, rtol=0, atol=1e-12)
                    number += 1

    def test_unpatchify_has_the_channel_fastest(self, setting: Setting) -> None:
        tokens = torch.arange(FRAMES * TOKENS_A_FRAME * 64.0).view(1, -1, 64)
        got = setting.backbone.unpatchify(tokens, (FRAMES, HEIGHT // 2, WIDTH // 2))
        assert got.shape == (1, 16, FRAMES, HEIGHT, WIDTH)
        for channel in range(16):
            for frame in range(FRAMES):
                for row in range(HEIGHT):
                    for column in range(WIDTH):
                        token = frame * TOKENS_A_FRAME + row // 2 * (WIDTH // 2) + column // 2
                        value = token * 64 + (row % 2) * 32 + (column % 2) * 16 + channel
                        assert got[0, channel, frame, row, column] == value
