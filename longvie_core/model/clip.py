"""What one clip is sampled from, and what a backend has to be able to do with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from .conditioning import HISTORY_FRAMES
from .noise import FIRST_FRAME_SIGMA


class ControlEncoder(Protocol):
    """What turns control pictures into latents."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> normalised latents [1, 16, f, h, w]."""


@dataclass(frozen=True)
class ClipStrengths:
    """Control strengths of one clip, in place of the sampler's; ``None`` = the sampler's. The sampler's ranges stay."""

    dense: float | None = None
    sparse: float | None = None


TAIL_FRAMES = 17
"""Frames of a clip that are kept for the next one: the longest history that is offered."""


@dataclass(frozen=True)
class HistorySettings:
    """How much of the previous clip the next one sees.

    Args:
        frames: decoded frames handed on, 0 .. 17; the VAE encodes ``1 + 4*((n-1)//4)`` of them (P2 and the reference: 8, so 5).
        first_frame_sigma: noise that stays in the first latent frame of later clips (the reference: 25/27); 1 = no blend.

    Raises:
        ValueError: out of range.
    """

    frames: int = HISTORY_FRAMES
    first_frame_sigma: float = FIRST_FRAME_SIGMA

    def __post_init__(self) -> None:
        if not 0 <= self.frames <= TAIL_FRAMES:
            raise ValueError(f"history of {self.frames} frames is outside 0 .. {TAIL_FRAMES}: the reference uses 8")
        if not 0 <= self.first_frame_sigma <= 1:
            raise ValueError(f"first frame sigma {self.first_frame_sigma} is outside 0 .. 1: the reference uses 25/27")


@dataclass(frozen=True)
class ClipInputs:
    """Everything one clip is sampled from; control and history latents are normalised (model space).

    Args:
        clip: its number.
        start_frame: uint8 [H, W, 3], for CLIP vision.
        image: VAE(start frame, grey, ...) [1, 16, f, h, w], as the backend wants it.
        dense, sparse: control latents [1, 36, f, h, w], or ``None`` where the modality is absent.
        history: [1, 16, f_h, h, w] or ``None``.
        noise: [1, 16, f, h, w], before the first-frame blend.
    """

    clip: int
    start_frame: np.ndarray
    image: Tensor
    dense: Tensor | None
    sparse: Tensor | None
    history: Tensor | None
    noise: Tensor


class ClipBackend(ControlEncoder, Protocol):
    """A model that can encode, sample and decode one clip."""

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        """As :meth:`encode_first_frame`, of the clip's start frame and in the space that :meth:`sample` wants."""

    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents of the clip, in the backend's own space."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as :meth:`sample` returns them -> float32 frames [T, H, W, 3] in [-1, 1]."""
