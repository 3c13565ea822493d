"""Whole sampling runs through the host's guider and samplers, by both ways in, and against plain torch."""

import logging
from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from torch import Tensor

from longvie_core.backends import comfy as backend
from longvie_core.model.clip import ClipInputs
from longvie_core.model.conditioning import image_condition
from longvie_core.model.noise import UnifiedNoise, initial_latents
from longvie_core.model.schedule import flow_sigmas, sample_euler
from tests.helpers.harness import (
    SEED,
    SHIFT,
    STEPS,
    Clip,
    Rig,
    Sample,
    ksampler,
    largest,
    make_clip,
    plain_velocity,
    sample_traced,
    shifted,
    simple_sigmas,
    text_conditioning,
)

LOOP_TOLERANCE = 2e-4
"""Eight steps of a random network in latent units; the result's standard deviation is about 1."""


class Vision:
    """What the host's CLIP vision gives to a conditioning."""

    def __init__(self, seed: int) -> None:
        self.penultimate_hidden_states = torch.randn((1, 257, 1280), generator=torch.Generator().manual_seed(seed))


def clip_for(rig: Rig, history: int) -> Clip:
    return make_clip(history=history, vision=Vision(50) if rig.plain.config.has_image_input else None)


def patched_model(rig: Rig, sigma: float = 25 / 27, **ranges: backend.ModalityRange):
    return backend.apply_control(shifted(rig.model), rig.control, first_frame_sigma=sigma, **ranges)


def one_clip_backend(patched, vae, cfg: float, clip: Clip, **options) -> backend.ComfyBackend:
    """What the clip loop samples with; CLIP vision is a stand-in that the caller replaces where the model needs it."""
    sampler = backend.MultimodalSampler(patched, vae, None, comfy.samplers.sampler_object("euler"), simple_sigmas(patched), cfg)
    return backend.ComfyBackend(sampler, **options)


def clip_inputs(clip: Clip, number: int = 3) -> ClipInputs:
    frame = np.zeros((32, 48, 3), dtype=np.uint8)
    return ClipInputs(
        number, frame, clip.image, clip.dense, clip.sparse, clip.history, clip.noise, (clip.positive, clip.negative), SEED
    )


def tensors_of(clip: Clip) -> dict[str, Tensor]:
    return {name: value for name, value in vars(clip).items() if torch.is_tensor(value)}


@pytest.mark.parametrize("history", [0, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_ksampler_and_clip_loop_give_the_same_bits(tiny: Rig, vae: object, cfg: float, history: int) -> None:
    clip = make_clip(history=history)
    patched = patched_model(tiny)
    node = ksampler(patched, clip, cfg)
    loop = one_clip_backend(patched, vae, cfg, clip).sample(clip_inputs(clip))
    assert torch.equal(node, loop)
    assert torch.equal(node, ksampler(patched, clip, cfg))
    assert largest(node - ksampler(shifted(tiny.model), clip, cfg)) > 0.05  # the control acts
    if history:
        assert largest(node - ksampler(patched, replace(clip, history=None), cfg)) > 0.05


def test_seed_noise_is_the_hosts() -> None:
    """UnifiedNoise and KSampler draw the same noise from the same seed."""
    shape = (1, 16, 5, 4, 6)
    host = comfy.sample.prepare_noise(torch.zeros(shape), SEED)
    assert torch.equal(UnifiedNoise(SEED).for_clip(0, shape), host)
    assert torch.equal(UnifiedNoise(SEED).generate_noise({"samples": torch.zeros(shape)}), host)


def test_longvie_sigmas_are_the_hosts_schedule(tiny: Rig) -> None:
    assert largest(flow_sigmas(STEPS, SHIFT) - simple_sigmas(shifted(tiny.model))) < 1e-6


@pytest.mark.parametrize("history", [0, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_sampling_equals_plain_torch(rig: Rig, cfg: float, history: int) -> None:
    """The whole run of the host's KSampler against our own Euler loop on the plain network."""
    clip = clip_for(rig, history)
    patched = patched_model(rig)
    latent_format = patched.get_model_object("latent_format")
    y = image_condition(latent_format.process_in(clip.image))

    def velocity(latents: Tensor, timestep: Tensor, positive: bool) -> Tensor:
        text = (clip.positive if positive else clip.negative)[0][0]
        features = None if clip.vision is None else clip.vision.penultimate_hidden_states
        x = torch.cat([latents, y], dim=1)
        sample = Sample(x, timestep, text, features, clip.dense, clip.sparse, clip.history)
        return plain_velocity(rig.plain, rig.plain_control, sample)

    start = initial_latents(clip.noise, clip.history)
    *_, latents = sample_euler(velocity, start, flow_sigmas(STEPS, SHIFT), cfg)
    ours = latent_format.process_in(ksampler(patched, clip, cfg))
    assert latents.std() > 0.3
    assert largest(ours - latents) < LOOP_TOLERANCE


@pytest.mark.parametrize("sigma", [25 / 27, 0.5, 1.0])
def test_first_frame_starts_blended_with_the_history(tiny: Rig, sigma: float) -> None:
    """P2: ``(1 - s) * last history latent + s * noise`` in frame 0, the noise elsewhere."""
    clip = make_clip(history=2)
    _, trace = sample_traced(patched_model(tiny, sigma), clip)
    start, noise = trace[0], clip.noise
    blended = (1 - sigma) * clip.history[:, :, 1] + sigma * noise[:, :, 0]
    assert largest(start[:, :, 0] - blended) < 1e-6
    assert torch.equal(start[:, :, 1:], noise[:, :, 1:])


def test_without_history_it_starts_from_the_noise(tiny: Rig) -> None:
    clip = make_clip()
    _, trace = sample_traced(patched_model(tiny), clip)
    assert torch.equal(trace[0], clip.noise)


def test_a_partial_denoise_is_not_blended(tiny: Rig) -> None:
    """Refining a given latent: its first frame is the picture already."""
    clip = make_clip(history=2)
    ours = ksampler(patched_model(tiny), clip, denoise=0.5)
    unblended = ksampler(patched_model(tiny, sigma=1.0), clip, denoise=0.5)
    assert torch.equal(ours, unblended)
    assert largest(ksampler(patched_model(tiny), clip) - ksampler(patched_model(tiny, sigma=1.0), clip)) > 1e-3


def test_nothing_given_is_changed(tiny: Rig, vae: object) -> None:
    """The shared noise above all: the reference overwrites it in place."""
    clip = make_clip(history=2)
    before = {name: value.clone() for name, value in tensors_of(clip).items()}
    inputs = clip_inputs(clip)
    noise = inputs.noise.clone()
    patched = patched_model(tiny)
    one_clip_backend(patched, vae, 3.0, clip).sample(inputs)
    ksampler(patched, clip, 3.0)
    assert torch.equal(inputs.noise, noise)
    for name, value in tensors_of(clip).items():
        assert torch.equal(value, before[name]), name
    assert set(clip.positive[0][1]) == set()


def test_two_latents_in_a_batch(tiny: Rig) -> None:
    """KSampler with a batch of two: both get the clip's control and history."""
    clip = make_clip(history=2)
    patched = patched_model(tiny)
    noise = torch.cat([clip.noise, clip.noise.flip(-1)])
    positive, negative = clip.conditioned(clip.positive), clip.conditioned(clip.negative)
    sampler = comfy.samplers.sampler_object("euler")

    def run(start: Tensor) -> Tensor:
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(positive, negative)
        guider.set_cfg(3.0)
        return guider.sample(start, torch.zeros_like(start), sampler, simple_sigmas(patched), disable_pbar=True, seed=1)

    both = run(noise)
    for index in range(2):
        assert largest(both[index : index + 1] - run(noise[index : index + 1])) < LOOP_TOLERANCE


def test_texts_of_different_length(tiny: Rig) -> None:
    """Positive and negative cannot be batched then: two calls, the same control."""
    clip = make_clip(history=2)
    uneven = replace(clip, negative=text_conditioning(12, tokens=3))
    latents = ksampler(patched_model(tiny), uneven, 3.0)
    repeated = replace(
        clip, negative=[[uneven.negative[0][0].repeat(1, 5, 1), {}]], positive=[[clip.positive[0][0].repeat(1, 3, 1), {}]]
    )  # attention over equal tokens is attention over one
    assert largest(latents - ksampler(patched_model(tiny), repeated, 3.0)) < LOOP_TOLERANCE


def test_control_on_the_positive_alone_is_reported(tiny: Rig, caplog: pytest.LogCaptureFixture) -> None:
    clip = make_clip()
    guider = comfy.samplers.CFGGuider(patched_model(tiny))
    guider.set_conds(clip.conditioned(clip.positive), backend.with_image(clip.negative, clip.image, None))
    guider.set_cfg(3.0)
    with caplog.at_level(logging.WARNING):
        guider.sample(
            clip.noise,
            torch.zeros(clip.shape),
            comfy.samplers.sampler_object("euler"),
            simple_sigmas(shifted(tiny.model), 3),
            disable_pbar=True,
            seed=SEED,
        )
    assert caplog.text.count("wire positive and negative through it") == 1


# ComfyBackend


def test_every_step_is_reported(tiny: Rig, vae: object) -> None:
    steps = []
    clip = make_clip()
    one_clip_backend(
        patched_model(tiny), vae, 1.0, clip, on_step=lambda number, step, x0: steps.append((number, step, tuple(x0.shape)))
    ).sample(clip_inputs(clip, number=5))
    assert steps == [(5, step, clip.shape) for step in range(STEPS)]


def test_progress_counts_over_clips(tiny: Rig, vae: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips of eight steps are one bar of sixteen; previews of the running clip go to another node."""
    reports = []

    def report(value: int, total: int, preview: object, node_id: str | None = None) -> None:
        reports.append((node_id, value, total, preview is not None))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", report)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    clip = make_clip()
    loop = one_clip_backend(patched_model(tiny), vae, 1.0, clip)
    loop.on_step = backend.progress_over_clips(loop.sampler, [4, 5], "7")
    for number in (4, 5):
        loop.sample(clip_inputs(clip, number))
    assert [entry for entry in reports if entry[0] == "7"] == [("7", step + 1, STEPS, True) for step in range(STEPS)] * 2
    bar = [entry for entry in reports if entry[0] is None]  # the host drops reports that follow each other too quickly
    assert bar == sorted(set(bar))
    assert bar[0] == (None, 1, 2 * STEPS, False) and bar[-1] == (None, 2 * STEPS, 2 * STEPS, False)


def test_cancel_stops_between_steps(tiny: Rig, vae: object) -> None:
    reached = []

    def on_step(number: int, step: int, x0: Tensor) -> None:
        reached.append(step)
        if step == 2:
            comfy.model_management.interrupt_current_processing(True)

    clip = make_clip()
    running = one_clip_backend(patched_model(tiny), vae, 1.0, clip, on_step=on_step)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        running.sample(clip_inputs(clip))
    assert reached == [0, 1, 2]
    assert not comfy.model_management.processing_interrupted()


def test_no_prompt_is_one_zero_token(tiny: Rig) -> None:
    """Attention over any number of equal tokens is the same."""
    (((token, values),)) = backend.empty_text(shifted(tiny.model))
    assert token.shape == (1, 1, 4096) and values == {} and not token.any()
    one = replace(make_clip(), positive=[[token, {}]])
    many = replace(one, positive=[[token.repeat(1, 512, 1), {}]])
    assert largest(ksampler(patched_model(tiny), one) - ksampler(patched_model(tiny), many)) < LOOP_TOLERANCE
