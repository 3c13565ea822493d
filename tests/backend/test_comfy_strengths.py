"""Strengths and ranges: what is added, and what is not even computed."""

import logging
from dataclasses import replace

import comfy.model_patcher
import comfy.samplers
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longvie_core.backends import comfy as backend
from longvie_core.model.clip import ClipInputs, ClipStrengths
from tests.helpers.harness import (
    HOST_TOLERANCE,
    SEED,
    STEPS,
    Clip,
    Rig,
    counted,
    evaluate,
    first_blocks,
    ksampler,
    largest,
    make_clip,
    make_sample,
    sample_traced,
    shifted,
    simple_sigmas,
)


def control_modules(rig: Rig) -> dict[str, torch.nn.Module]:
    """Everything of the control network that computes, by name."""
    return {name: module for name, module in rig.control.model.named_modules() if name and not list(module.children())}


def test_both_off_is_the_plain_backbone(rig: Rig) -> None:
    sample = make_sample(rig)
    expected = evaluate(rig.model, replace(sample, dense=None, sparse=None))
    with counted(**control_modules(rig)) as calls:
        ours = evaluate(rig.controlled(dense=0, sparse=0), sample)
    assert torch.equal(ours, expected)
    assert not calls


def test_without_control_latents_it_is_the_plain_backbone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A conditioning that bypassed the control: the same picture as without it, and a word about it."""
    sample = replace(make_sample(rig), dense=None, sparse=None)
    with counted(**control_modules(rig)) as calls, caplog.at_level(logging.WARNING):
        ours = evaluate(rig.controlled(), sample)
    assert torch.equal(ours, evaluate(rig.model, sample))
    assert not calls
    assert "wire positive and negative through it" in caplog.text


@pytest.mark.parametrize("off", ["dense", "sparse"])
def test_a_stream_at_zero_never_runs(rig: Rig, off: str) -> None:
    on = "sparse" if off == "dense" else "dense"
    with counted(**control_modules(rig)) as calls:
        evaluate(rig.controlled(**{off: 0.0}), make_sample(rig))
    ran = {name for name in calls if f"_{off}" in name}
    assert not ran
    assert calls[f"control_initial_combine_linear_{on}"] == 1
    layers = rig.control.model.config.num_layers
    assert sum(calls[f"control_blocks_{on}.{layer}.ffn.0"] for layer in range(layers)) == layers


@pytest.mark.parametrize(("dense", "sparse"), [(1.0, 1.0), (0.7, 1.6), (0.4, 0.0), (0.0, 2.5)])
def test_residual_is_the_weighted_sum_through_the_shared_linear(rig: Rig, dense: float, sparse: float) -> None:
    """``x += Combine_b(s_d * dense + s_s * sparse)``: the bias once and unscaled, history tokens untouched."""
    sample = make_sample(rig, history=2)
    net, backbone = rig.control.model, rig.model.model.diffusion_model
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module, args, output) -> None:
            inputs[name], outputs[name] = args[0].clone(), output.clone()

        return hook

    hooks = [block.register_forward_hook(keep(f"block {index}")) for index, block in enumerate(backbone.blocks)]
    hooks.append(backbone.head.register_forward_hook(keep("head")))
    for layer in range(net.config.num_layers):
        hooks.append(net.control_blocks_dense[layer].register_forward_hook(keep(f"dense {layer}")))
        hooks.append(net.control_blocks_sparse[layer].register_forward_hook(keep(f"sparse {layer}")))
    try:
        evaluate(rig.controlled(dense, sparse), sample)
    finally:
        for hook in hooks:
            hook.remove()

    last = len(backbone.blocks) - 1
    history_tokens = 2 * 2 * 3
    for layer in range(len(backbone.blocks)):
        after = inputs["head" if layer == last else f"block {layer + 1}"]
        # A block's output tensor is the one that the residual is added to in place, so what came before is kept as a clone.
        added = after - outputs[f"block {layer}"]
        if layer < net.config.num_layers:
            streams = [s * outputs[f"{name} {layer}"] for name, s in (("dense", dense), ("sparse", sparse)) if s]
            combine = net.control_combine_linears[layer]
            expected = F.linear(sum(streams), combine.weight.float(), combine.bias.float())
            assert largest(added[:, history_tokens:] - expected) < HOST_TOLERANCE
            assert expected.abs().mean() > 0.05
        else:
            assert torch.equal(added[:, history_tokens:], torch.zeros_like(added[:, history_tokens:]))
        assert torch.equal(added[:, :history_tokens], torch.zeros_like(added[:, :history_tokens]))


# Ranges


def steps_that_ran(rig: Rig, dense: tuple[float, float], sparse: tuple[float, float]) -> dict[str, list[int]]:
    """The steps of a real sampling run in which each stream ran, and the model calls in all."""
    model = shifted(rig.model)
    patched = backend.apply_control(model, rig.control, backend.ModalityRange(1.0, *dense), backend.ModalityRange(1.0, *sparse))
    ran: dict[str, list[int]] = {"dense": [], "sparse": [], "backbone": []}
    with counted(**first_blocks(rig)) as calls:

        def on_step(step: int) -> None:
            for name in ran:
                ran[name] += [step] * calls.pop(name, 0)

        sample_traced(patched, make_clip(), on_step=on_step)
    assert ran["backbone"] == list(range(STEPS))
    return ran


def steps_of_the_host(rig: Rig, start: float, end: float) -> list[int]:
    """The steps in which the host applies a conditioning of this range: ``get_area_and_mult`` leaves out what is beyond."""
    model = shifted(rig.model)
    sampling = model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    return [step for step, sigma in enumerate(simple_sigmas(model)[:-1]) if not bool(sigma > first) and not bool(sigma < last)]


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.0, 0.55), (0.55, 1.0)),
        ((0.2, 0.7), (0.0, 0.05)),
        ((0.9, 1.0), (0.3, 0.35)),
        ((0.0, 0.0), (1.0, 1.0)),
    ],
)
def test_ranges_that_end_between_steps(tiny: Rig, dense: tuple[float, float], sparse: tuple[float, float]) -> None:
    ran = steps_that_ran(tiny, dense, sparse)
    assert ran["dense"] == steps_of_the_host(tiny, *dense)
    assert ran["sparse"] == steps_of_the_host(tiny, *sparse)


@pytest.mark.parametrize("boundary", [step / STEPS for step in range(1, STEPS)])
def test_a_bound_on_a_step_includes_it(tiny: Rig, boundary: float) -> None:
    """8 steps, a bound at k/8: the step that lies on it belongs to the range, as with the host's own ranges."""
    step = round(boundary * STEPS)
    assert steps_of_the_host(tiny, 0.0, boundary)[-1] == steps_of_the_host(tiny, boundary, 1.0)[0] == step
    ran = steps_that_ran(tiny, (0.0, boundary), (boundary, 1.0))
    assert ran["dense"] == list(range(step + 1))
    assert ran["sparse"] == list(range(step, STEPS))


def test_ranges_follow_the_shift_of_the_model_that_is_sampled(tiny: Rig) -> None:
    """Half of the schedule is at another sigma on another shift."""
    patched = backend.apply_control(shifted(tiny.model, 1.0), tiny.control, backend.ModalityRange(1.0, 0.0, 0.55))
    ran: list[int] = []
    with counted(dense=first_blocks(tiny)["dense"]) as calls:
        sample_traced(patched, make_clip(), on_step=lambda step: ran.extend([step] * calls.pop("dense", 0)))
    assert ran == [0, 1, 2, 3, 4]


# A clip's own strengths


def sampled(patched, vae: object, clip: Clip, own: dict[int, ClipStrengths], cfg: float = 3.0) -> dict[int, torch.Tensor]:
    """Latents of clips by number, sampled one after the other by one backend on one MODEL, as the clip loop does."""
    sampler = backend.MultimodalSampler(patched, vae, None, comfy.samplers.sampler_object("euler"), simple_sigmas(patched), cfg)
    loop = backend.ComfyBackend(sampler)
    frame, texts = np.zeros((32, 48, 3), dtype=np.uint8), (clip.positive, clip.negative)
    controls = (clip.dense, clip.sparse, clip.history)
    return {
        number: loop.sample(ClipInputs(number, frame, clip.image, *controls, clip.noise, texts, SEED, strengths))
        for number, strengths in own.items()
    }


@pytest.mark.parametrize(
    ("own", "as_if"),
    [
        (ClipStrengths(), (0.7, 1.5)),
        (ClipStrengths(dense=0.2), (0.2, 1.5)),
        (ClipStrengths(sparse=0.0), (0.7, 0.0)),
        (ClipStrengths(0.0, 3.0), (0.0, 3.0)),
    ],
)
def test_a_clips_own_strengths_replace_the_samplers(
    tiny: Rig, vae: object, own: ClipStrengths, as_if: tuple[float, float]
) -> None:
    clip = make_clip(history=2)
    dense, sparse = backend.ModalityRange(0.7, 0.0, 0.6), backend.ModalityRange(1.5, 0.3, 1.0)
    model = shifted(tiny.model)
    (ours,) = sampled(backend.apply_control(model, tiny.control, dense, sparse), vae, clip, {0: own}).values()
    expected = backend.apply_control(model, tiny.control, replace(dense, strength=as_if[0]), replace(sparse, strength=as_if[1]))
    assert torch.equal(ours, ksampler(expected, clip, 3.0))


def test_clips_of_different_strength_share_one_model(tiny: Rig, vae: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clone, no patch and no wrapper more, and no clip leaves anything behind for the next."""
    clip = make_clip(history=2)
    patched = backend.apply_control(shifted(tiny.model), tiny.control)
    own = {number: ClipStrengths(*pair) for number, pair in enumerate([(None, None), (0.3, 2.0), (0.0, 0.0), (None, None)])}
    before = str(patched.wrappers) + str(patched.model_options)
    alone = {number: sampled(patched, vae, clip, {number: strengths})[number] for number, strengths in own.items()}

    def refused(*_args: object, **_more: object) -> None:
        raise AssertionError("a MODEL was cloned for a clip")

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_patcher.ModelPatcher, "clone", refused)
        together = sampled(patched, vae, clip, own)
    assert str(patched.wrappers) + str(patched.model_options) == before
    assert all(torch.equal(together[number], alone[number]) for number in own)
    assert torch.equal(together[0], together[3])
    assert largest(together[0] - together[1]) > 0.01 and largest(together[0] - together[2]) > 0.01


def test_a_clip_with_both_off_computes_no_control(tiny: Rig, vae: object, caplog: pytest.LogCaptureFixture) -> None:
    clip = make_clip(history=2)
    patched = backend.apply_control(shifted(tiny.model), tiny.control)
    with counted(**control_modules(tiny)) as calls, caplog.at_level(logging.WARNING):
        (ours,) = sampled(patched, vae, clip, {0: ClipStrengths(0.0, 0.0)}).values()
    assert not calls and not caplog.text
    off = backend.apply_control(shifted(tiny.model), tiny.control, backend.ModalityRange(0.0), backend.ModalityRange(0.0))
    assert torch.equal(ours, ksampler(off, clip, 3.0))


def test_a_stream_that_a_clip_turns_on_runs_although_the_sampler_has_it_off(tiny: Rig, vae: object) -> None:
    patched = backend.apply_control(shifted(tiny.model), tiny.control, backend.ModalityRange(0.0), backend.ModalityRange(0.0))
    with counted(**first_blocks(tiny)) as calls:
        sampled(patched, vae, make_clip(), {0: ClipStrengths(dense=1.0)}, cfg=1.0)
    assert (calls["dense"], calls["sparse"]) == (STEPS, 0)
