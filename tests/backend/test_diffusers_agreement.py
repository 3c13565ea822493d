"""The diffusers backend and the comfy backend make the same video: same files, same controls, whole clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch

from devtools.tiny import RANDOM_BACKBONE, RANDOM_CONTROL, RANDOM_VAE
from longvie_core.backends import comfy as comfy_backend
from longvie_core.backends import diffusers
from longvie_core.model.dual_control import Strengths
from longvie_core.model.noise import UnifiedNoise
from longvie_core.model.schedule import flow_sigmas
from longvie_core.plan import ClipPlan
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, ClipResult, generate
from longvie_core.run.prompts import ClipPrompt, PromptSchedule
from tests.helpers.harness import Rig, largest, text_conditioning

PLAN = ClipPlan(width=64, height=48, frames=9, source_frames=17)
SIGMAS = flow_sigmas(4)
CFG = 3.0
TOLERANCE = 1e-4


class Pictures:
    """Seeded control pictures of a clip."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def window(self, plan: ClipPlan, clip: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, clip])
        return iter(rng.integers(0, 256, (plan.frames, plan.height, plan.width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def backends(weights: dict[str, Path]):
    """The two backends on the same files; dense at 0.7."""
    model, control = comfy.sd.load_diffusion_model(str(weights[RANDOM_BACKBONE])), weights[RANDOM_CONTROL]
    patched = comfy_backend.apply_control(model, comfy_backend.load_control(control), comfy_backend.ModalityRange(0.7))
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights[RANDOM_VAE])))
    sampler = comfy_backend.MultimodalSampler(patched, vae, None, comfy.samplers.sampler_object("euler"), SIGMAS, CFG)
    settings = diffusers.SamplingSettings(SIGMAS, CFG, Strengths(dense=0.7))
    return (
        comfy_backend.ComfyBackend(sampler),
        diffusers.DiffusersBackend(
            diffusers.load_backbone(weights[RANDOM_BACKBONE]),
            diffusers.load_control(control),
            diffusers.VaeCodec(diffusers.load_vae(weights[RANDOM_VAE])),
            settings,
        ),
    )


def one_clip(backend: object, clip: int, carry: Carry) -> ClipResult:
    prompts = PromptSchedule((ClipPrompt("positive"),), "negative")
    script = Script(PLAN, Pictures(1), Pictures(2), carry.frames[0], prompts)
    host_texts = {"positive": text_conditioning(11), "negative": text_conditioning(12)}

    def read_text(text: str) -> object:
        return host_texts[text] if isinstance(backend, comfy_backend.ComfyBackend) else host_texts[text][0][0]

    (result,) = generate(script, [clip], carry, backend, LoopSettings(UnifiedNoise(5)), read_text)
    return result


def test_whole_clips_agree(backends, weights: dict[str, Path]) -> None:
    """The first clip, and one with history; each from the same frames, since 8-bit truncation may flip a level."""
    host, ours = backends
    carry = Carry(np.random.default_rng(3).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8), first=True)
    std = ours.codec.std
    for clip in range(2):
        theirs, result = one_clip(host, clip, carry), one_clip(ours, clip, carry)
        assert largest((result.latents - theirs.latents) / std) < TOLERANCE
        assert np.abs(ours.decode(theirs.latents) - host.decode(theirs.latents)).max() < TOLERANCE
        assert np.abs(result.frames.astype(int) - theirs.frames.astype(int)).max() <= 1
        assert largest((theirs.latents - theirs.latents.mean()) / std) > 0.5  # there is something to compare
        carry = Carry.after(PLAN, theirs.frames)


def test_backbones_agree_with_an_image_branch(tiny_image: Rig) -> None:
    from tests.helpers.harness import evaluate, make_sample

    sample = make_sample(tiny_image, history=2)
    backbone = diffusers.load_backbone(tiny_image.backbone_file)
    ours = diffusers.velocity(
        backbone,
        diffusers.load_control(tiny_image.control_file),
        sample.x[:, :16],
        sample.timestep,
        sample.text,
        sample.x[:, 16:],
        sample.dense,
        sample.sparse,
        sample.history,
        sample.clip_features,
    )
    assert largest(ours - evaluate(tiny_image.controlled(), sample)) < TOLERANCE
    assert torch.isfinite(ours).all()
