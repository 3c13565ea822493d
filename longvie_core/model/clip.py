"""What one clip is sampled from, and what a backend has to be able to do with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..finite import finite
from .conditioning import HISTORY_FRAMES
from .noise import FIRST_FRAME_SIGMA

TAIL_FRAMES = 17
"""Frames of a clip that are kept for the next one: the longest history that is offered."""


@dataclass(frozen=True)
class ClipStrengths:
    """Control strengths of one clip, in place of the sampler's; ``None`` = the sampler's. The sampler's ranges stay."""

    dense: float | None = None
    sparse: float | None = None

    def __post_init__(self) -> None:
        finite(**{f"{name}_strength": value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class ModalityRange:
    """Strength of one modality and the part of the sampling in which it acts.

    Args:
        strength: weight in ``Combine_b(s_d * dense + s_s * sparse)``; 0 = off, not even computed.
        start_percent, end_percent: part of the schedule, 0 = first step, 1 = last.

    Raises:
        ValueError: the range is empty or outside 0 .. 1, or a number is not finite.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        finite(strength=self.strength)
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise ValueError(
                f"control range {self.start_percent} .. {self.end_percent} is not within 0 .. 1 with start before end"
            )


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
        text: positive and negative, encoded as the backend wants them.
        seed: of stochastic samplers.
        strengths: of the controls in this clip.
    """

    clip: int
    start_frame: np.ndarray
    image: Tensor
    dense: Tensor | None
    sparse: Tensor | None
    history: Tensor | None
    noise: Tensor
    text: tuple[Any, Any]
    seed: int = 0
    strengths: ClipStrengths = ClipStrengths()


class ControlEncoder(Protocol):
    """What turns control pictures into latents."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> normalised latents [1, 16, f, h, w]."""


def encode_control(frames: Sequence[np.ndarray], encoder: ControlEncoder) -> tuple[Tensor, Tensor]:
    """The two encodings that control latents are made of: of all frames, and of the first alone; [1, 16, f, h, w] each."""
    return encoder.encode(frames), encoder.encode_first_frame(frames[0], len(frames))


class ClipBackend(ControlEncoder, Protocol):
    """A model that can encode, sample and decode one clip."""

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        """As :meth:`encode_first_frame`, of the clip's start frame and in the space that :meth:`sample` wants."""

    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents of the clip, in the backend's own space."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as :meth:`sample` returns them -> float32 frames [T, H, W, 3] in [-1, 1]."""
