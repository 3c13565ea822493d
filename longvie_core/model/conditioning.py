"""What the network is conditioned on: 36-channel controls, image latents, history (P2 section 3.2; the reference's layouts)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..plan import VAE_TIME_STRIDE

MASK_CHANNELS = 4
HISTORY_FRAMES = 8
"""Frames that the reference hands on; its VAE encodes the first 5 of them (see :func:`encoded_history_frames`)."""

MID_GREY = 0.0
"""Pixel value in [-1, 1] of the frames that follow a lone first frame."""


def first_frame_mask(latents: Tensor) -> Tensor:
    """Mask [B, 4, f, h, w] of latents [B, C, f, h, w]: 1 in the first latent frame (known), 0 after it."""
    batch, _, frames, height, width = latents.shape
    mask = latents.new_zeros(batch, MASK_CHANNELS, frames, height, width)
    mask[:, :, 0] = 1
    return mask


def image_condition(image_latents: Tensor) -> Tensor:
    """The clip's own condition [B, 20, f, h, w]: mask 4, then VAE(first frame, grey, grey, ...) 16."""
    return torch.cat([first_frame_mask(image_latents), image_latents], dim=1)


def control_condition(video_latents: Tensor, first_frame_latents: Tensor) -> Tensor:
    """Control latents of one modality [B, 36, f, h, w]: VAE(control) 16, mask 4, VAE(control frame 0, grey, ...) 16."""
    return torch.cat([video_latents, image_condition(first_frame_latents)], dim=1)


def history_input(history_latents: Tensor) -> Tensor:
    """History as backbone input [B, 36, f_h, h, w]: 20 channels of ones *in front of* the 16 latent channels."""
    batch, _, *rest = history_latents.shape
    return torch.cat([history_latents.new_ones(batch, 20, *rest), history_latents], dim=1)


def encoded_history_frames(frames: int) -> int:
    """Of ``frames`` history frames the Wan VAE encodes the first ``1 + 4 * ((frames - 1) // 4)`` and drops the rest.

    The reference passes 8, so 5 count and the last three, the very last included, have no effect; 5, 9, 13, 17 lose nothing.
    """
    return 1 + VAE_TIME_STRIDE * ((frames - 1) // VAE_TIME_STRIDE) if frames else 0


def first_frame_then_grey(frame: np.ndarray, frames: int) -> np.ndarray:
    """uint8 frame [H, W, 3] -> float32 pixels [frames, H, W, 3] in [-1, 1]: the frame, then mid grey."""
    pixels = np.full((frames, *frame.shape), MID_GREY, dtype=np.float32)
    pixels[0] = pixels_from_uint8(frame)
    return pixels


def pixels_from_uint8(frames: np.ndarray) -> np.ndarray:
    """uint8 0 .. 255 -> float32 in [-1, 1], as the reference: ``v * 2/255 - 1``."""
    return frames.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def frames_to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Decoded pixels in [-1, 1] -> uint8 by *truncation* of ``(v + 1) * 127.5``, as the reference.

    This 8-bit step between clips is also what makes a resumed run equal an uninterrupted one.
    """
    return np.clip((pixels + np.float32(1)) * np.float32(127.5), 0, 255).astype(np.uint8)
