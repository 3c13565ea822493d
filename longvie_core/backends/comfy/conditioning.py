"""CONDITIONING of the host with control, history, start frame and text; frames to latents and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import comfy.conds
import comfy.model_patcher
import node_helpers
import numpy as np
import torch
from torch import Tensor

from ...model.clip import ClipStrengths
from .weights import wan_backbone

DENSE, SPARSE, HISTORY, STRENGTHS = "longvie_dense", "longvie_sparse", "longvie_history", "longvie_strengths"

Conditioning = list


# Conditioning


def with_control(
    conditioning: Conditioning,
    dense: Tensor | None,
    sparse: Tensor | None,
    history: Tensor | None,
    strengths: ClipStrengths | None = None,
) -> Conditioning:
    """CONDITIONING that carries control latents [1, 36, f, h, w] and history latents [1, 16, f_h, h, w] (normalised).

    ``strengths`` of this clip take the place of those that the MODEL was patched with.
    """
    extra = {}
    if strengths is not None:
        extra[STRENGTHS] = comfy.conds.CONDConstant(strengths)
    if dense is not None:
        extra[DENSE] = comfy.conds.CONDNoiseShape(dense)
    if sparse is not None:
        extra[SPARSE] = comfy.conds.CONDNoiseShape(sparse)
    if history is not None:
        # A list: context windows slice tensors whose frame count happens to be the clip's.
        extra[HISTORY] = comfy.conds.CONDList([history])
    return [[text, {**values, "model_conds": {**values.get("model_conds", {}), **extra}}] for text, values in conditioning]


def with_image(conditioning: Conditioning, image_latents: Tensor, clip_vision_output: object | None) -> Conditioning:
    """CONDITIONING that carries the clip's first frame, as the host's image-to-video nodes do it.

    Args:
        conditioning: the host's.
        image_latents: VAE(first frame, grey, ...) [1, 16, f, h, w] as the VAE gives it, not normalised.
        clip_vision_output: the host's, where the backbone has an image branch.
    """
    mask = torch.ones_like(image_latents[:, :1])
    mask[:, :, 0] = 0
    values = {"concat_latent_image": image_latents, "concat_mask": mask}
    if clip_vision_output is not None:
        values["clip_vision_output"] = clip_vision_output
    return node_helpers.conditioning_set_values(conditioning, values)


def empty_text(model: comfy.model_patcher.ModelPatcher) -> Conditioning:
    """CONDITIONING of no text: one zero token, which attends like any number of them."""
    return [[torch.zeros(1, 1, wan_backbone(model).text_dim), {}]]


def encode_text(clip: Any, text: str) -> Conditioning:
    """CONDITIONING of a prompt by the host's CLIP."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def encode_clip_vision(clip_vision: Any, frame: np.ndarray) -> object:
    """CLIP vision output of a uint8 frame [H, W, 3], stretched to 224x224 bicubic without crop and without antialias.

    The host crops or smooths by default; the reference's weights saw this.
    """
    pixels = torch.from_numpy(frame).float().div(255).movedim(-1, 0)[None]
    size = clip_vision.image_size
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return clip_vision.encode_image(pixels.movedim(1, -1), crop=False)


class VaeCodec:
    """Frames to normalised latents and back, by the host's VAE and the model's latent format."""

    def __init__(self, vae: Any, model: comfy.model_patcher.ModelPatcher) -> None:
        self.vae = vae
        self.latent_format = model.get_model_object("latent_format")

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Pixels [T, H, W, 3] in 0 .. 1 -> latents [1, 16, f, h, w] as the VAE gives them.

        Raises:
            ValueError: the VAE's latents do not fit the model.
        """
        latents = self.vae.encode(pixels)
        if latents.ndim != 5 or latents.shape[1] != self.latent_format.latent_channels:
            raise ValueError(
                f"this VAE gives latents of shape {list(latents.shape)}: LongVie needs the Wan 2.1 video VAE "
                f"({self.latent_format.latent_channels} channels, with a time axis)"
            )
        return latents

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""
        return self.latent_format.process_in(self.encode_raw(torch.from_numpy(np.stack(list(frames))).float().div_(255)))

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> latents [1, 16, f, h, w] as the VAE gives them."""
        pixels = torch.full((frames, *frame.shape), 0.5)
        pixels[0] = torch.from_numpy(frame).float().div_(255)
        return self.encode_raw(pixels)

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """:meth:`encode_image`, normalised."""
        return self.latent_format.process_in(self.encode_image(frame, frames))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as the sampler gives them -> float32 frames [T, H, W, 3] in [-1, 1]."""
        frames = self.vae.decode(latents)
        return frames.reshape(-1, *frames.shape[-3:]).float().mul_(2).sub_(1).cpu().numpy()
