"""Pixels on their way into the model: CLIP vision and the VAE, by the host's own classes."""

import json
from dataclasses import replace

import comfy.model_management
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.clip_vision import ClipVisionModel

from devtools.tiny import randomize
from longvie_core.backends import comfy as backend
from longvie_core.model.clip import ClipInputs
from longvie_core.model.conditioning import encoded_history_frames
from tests.helpers.harness import SEED, Rig, ksampler, largest, make_clip, shifted, simple_sigmas

SIZE = 224
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def clip_vision(tmp_path_factory: pytest.TempPathFactory) -> ClipVisionModel:
    """CLIP ViT-H of two layers: its tokens and widths, the host's class."""
    config = tmp_path_factory.mktemp("clip_vision") / "config.json"
    shape = {"hidden_size": 1280, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16}
    rest = {"model_type": "clip_vision_model", "hidden_act": "gelu", "num_channels": 3, "projection_dim": 16}
    config.write_text(json.dumps({**shape, **rest, "patch_size": 14, "image_size": SIZE, "layer_norm_eps": 1e-5}))
    model = ClipVisionModel(str(config))
    randomize(model.model, 30)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixel_values(clip_vision: ClipVisionModel, encode) -> tuple[np.ndarray, object]:
    """What reaches the vision model, [3, 224, 224], and its output."""
    seen = []
    hook = clip_vision.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    try:
        output = encode()
    finally:
        hook.remove()
    ((values,),) = seen
    return values.numpy(), output


def bicubic_weights(source: int, target: int) -> np.ndarray:
    """Keys' cubic with a = -0.75 on half-pixel centres, edges repeated, no antialias: [target, source] in float64."""
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            d, a = abs(centre - tap), -0.75
            value = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[row, min(max(tap, 0), source - 1)] += value
    return weights


@pytest.mark.parametrize("size", [(64, 96), (352, 640), (224, 224), (400, 120)])
def test_clip_vision_sees_the_stretched_picture(clip_vision: ClipVisionModel, size: tuple[int, int]) -> None:
    """The whole picture, stretched: no crop, no antialias; then 8 bit and CLIP's mean and deviation."""
    frame = picture(*size)
    values, output = pixel_values(clip_vision, lambda: backend.encode_clip_vision(clip_vision, frame))
    rows, columns = (bicubic_weights(source, SIZE) for source in size)
    stretched = np.einsum("ih,hwc,jw->ijc", rows, frame.astype(np.float64), columns, optimize=True)
    expected = (np.rint(np.clip(stretched, 0, 255)) / 255 - MEAN) / STD
    error = np.abs(values - expected.transpose(2, 0, 1))
    level = 1 / 255 / STD.min()
    assert error.max() < 1.01 * level  # a value that lies half-way between two levels may go either way
    assert (error > 1e-5).mean() < 3e-3
    assert output.penultimate_hidden_states.shape == (1, 257, 1280)


def test_the_hosts_own_encodings_are_other_pictures(clip_vision: ClipVisionModel) -> None:
    """Both of the host's ways, crop and smoothed stretch, differ visibly: the test above can fail."""
    frame = picture(352, 640)
    ours, _ = pixel_values(clip_vision, lambda: backend.encode_clip_vision(clip_vision, frame))
    image = torch.from_numpy(frame).float().div(255)[None]
    for crop in (True, False):
        host, _ = pixel_values(clip_vision, lambda crop=crop: clip_vision.encode_image(image, crop=crop))
        assert np.abs(ours - host).mean() > 0.1


def test_a_clip_with_an_image_branch(tiny_image: Rig, vae: object, clip_vision: ClipVisionModel) -> None:
    """The clip loop encodes the start frame itself and gives what KSampler gives with the same CLIP vision output."""
    frame = picture(32, 48)
    patched = backend.apply_control(shifted(tiny_image.model), tiny_image.control)
    clip = make_clip(history=2, vision=backend.encode_clip_vision(clip_vision, frame))
    sampler = backend.MultimodalSampler(
        patched, vae, clip_vision, comfy.samplers.sampler_object("euler"), simple_sigmas(patched), 3.0
    )
    loop = backend.ComfyBackend(sampler)
    inputs = ClipInputs(
        1, frame, clip.image, clip.dense, clip.sparse, clip.history, clip.noise, (clip.positive, clip.negative), SEED
    )
    ours = loop.sample(inputs)
    assert torch.equal(ours, ksampler(patched, clip, 3.0))
    other = replace(clip, vision=backend.encode_clip_vision(clip_vision, picture(32, 48, seed=1)))
    assert largest(ours - ksampler(patched, other, 3.0)) > 1e-3


# VAE


@pytest.fixture
def codec(tiny: Rig, vae: comfy.sd.VAE) -> backend.VaeCodec:
    return backend.VaeCodec(vae, tiny.model)


def plain_encode(vae: comfy.sd.VAE, pixels: np.ndarray) -> torch.Tensor:
    """Pixels [T, H, W, 3] in [-1, 1] straight through the VAE's network."""
    comfy.model_management.load_models_gpu([vae.patcher])
    return vae.first_stage_model.encode(torch.from_numpy(pixels).float().permute(3, 0, 1, 2)[None].to(vae.vae_dtype)).float()


def normalised(latents: torch.Tensor, tiny: Rig) -> torch.Tensor:
    """(z - mean) / std with the published per-channel statistics."""
    published = tiny.model.get_model_object("latent_format")
    mean, std = published.latents_mean.view(1, 16, 1, 1, 1), published.latents_std.view(1, 16, 1, 1, 1)
    return (latents - mean) / std


def test_frames_are_encoded_and_normalised(tiny: Rig, vae: comfy.sd.VAE, codec: backend.VaeCodec) -> None:
    frames = np.stack([picture(32, 48, seed) for seed in range(5)])
    expected = normalised(plain_encode(vae, frames / 127.5 - 1), tiny)
    ours = codec.encode(list(frames))
    assert ours.shape == (1, 16, 2, 4, 6)
    assert largest(ours - expected) < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("frames", range(1, 18))
def test_of_a_history_of_any_length_the_vae_encodes_what_we_say(codec: backend.VaeCodec, frames: int) -> None:
    """The Wan VAE takes one frame, then fours, and drops what is left over: the newest frames of a history."""
    used = encoded_history_frames(frames)
    history = [picture(16, 16, seed) for seed in range(frames)]
    latents = codec.encode(history)
    assert latents.shape[2] == 1 + (used - 1) // 4
    assert torch.equal(codec.encode(history[:used]), latents), "a frame that we call dropped changes the latents"
    changed = [*history[: used - 1], picture(16, 16, 99), *history[used:]]
    assert largest(codec.encode(changed) - latents) > 1e-3, "a frame that we call used has no effect"


def test_a_lone_frame_is_followed_by_mid_grey(tiny: Rig, vae: comfy.sd.VAE, codec: backend.VaeCodec) -> None:
    frame = picture(32, 48)
    pixels = np.zeros((9, 32, 48, 3))
    pixels[0] = frame / 127.5 - 1
    raw = plain_encode(vae, pixels)
    assert largest(codec.encode_image(frame, 9) - raw) < 1e-4 * raw.abs().max()
    expected = normalised(raw, tiny)
    assert largest(codec.encode_first_frame(frame, 9) - expected) < 1e-4 * expected.abs().max()


def test_latents_are_decoded_to_minus_one_to_one(vae: comfy.sd.VAE, codec: backend.VaeCodec) -> None:
    latents = make_clip().image
    comfy.model_management.load_models_gpu([vae.patcher])
    expected = vae.first_stage_model.decode(latents.to(vae.vae_dtype)).float()[0].permute(1, 2, 3, 0).clamp(-1, 1)
    ours = codec.decode(latents)
    assert ours.shape == (9, 32, 48, 3) and ours.dtype == np.float32
    assert np.abs(ours - expected.numpy()).max() < 1e-5
    assert ours.std() > 0.05
