"""VAE, text and image encoders of diffusers and transformers, from local folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from ...model.conditioning import first_frame_then_grey, pixels_from_uint8

# Encoders


class VaeCodec:
    """Frames to normalised latents and back, by diffusers' Wan VAE.

    Args:
        vae: from :func:`load_vae`; it works in its own dtype and on its own device, latents are float32.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.mean, self.std = (
            torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, 16, f, h, w], the mean of the posterior."""
        latents = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return self.normalised(latents)

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> pixels [B, 3, T, H, W] in [-1, 1]."""
        return self._decode(self.denormalised(latents))

    def normalised(self, latents: Tensor) -> Tensor:
        """Latents of the VAE as the backbone wants them."""
        return (latents.float() - self.mean) / self.std

    def denormalised(self, latents: Tensor) -> Tensor:
        """Latents as the VAE itself has them."""
        return latents.to(self.mean) * self.std + self.mean

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""
        return self._encode(pixels_from_uint8(np.stack(list(frames))))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> normalised latents [1, 16, f, h, w]."""
        return self._encode(first_frame_then_grey(frame, frames))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as the VAE has them -> float32 frames [T, H, W, 3] in [-1, 1]."""
        return self._decode(latents)[0].permute(1, 2, 3, 0).cpu().numpy()

    def _encode(self, pixels: np.ndarray) -> Tensor:
        return self.encode_pixels(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.device, self.vae.dtype), return_dict=False)[0].float()


TEXT_TOKENS = 512
"""Tokens of a prompt that Wan reads; those after its end are zero."""


class TextEncoder:
    """umT5 of transformers, from a local folder: a diffusers pipeline (``tokenizer`` and ``text_encoder``) or a plain one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no umT5 in safetensors, or no tokenizer.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.tokenizer = _pretrained(AutoTokenizer, folder, "tokenizer")
        self.model = _pretrained(UMT5EncoderModel, folder, "text_encoder", use_safetensors=True).to(device, dtype).eval()

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        """A prompt -> float32 [1, 512, width], zero after its end; runs of white space count as one space."""
        inputs = self.tokenizer(
            [" ".join(text.split())], padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(inputs.input_ids, inputs.attention_mask).last_hidden_state
        return (hidden * inputs.attention_mask[..., None]).float()


CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """CLIP vision of transformers, from a local folder: a diffusers pipeline (``image_encoder``) or a plain one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no CLIP vision model in safetensors.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        from transformers import CLIPVisionModel

        self.model = _pretrained(CLIPVisionModel, folder, "image_encoder", use_safetensors=True).to(device, dtype).eval()
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

    @torch.no_grad()
    def __call__(self, frame: np.ndarray) -> Tensor:
        """uint8 frame [H, W, 3] -> float32 [1, 257, 1280], the last block but one.

        Stretched to 224x224 bicubic without crop and without antialias, as the reference's weights saw it.
        """
        pixels = torch.from_numpy(frame).to(self.model.device).float().div(255).movedim(-1, 0)[None]
        pixels = F.interpolate(pixels, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=False)
        pixels = ((pixels - self.mean) / self.std).to(self.model.dtype)
        return self.model(pixels, output_hidden_states=True).hidden_states[-2].float()


def _pretrained(model_class: Any, folder: Path, part: str, **options: object) -> Any:
    """One part of a local diffusers pipeline, or what lies in the folder itself."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give a local one, nothing is downloaded")
    place = folder / part if (folder / part).is_dir() else folder
    try:
        return model_class.from_pretrained(place, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{place} holds no {part.replace('_', ' ')} that transformers can open: {error}") from error
