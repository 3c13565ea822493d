"""Degradation of the pictures that a clip starts from, first frame and history (P2 section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ...model.conditioning import encoded_history_frames, frames_to_uint8
from ...model.noise import gaussian
from ...model.schedule import add_noise, euler_step
from ..draws import chance, choose, draw_seed, require_probabilities, require_weights, uniform

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``(noisy latents [1, 16, f, h, w], timestep [1]) -> velocity``: the pretrained backbone on its own."""


class FrameCodec(Protocol):
    """The VAE, as :class:`longvie_core.model.clip.ClipBackend` has it."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents -> float32 frames [T, H, W, 3] in [-1, 1]."""


def milder_more_often(levels: int) -> tuple[float, ...]:
    """Weights of levels sorted from mild to strong: ``n, n-1, ..., 1`` (the papers say only that milder is likelier)."""
    return tuple(float(weight) for weight in range(levels, 0, -1))


@dataclass(frozen=True)
class ColorDrift:
    """The reference's spatial colour drift; the papers have none.

    Args:
        probability: that frames get it, whatever else they get.
        low, high: bounds of the tint's strength, drawn uniformly.
        offset: each channel of the tint is the mean colour plus U(-offset, offset), colours in 0 .. 1.
        variance: how much the strength varies over the picture: ``strength * (1 + variance * (mask - 0.5))``.
        softness: sigma of the mask's Gaussian as a share of the picture's width.

    Raises:
        ValueError: out of range.
    """

    probability: float = 0.1
    low: float = 0.1
    high: float = 0.2
    offset: float = 0.1
    variance: float = 0.3
    softness: float = 0.08

    def __post_init__(self) -> None:
        require_probabilities(probability=self.probability)
        if not 0 <= self.low <= self.high <= 1 or not 0 <= self.variance <= 2:
            raise ValueError(
                f"low is {self.low}, high {self.high}, variance {self.variance}: give 0 <= low <= high <= 1, variance in 0 .. 2"
            )


@dataclass(frozen=True)
class FrameDegradation:
    """Degradation of the first frame or of the history, so that training sees what long runs see (P2 section 3.3).

    Args:
        probability: that the frames are degraded (P2: 0.2).
        round_trip_share: of the degraded, those sent through the VAE; the rest is noised and denoised (P2: 0.2 and 0.8).
        round_trips: K, times through the VAE (P2: 0 .. 10), mildest first.
        round_trip_weights: how likely each K is (P2: milder more often).
        noise_levels: t of 1000 for noise-then-denoise (P2: 1, 5, 8, 10, 12), mildest first.
        noise_weights: how likely each t is (P2: milder more often).
        drift: colour drift on top, or ``None`` (P2).

    Raises:
        ValueError: out of range.
    """

    probability: float = 0.2
    round_trip_share: float = 0.2
    round_trips: tuple[int, ...] = tuple(range(11))
    round_trip_weights: tuple[float, ...] = milder_more_often(11)
    noise_levels: tuple[int, ...] = (1, 5, 8, 10, 12)
    noise_weights: tuple[float, ...] = milder_more_often(5)
    drift: ColorDrift | None = None

    def __post_init__(self) -> None:
        require_probabilities(probability=self.probability, round_trip_share=self.round_trip_share)
        require_weights("round_trips", len(self.round_trips), "round_trip_weights", self.round_trip_weights)
        require_weights("noise_levels", len(self.noise_levels), "noise_weights", self.noise_weights)
        if min(self.round_trips) < 0:
            raise ValueError(f"round_trips has {min(self.round_trips)}: give 0 or more times through the VAE")
        if not 0 < min(self.noise_levels) <= max(self.noise_levels) < 1000:
            raise ValueError(
                f"noise_levels run from {min(self.noise_levels)} to {max(self.noise_levels)}: give t within 1 .. 999"
            )


def vae_round_trip(frames: np.ndarray, codec: FrameCodec) -> np.ndarray:
    """Once through the VAE and down to 8 bit: exactly what the hand-over between clips does to a picture.

    Args:
        frames: uint8 [T, H, W, 3], T = 4n + 1.
        codec: the VAE.

    Returns:
        uint8 [T, H, W, 3].
    """
    return frames_to_uint8(codec.decode(codec.encode(frames)))


def noise_then_denoise(latents: Tensor, level: int, noise: Tensor, velocity: Velocity) -> Tensor:
    """Add noise of ``t = level`` of 1000, then one Euler step of the pretrained backbone back to sigma 0 (P2 section 3.3).

    Args:
        latents: [1, 16, f, h, w], normalised.
        level: t; sigma = t / 1000.
        noise: standard normal, of the latents' shape.
        velocity: the backbone.
    """
    sigma = latents.new_tensor(level / 1000)
    noisy = add_noise(latents, noise, sigma)
    return euler_step(noisy, velocity(noisy, 1000 * sigma.reshape(1)), sigma, torch.zeros_like(sigma))


@dataclass(frozen=True)
class RoundTrips:
    """``times`` times through the VAE."""

    times: int

    def __call__(self, frames: np.ndarray, codec: FrameCodec, velocity: Velocity) -> np.ndarray:
        for _ in range(self.times):
            frames = vae_round_trip(frames, codec)
        return frames


@dataclass(frozen=True)
class Regeneration:
    """:func:`noise_then_denoise` at ``level`` of 1000 with the noise of ``seed``."""

    level: int
    seed: int

    def __call__(self, frames: np.ndarray, codec: FrameCodec, velocity: Velocity) -> np.ndarray:
        latents = codec.encode(frames)
        noise = gaussian(self.seed, tuple(latents.shape)).to(latents)
        return frames_to_uint8(codec.decode(noise_then_denoise(latents, self.level, noise, velocity)))


@dataclass(frozen=True)
class Tint:
    """A drawn colour drift: its strength, the tint's distance to the mean colour, and the seed of its mask."""

    strength: float
    offset: tuple[float, float, float]
    variance: float
    softness: float
    seed: int

    def mask(self, height: int, width: int) -> np.ndarray:
        """Smooth random field [H, W], scaled to 0 .. 1."""
        generator = torch.Generator().manual_seed(self.seed)
        field = torch.rand((height, width), generator=generator, dtype=torch.float64).numpy()
        field = ndimage.gaussian_filter(field, self.softness * width)
        return (field - field.min()) / (np.ptp(field) or 1.0)

    def __call__(self, frames: np.ndarray, codec: FrameCodec, velocity: Velocity) -> np.ndarray:
        """Blend all frames with one tint under one mask; truncates to 8 bit as the reference."""
        colors = frames / 255.0
        tint = np.clip(colors.mean(axis=(0, 1, 2)) + self.offset, 0, 1)
        amount = self.strength * (1 + self.variance * (self.mask(*frames.shape[1:3]) - 0.5))
        amount = np.clip(amount, 0, 1)[..., None]
        return ((colors + amount * (tint - colors)) * 255).astype(np.uint8)


FrameOperator = RoundTrips | Regeneration | Tint


def draw_frame_operators(config: FrameDegradation, generator: torch.Generator) -> tuple[FrameOperator, ...]:
    """What happens to a clip's first frame or history; empty = nothing."""
    operators: list[FrameOperator] = []
    if chance(config.probability, generator):
        if chance(config.round_trip_share, generator):
            operators.append(RoundTrips(choose(config.round_trips, config.round_trip_weights, generator)))
        else:
            level = choose(config.noise_levels, config.noise_weights, generator)
            operators.append(Regeneration(level, draw_seed(generator)))
    if config.drift is not None and chance(config.drift.probability, generator):
        operators.append(draw_tint(config.drift, generator))
    return tuple(operators)


def draw_tint(config: ColorDrift, generator: torch.Generator) -> Tint:
    """Strength, colour and mask of a colour drift."""
    strength = uniform(config.low, config.high, generator)
    red, green, blue = (uniform(-config.offset, config.offset, generator) for _ in range(3))
    return Tint(strength, (red, green, blue), config.variance, config.softness, draw_seed(generator))


def is_degraded(operators: Sequence[FrameOperator]) -> bool:
    """Whether the drawn operators change the frames: K = 0 round trips do not, so such a sample keeps the plain loss."""
    return any(operator != RoundTrips(0) for operator in operators)


def degrade_frames(frames: np.ndarray, operators: Sequence[FrameOperator], codec: FrameCodec, velocity: Velocity) -> np.ndarray:
    """Apply drawn operators to the first frame (T = 1) or to the history.

    Args:
        frames: uint8 [T, H, W, 3], T = 4n + 1.
        operators: from :func:`draw_frame_operators`, applied in order.
        codec: the VAE.
        velocity: the pretrained backbone.

    Returns:
        uint8 [T, H, W, 3].

    Raises:
        ValueError: a number of frames that the VAE would cut.
    """
    count = len(frames)
    if count == 0 or encoded_history_frames(count) != count:
        raise ValueError(
            f"{count} frames are to be degraded, but the VAE keeps {encoded_history_frames(count)}: "
            "give 1, 5, 9, .. frames (cut the history to encoded_history_frames first)"
        )
    for operator in operators:
        frames = operator(frames, codec, velocity)
    return frames
