"""Clips to latents and back, many at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from ...backends.diffusers.encoders import VaeCodec
from ...model.conditioning import MID_GREY
from ..networks.whole_clip_vae import WholeClipVae


class WholeClipCodec(VaeCodec):
    """The VAE on clips in one piece, several times faster on a CPU and on small clips; their memory does not stay flat.

    Args:
        vae: used by nothing else: its forward is changed.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae)
        self.whole = WholeClipVae(vae)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.normalised(self.whole.encode(pixels.contiguous(memory_format=torch.channels_last_3d)))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.whole.decode(latents).float().clamp(-1, 1)


class TrainingCodec:
    """Frames to normalised latents and back (:class:`longvie_core.training.degradation.frames.FrameCodec`).

    Args:
        vae: used by nothing else: its forward is changed where ``whole`` is set.
        whole: clips in one piece (:class:`WholeClipCodec`); otherwise diffusers' chunks, whose memory stays flat.
        precision: the convolutions run in this dtype (by autocast).
    """

    def __init__(self, vae: AutoencoderKLWan, *, whole: bool = True, precision: torch.dtype = torch.bfloat16) -> None:
        self.codec = WholeClipCodec(vae) if whole else VaeCodec(vae)
        self.vae = vae
        self.precision = precision

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> [1, 16, f, h, w]."""
        clip = np.stack(list(frames))
        return self.encode_clips(torch.from_numpy(clip)[None], len(clip))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> [1, 16, f, h, w]."""
        return self.encode_clips(torch.from_numpy(frame)[None, None], frames)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents [1, 16, f, h, w] -> float32 frames [T, H, W, 3] in [-1, 1]."""
        return self.decode_pixels(latents)[0].permute(1, 2, 3, 0).cpu().numpy()

    @torch.no_grad()
    def encode_clips(self, clips: Tensor, frames: int) -> Tensor:
        """Clips as they are, or shorter ones with mid grey after them.

        Args:
            clips: uint8 [B, T, H, W, 3] on any device.
            frames: that the VAE sees, T or more.

        Returns:
            Normalised latents [B, 16, f, h, w] on the VAE's device.
        """
        pixels = device_pixels(clips.to(self.vae.device))
        grey = pixels.new_full((len(pixels), frames - pixels.shape[1], *pixels.shape[2:]), MID_GREY)
        pixels = torch.cat([pixels, grey], dim=1).permute(0, 4, 1, 2, 3)
        with self._autocast():
            return self.codec.encode_pixels(pixels)

    def decode_clips(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> uint8 [B, T, H, W, 3] on the VAE's device, as the next clip gets them."""
        return device_uint8(self.decode_pixels(latents).permute(0, 2, 3, 4, 1))

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> pixels [B, 3, T, H, W] in [-1, 1]."""
        with self._autocast():
            return self.codec.decode_pixels(latents)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, self.precision, enabled=self.precision != torch.float32)


def device_pixels(frames: Tensor) -> Tensor:
    """:func:`longvie_core.model.conditioning.pixels_from_uint8` where the tensor is; the same bits."""
    return frames.float() * (2 / 255) - 1


def device_uint8(pixels: Tensor) -> Tensor:
    """:func:`longvie_core.model.conditioning.frames_to_uint8` where the tensor is; the same bits."""
    return ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8)
