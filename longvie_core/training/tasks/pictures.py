"""Pictures of held-out clips, for looking at, and how far they are from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...model.conditioning import pixels_from_uint8

SHEET_ROWS = 4
"""Clips that a sheet shows; its figures are means of more."""


def stacked_pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """uint8 clips [T, H, W, 3] -> [B, 3, T, H, W] in -1 .. 1."""
    return torch.from_numpy(np.stack([pixels_from_uint8(clip) for clip in clips])).permute(0, 4, 1, 2, 3)


def grid(columns: Sequence[Tensor]) -> np.ndarray:
    """Columns of clips [B, 3, T, H, W] in -1 .. 1 -> a picture uint8 [.., .., 3]: the middle and the last frame of each."""
    rows = []
    for clip in range(min(SHEET_ROWS, len(columns[0]))):
        frames = columns[0].shape[2]
        for number in (frames // 2, frames - 1):
            rows.append(torch.cat([column[clip, :, number] for column in columns], dim=-1))
    return picture_of(torch.cat(rows, dim=-2))


def psnr(pictures: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures of any shape in -1 .. 1."""
    return (10 * torch.log10(4 / (pictures.clamp(-1, 1) - truth).square().mean())).item()


def pixels_of(clips: Tensor) -> Tensor:
    """uint8 clips [B, T, H, W, 3] -> [B, 3, T, H, W] in -1 .. 1."""
    return clips.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def picture_of(pixels: Tensor) -> np.ndarray:
    """Pixels [3, H, W] in -1 .. 1 -> uint8 [H, W, 3], for looking at."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def strip(clips: Tensor) -> np.ndarray:
    """First and last frame of each clip of [B, 3, T, H, W] in -1 .. 1, side by side, uint8 [H, 2 B W, 3]."""
    frames = [clip[:, number] for clip in clips for number in (0, clip.shape[1] - 1)]
    return picture_of(torch.cat(frames, dim=-1))
