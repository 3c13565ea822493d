"""Half-width initialisation: which entry goes where, and that each half is a working block of half the width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvie_core.model.dual_control import DualControlConfig, torch_dual_control, velocity
from longvie_core.model.wan import WanBlock, WanConfig, WanModel, rope_frequencies
from longvie_core.training.initialise import half_width_weights

HEAD = 16
BACKBONE = WanConfig(dim=64, ffn_dim=96, num_heads=4, num_layers=3, text_dim=12, freq_dim=16)
CONTROL = DualControlConfig(dim=64, control_dim=32, ffn_dim=48, num_heads=2, num_layers=2)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else noise)
    return module


@pytest.fixture(scope="module")
def backbone() -> WanModel:
    return randomise(WanModel(BACKBONE), 0)


@pytest.fixture(scope="module")
def weights(backbone: WanModel) -> dict[str, Tensor]:
    return half_width_weights(backbone.state_dict(), CONTROL)


def channels(parity: int, size: int) -> list[int]:
    return [i for i in range(size) if i % 2 == parity]


def in_heads(parity: int, size: int) -> list[int]:
    return [i for i in range(size) if (i // HEAD) % 2 == parity]


@pytest.mark.parametrize(("stream", "parity"), [("dense", 0), ("sparse", 1)])
def test_every_entry_is_the_backbones(backbone: WanModel, weights: dict[str, Tensor], stream: str, parity: int) -> None:
    rows_by_head = ("self_attn.q", "self_attn.k", "self_attn.v", "cross_attn.q", "cross_attn.k", "cross_attn.v")
    rows_by_head += ("cross_attn.k_img", "cross_attn.v_img")
    source = {key: value.numpy() for key, value in backbone.state_dict().items()}
    checked = 0
    for layer in range(CONTROL.num_layers):
        ours, theirs = f"control_blocks_{stream}.{layer}.", f"blocks.{layer}."
        expected = {"modulation": source[f"{theirs}modulation"][:, :, channels(parity, 64)]}
        for name in rows_by_head:
            weight, bias = source[f"{theirs}{name}.weight"], source[f"{theirs}{name}.bias"]
            expected[f"{name}.weight"] = weight[np.ix_(in_heads(parity, 64), channels(parity, 64))]
            expected[f"{name}.bias"] = bias[in_heads(parity, 64)]
        for name in ("self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k", "cross_attn.norm_k_img"):
            expected[f"{name}.weight"] = source[f"{theirs}{name}.weight"][in_heads(parity, 64)]
        for name in ("self_attn.o", "cross_attn.o"):
            weight, bias = source[f"{theirs}{name}.weight"], source[f"{theirs}{name}.bias"]
            expected[f"{name}.weight"] = weight[np.ix_(channels(parity, 64), in_heads(parity, 64))]
            expected[f"{name}.bias"] = bias[channels(parity, 64)]
        for name, rows, columns in (("ffn.0", 96, 64), ("ffn.2", 64, 96)):
            weight, bias = source[f"{theirs}{name}.weight"], source[f"{theirs}{name}.bias"]
            expected[f"{name}.weight"] = weight[np.ix_(channels(parity, rows), channels(parity, columns))]
            expected[f"{name}.bias"] = bias[channels(parity, rows)]
        for kind in ("weight", "bias"):
            expected[f"norm3.{kind}"] = source[f"{theirs}norm3.{kind}"][channels(parity, 64)]
        for name, value in expected.items():
            np.testing.assert_array_equal(weights[ours + name].numpy(), value, err_msg=ours + name)
        checked += len(expected)
    assert checked == sum(key.startswith(f"control_blocks_{stream}.") for key in weights)


def test_two_equal_halves_woven_together_run_like_one_half() -> None:
    """The split is a true inverse: rotary pairs, heads and norms of the full block belong to one half each.

    A full-width block is woven, by index arithmetic of its own, from two copies of one half-width block that do not see each
    other. Fed with every channel twice, it must give every channel of the half-width block twice.
    """
    half = randomise(WanBlock(32, 48, 2, image=True), 1).double()
    full = WanBlock(64, 96, 4, image=True).double()
    woven = {}
    for key, value in half.state_dict().items():
        shape = [2 * size for size in value.shape]
        if key == "modulation":
            shape[:2] = value.shape[:2]
        big = torch.zeros(shape, dtype=value.dtype)
        for parity in (0, 1):
            index = []
            for axis, size in enumerate(value.shape):
                by_head = "attn" in key and (axis == (1 if ".o." in key else 0)) and not key.endswith("o.bias")
                if key == "modulation" and axis < 2:
                    index.append(list(range(size)))
                elif by_head:
                    index.append([(2 * (i // HEAD) + parity) * HEAD + i % HEAD for i in range(size)])
                else:
                    index.append([2 * i + parity for i in range(size)])
            big[np.ix_(*index)] = value
        woven[key] = big
    full.load_state_dict(woven)

    generator = torch.Generator().manual_seed(2)
    x, e, context = (torch.randn(1, n, 32, generator=generator, dtype=torch.float64) for n in (12, 6, 9))
    twice = [t.repeat_interleave(2, dim=-1) for t in (x, e, context)]
    freqs = rope_frequencies((2, 2, 3), HEAD)
    with torch.no_grad():
        expected = half(x, e, freqs, context, 4)
        got = full(twice[0], twice[1], freqs, twice[2], 4)
    # the feed-forward and the norms act on equal halves, so nothing but the weaving can make a difference
    torch.testing.assert_close(got, expected.repeat_interleave(2, dim=-1), rtol=0, atol=1e-12)

    blocks = {f"blocks.{layer}.{key}": value for layer in range(2) for key, value in woven.items()}
    split = half_width_weights(blocks, CONTROL)
    for stream in ("dense", "sparse"):
        for key, value in half.state_dict().items():
            assert torch.equal(split[f"control_blocks_{stream}.1.{key}"], value), f"{stream} {key}"


def test_what_starts_at_zero_and_what_the_streams_share(weights: dict[str, Tensor]) -> None:
    zero = {key for key, value in weights.items() if not key.startswith("control_blocks") and not value.any()}
    inputs = {f"control_initial_combine_linear_{s}.{k}" for s in ("dense", "sparse") for k in ("weight", "bias")}
    combine = {f"control_combine_linears.{layer}.{k}" for layer in range(2) for k in ("weight", "bias")}
    assert zero == inputs | combine | {"control_text_linear.bias", "control_t_mod.bias"}
    signal = torch.randn(64, generator=torch.Generator().manual_seed(3))
    for name in ("control_text_linear", "control_t_mod"):
        got = weights[f"{name}.weight"] @ signal
        np.testing.assert_allclose(got.numpy(), signal.numpy().reshape(32, 2).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("zero_inputs", [True, False])
def test_the_controlled_backbone_begins_as_the_backbone(backbone: WanModel, zero_inputs: bool) -> None:
    control = torch_dual_control(CONTROL)
    control.load_state_dict(half_width_weights(backbone.state_dict(), CONTROL, zero_inputs=zero_inputs))
    generator = torch.Generator().manual_seed(4)
    x, dense, sparse = (torch.randn(1, 36, 2, 4, 6, generator=generator) for _ in range(3))
    text, features = torch.randn(1, 5, 12, generator=generator), torch.randn(1, 257, 1280, generator=generator)
    given = (x, torch.tensor([500.0]), text, features)
    out = velocity(backbone, control, *given, dense, sparse)
    with torch.no_grad():
        assert torch.equal(out, velocity(backbone, None, *given))
    out.square().mean().backward()
    moved = {name for name, value in control.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == {f"control_combine_linears.{layer}.{kind}" for layer in range(2) for kind in ("weight", "bias")}


def test_input_linears_may_start_at_each_streams_own_channels(backbone: WanModel, weights: dict[str, Tensor]) -> None:
    other = half_width_weights(backbone.state_dict(), CONTROL, zero_inputs=False)
    tokens = torch.randn(64, generator=torch.Generator().manual_seed(5))
    for stream, parity in (("dense", 0), ("sparse", 1)):
        assert torch.equal(other.pop(f"control_initial_combine_linear_{stream}.weight") @ tokens, tokens[parity::2])
    assert all(torch.equal(value, weights[key]) for key, value in other.items()) and len(other) == len(weights) - 2


def test_the_copies_are_the_callers_own(backbone: WanModel, weights: dict[str, Tensor]) -> None:
    theirs = {value.untyped_storage().data_ptr() for value in backbone.state_dict().values()}
    ours = [value.untyped_storage().data_ptr() for value in weights.values()]
    assert len(set(ours)) == len(ours) and theirs.isdisjoint(ours)
    assert all(value.is_contiguous() for value in weights.values())


def test_the_14b_shape_on_the_meta_device() -> None:
    config = DualControlConfig()
    with torch.device("meta"):
        backbone = WanModel(WanConfig(num_layers=12)).to(torch.bfloat16).state_dict()
        expected = torch_dual_control(config).state_dict()
    weights = half_width_weights(backbone, config)
    assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in expected.items()}
    assert len(weights) == 800 and sum(value.numel() for value in weights.values()) == 2_633_637_888
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


def test_a_backbone_without_image_branch() -> None:
    plain = WanModel(WanConfig(dim=64, ffn_dim=96, num_heads=4, num_layers=2, text_dim=12, has_image_input=False))
    config = DualControlConfig(dim=64, control_dim=32, ffn_dim=48, num_heads=2, num_layers=2, image=False)
    torch_dual_control(config).load_state_dict(half_width_weights(plain.state_dict(), config))
    with pytest.raises(ValueError, match="missing.*k_img"):
        half_width_weights(plain.state_dict(), CONTROL)


def test_refusals_name_what_is_wrong(backbone: WanModel) -> None:
    state = backbone.state_dict()
    deeper = DualControlConfig(dim=64, control_dim=32, ffn_dim=48, num_heads=2, num_layers=4)
    with pytest.raises(ValueError, match=r"missing \(\d+\): blocks\.3\."):
        half_width_weights(state, deeper)
    with pytest.raises(ValueError, match=r"wrong shape.*ffn"):
        half_width_weights(state, DualControlConfig(dim=64, control_dim=32, ffn_dim=40, num_heads=2, num_layers=2))
    with pytest.raises(ValueError, match="16 is not half of the backbone's 64"):
        half_width_weights(state, DualControlConfig(dim=64, control_dim=16, ffn_dim=48, num_heads=1, num_layers=2))
