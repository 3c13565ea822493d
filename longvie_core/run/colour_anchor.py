"""Colour anchoring: later clips are drawn towards the colours of the *first* one.

Neither paper does this: P2 answers drift with history and degraded training frames. Autoregression still lets brightness,
contrast and tint creep from clip to clip, since each starts from the last one's decoded frames. Here the statistics of a clip
are moved towards those of clip 1 by adaptive instance normalisation (AdaIN, Huang and Belongie, arXiv 1703.06868, eq. 8), per
channel. The first clip and not the previous one is the target, because errors against the previous one add up.

Within a clip the correction grows linearly from nothing at its first frame, which the clip before has shown already, to the
full strength at its last: there is no jump at the seam, and the next clip starts from corrected frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..interrupt import checkpoint
from ..model.conditioning import frames_to_uint8

ANCHOR_SPACES = ("off", "pixels", "latent")

MAX_GAIN = 2.0
"""A clip's contrast is at most doubled or halved: a fade to black must not be blown up to the first clip's contrast."""

SMALLEST_STD = 1e-6
"""Below this a channel is uniform and has no contrast to scale."""


def pixel_statistics(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean and standard deviation [2, 3] of uint8 frames [H, W, 3] per colour channel, on the pixels' scale -1 .. 1.

    Counted in whole numbers, so that the same frames give the same bits. A level stands for the middle of the values that
    truncation to 8 bit makes it of (:func:`longvie_core.model.conditioning.frames_to_uint8`).
    """
    counts = np.zeros((3, 256), dtype=np.int64)
    for frame in frames:
        checkpoint()
        for channel in range(3):
            counts[channel] += np.bincount(frame[..., channel].ravel(), minlength=256)
    values = (np.arange(256) + 0.5) / 127.5 - 1
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = (share * values).sum(axis=1)
    variance = (share * (values - mean[:, None]) ** 2).sum(axis=1)
    return np.stack([mean, np.sqrt(variance)])


def latent_statistics(latents: Tensor) -> np.ndarray:
    """Mean and standard deviation [2, C] of latents [1, C, f, h, w] per channel, in float64."""
    channels = latents.float().cpu().numpy()[0].reshape(latents.shape[1], -1).astype(np.float64)
    return np.stack([channels.mean(axis=1), channels.std(axis=1)])


def correction(own: np.ndarray, target: np.ndarray, strength: float, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset [frames, C] of ``y = gain * x + offset``: AdaIN, from none at the first frame to all of it.

    Args:
        own, target: statistics [2, C] of the clip and of the first clip.
        strength: 0 .. 1; at 1 the last frame gets the whole correction.
        frames: of the clip, pixels' or latents'.
    """
    (mean, std), (target_mean, target_std) = own, target
    gain = np.clip(target_std / np.maximum(std, SMALLEST_STD), 1 / MAX_GAIN, MAX_GAIN)
    weight = strength * np.linspace(0, 1, frames)[:, None]
    return 1 + weight * (gain - 1), weight * (target_mean - gain * mean)


def anchor_pixels(pixels: np.ndarray, target: np.ndarray, strength: float) -> np.ndarray:
    """Decoded float32 pixels [T, H, W, 3] in [-1, 1], their colours drawn towards the first clip's ``target`` [2, 3]."""
    own = pixel_statistics(frames_to_uint8(frame) for frame in pixels)
    frames, height, width, _ = pixels.shape
    # A factor for every value of a row: numpy is ten times as slow at rows of three.
    gain, offset = (np.tile(value.astype(np.float32), width)[:, None] for value in correction(own, target, strength, frames))
    anchored = pixels.reshape(frames, height, -1) * gain
    anchored += offset
    return anchored.reshape(pixels.shape)


def anchor_latents(latents: Tensor, target: np.ndarray, strength: float) -> Tensor:
    """Latents [1, C, f, h, w], each channel drawn towards the first clip's ``target`` [2, C]."""
    frames = latents.shape[2]
    gain, offset = (
        latents.new_tensor(value.T[None, :, :, None, None])
        for value in correction(latent_statistics(latents), target, strength, frames)
    )
    return latents * gain + offset


@dataclass(frozen=True)
class AnchorSettings:
    """How strongly later clips are held to the first clip's colours, and in which space.

    Args:
        space: ``"off"``, ``"pixels"`` (of the decoded frames, before they are truncated to 8 bit) or ``"latent"`` (before
            decoding).
        strength: 0 .. 1; 0 = off.

    Raises:
        ValueError: another space, or a strength out of range.
    """

    space: str = "off"
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.space not in ANCHOR_SPACES:
            raise ValueError(f"anchor {self.space!r} is not one of {', '.join(ANCHOR_SPACES)}")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"anchor strength {self.strength} is outside 0 .. 1: 0 = off, 1 = the first clip's colours")

    @property
    def active(self) -> bool:
        """Whether anything is measured or changed at all."""
        return self.space != "off" and self.strength > 0

    def latents(self, latents: Tensor, target: np.ndarray | None) -> Tensor:
        """Sampled latents, anchored where this is the space; ``target`` is ``None`` for the first clip."""
        if not self.active or self.space != "latent" or target is None:
            return latents
        return anchor_latents(latents, target, self.strength)

    def pixels(self, pixels: np.ndarray, target: np.ndarray | None) -> np.ndarray:
        """Decoded pixels, anchored where this is the space; ``target`` is ``None`` for the first clip."""
        if not self.active or self.space != "pixels" or target is None:
            return pixels
        return anchor_pixels(pixels, target, self.strength)

    def statistics(self, latents: Tensor, frames: np.ndarray) -> np.ndarray | None:
        """What later clips are held to: statistics of the first clip's latents or uint8 frames [T, H, W, 3]."""
        if not self.active:
            return None
        return latent_statistics(latents) if self.space == "latent" else pixel_statistics(frames)
