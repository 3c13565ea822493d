"""Degradation-aware training (P1 section 3.4; P2 section 3.3): what is weakened in training so that long runs hold.

Three places: the dense stream's features, the depth pictures, and the pictures that a clip starts from (first frame, history).
Drawing and applying are apart: ``draw_*`` reads every random choice from a CPU ``torch.Generator`` and returns small frozen
values; applying those is deterministic. Names in capitals with ``REFERENCE`` hold the released training code's numbers where
they differ from the papers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..model.conditioning import encoded_history_frames, frames_to_uint8
from ..model.noise import gaussian
from ..model.schedule import add_noise, euler_step

T = TypeVar("T")

Velocity = Callable[[Tensor, Tensor], Tensor]
"""``(noisy latents [1, 16, f, h, w], timestep [1]) -> velocity``: the pretrained backbone on its own."""


class FrameCodec(Protocol):
    """The VAE, as :class:`longvie_core.model.clip.ClipBackend` has it."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents -> float32 frames [T, H, W, 3] in [-1, 1]."""


# Random choices


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A float from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with ``probability``; one draw, whatever the outcome."""
    return uniform(0, 1, generator) < probability


def choose(values: Sequence[T], weights: Sequence[float], generator: torch.Generator) -> T:
    """One of ``values`` with probability proportional to its weight."""
    return values[torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator).item()]


def draw_seed(generator: torch.Generator) -> int:
    """A seed of 63 bits, for noise that is made when its shape is known."""
    return torch.randint(2**63 - 1, (), generator=generator).item()


def milder_more_often(levels: int) -> tuple[float, ...]:
    """Weights of levels sorted from mild to strong: ``n, n-1, ..., 1`` (the papers say only that milder is likelier)."""
    return tuple(float(weight) for weight in range(levels, 0, -1))


def _require_probabilities(**named: float) -> None:
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: a probability lies in 0 .. 1")


def _require_weights(name: str, values: Sequence, weights: Sequence[float]) -> None:
    if not values or len(values) != len(weights) or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"{name}: {len(values)} values and weights {tuple(weights)}; give one weight of 0 or more to each")


# Features of the dense stream


@dataclass(frozen=True)
class FeatureDegradation:
    """Feature-level degradation (P1 section 3.4): with ``probability``, lambda ~ U[low, high] weakens the dense features.

    The reference does another thing: with probability 0.05 it scales the dense *patch embedding*, before the dense input linear
    and all blocks, by U(0.8, 1.2), and does so outside training too. That one is not offered.

    Raises:
        ValueError: out of range.
    """

    probability: float = 0.15
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        _require_probabilities(probability=self.probability)
        if not 0 < self.low <= self.high:
            raise ValueError(f"lambda from {self.low} to {self.high}: give 0 < low <= high (P1: 0.05 to 1)")


def draw_dense_strength(config: FeatureDegradation, generator: torch.Generator) -> float:
    """lambda of P1 eq. 3, ``phi_b(lambda * dense + sparse)``: 1, or U[low, high] with the probability of ``config``.

    One draw holds for a whole forward pass, every block alike: give it as the dense one of
    :class:`longvie_core.model.dual_control.Strengths`.
    """
    degraded = chance(config.probability, generator)
    return uniform(config.low, config.high, generator) if degraded else 1.0


# Depth pictures


@dataclass(frozen=True)
class DepthDegradation:
    """Data-level degradation of the dense control pictures (P1 section 3.4, appendix).

    Args:
        probability: that a clip's depth is degraded, once phased in (P1: 0.10).
        start: share of the training before it begins (P1: the first 2,000 of 3,000 iterations have none).
        both: probability that a degraded clip gets both operators, in random order, rather than one of them (P1 says "one or
            both"; the number is the reference's).
        halvings: n of the scales 1, 1/2, .., 1/2^n (P1: 5).
        kernels: smallest and largest odd width of the blur in pixels (P1 says "random odd"; the numbers are the reference's).

    Raises:
        ValueError: out of range.
    """

    probability: float = 0.10
    start: float = 2 / 3
    both: float = 2 / 3
    halvings: int = 5
    kernels: tuple[int, int] = (3, 15)

    def __post_init__(self) -> None:
        _require_probabilities(probability=self.probability, start=self.start, both=self.both)
        low, high = self.kernels
        if not 1 <= low <= high or low % 2 == 0 or high % 2 == 0:
            raise ValueError(f"blur kernels {self.kernels}: give two odd widths, the smaller first (the reference: 3, 15)")
        if self.halvings < 1:
            raise ValueError(f"halvings is {self.halvings}: at least 1, since one scale is dropped (P1: 5)")


REFERENCE_DEPTH = DepthDegradation(probability=0.05, start=0.0)
"""The reference's second stage. It also skips one blur in ten, counts the zeros of its padding in the blur (dark borders, which
the network reads as near) and truncates to 8 bit; the operators here do none of the three."""


def bilinear(pixels: Tensor, height: int, width: int) -> Tensor:
    """[T, C, H, W] resized without anti-aliasing, as the reference's; a convex combination, so the range is kept."""
    return F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)


def down_and_up(pixels: Tensor, halvings: int) -> Tensor:
    """[T, C, H, W] at 1/2^halvings of its size (at least 1 pixel) and back."""
    height, width = pixels.shape[-2:]
    small = bilinear(pixels, max(1, height >> halvings), max(1, width >> halvings))
    return bilinear(small, height, width)


@dataclass(frozen=True)
class ScaleFusion:
    """Random scale fusion: the weighted sum of the picture at several scales (P1 appendix).

    Args:
        halvings: the scales 1/2^k that are left after one was dropped.
        weights: of each, summing to 1.
    """

    halvings: tuple[int, ...]
    weights: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """[T, C, H, W] -> the same shape, in the same range."""
        return sum(weight * down_and_up(pixels, k) for k, weight in zip(self.halvings, self.weights, strict=True))


@dataclass(frozen=True)
class AverageBlur:
    """Adaptive blur: the mean over an odd square window, at the borders over the part inside the picture (P1 appendix)."""

    kernel: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """[T, C, H, W] -> the same shape, in the same range."""
        for window in ((self.kernel, 1), (1, self.kernel)):  # the mean over a rectangle, rows first: 2k sums instead of k^2
            padding = (window[0] // 2, window[1] // 2)
            pixels = F.avg_pool2d(pixels, window, stride=1, padding=padding, count_include_pad=False)
        return pixels


DepthOperator = ScaleFusion | AverageBlur


def draw_scale_fusion(halvings: int, generator: torch.Generator) -> ScaleFusion:
    """Drop one of the scales 1 .. 1/2^halvings at random and weigh the rest at random, to a sum of 1."""
    dropped = torch.randint(halvings + 1, (), generator=generator).item()
    weights = torch.rand(halvings, generator=generator, dtype=torch.float64)
    kept = tuple(k for k in range(halvings + 1) if k != dropped)
    return ScaleFusion(kept, tuple((weights / weights.sum()).tolist()))


def draw_average_blur(kernels: tuple[int, int], generator: torch.Generator) -> AverageBlur:
    """An odd kernel between the two, both included, all alike likely."""
    low, high = kernels
    return AverageBlur(low + 2 * torch.randint((high - low) // 2 + 1, (), generator=generator).item())


def depth_degradation_begins(config: DepthDegradation, steps: int) -> int:
    """First step, counted from 0, of a training of ``steps`` at which depth is degraded."""
    return round(config.start * steps)


def draw_depth_operators(
    config: DepthDegradation, step: int, steps: int, generator: torch.Generator
) -> tuple[DepthOperator, ...]:
    """What happens to a clip's depth at ``step`` of ``steps``; empty = nothing. One draw holds for all frames of the clip."""
    if step < depth_degradation_begins(config, steps) or not chance(config.probability, generator):
        return ()
    fuses_first, both = chance(0.5, generator), chance(config.both, generator)
    fusion = draw_scale_fusion(config.halvings, generator)
    blur = draw_average_blur(config.kernels, generator)
    operators = (fusion, blur) if fuses_first else (blur, fusion)
    return operators if both else operators[:1]


def degrade_depth(frames: Iterable[np.ndarray], operators: Sequence[DepthOperator]) -> list[np.ndarray]:
    """Apply drawn operators to control pictures, uint8 [H, W, 3] each, and round to 8 bit; tracks are never degraded (P1)."""
    if not operators:
        return list(frames)
    degraded = []
    for frame in frames:
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        for operator in operators:
            pixels = operator(pixels)
        degraded.append(pixels[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
    return degraded


# Pictures that a clip starts from


@dataclass(frozen=True)
class ColourDrift:
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
        _require_probabilities(probability=self.probability)
        if not 0 <= self.low <= self.high <= 1 or not 0 <= self.variance <= 2:
            raise ValueError(f"tint of {self.low} to {self.high} with variance {self.variance}: give 0 <= low <= high <= 1")


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
    drift: ColourDrift | None = None

    def __post_init__(self) -> None:
        _require_probabilities(probability=self.probability, round_trip_share=self.round_trip_share)
        _require_weights("round_trips", self.round_trips, self.round_trip_weights)
        _require_weights("noise_levels", self.noise_levels, self.noise_weights)
        if min(self.round_trips) < 0 or not all(0 < level < 1000 for level in self.noise_levels):
            raise ValueError(f"round trips {self.round_trips} must be 0 or more, noise levels {self.noise_levels} 1 .. 999")


REFERENCE_FIRST_FRAME = FrameDegradation(
    probability=0.1,
    round_trip_share=0.4,
    round_trips=tuple(range(5)),
    round_trip_weights=milder_more_often(5),
    noise_levels=(1, 2, 3, 4, 6),
    noise_weights=(6, 4, 3, 2, 1),
    drift=ColourDrift(),
)
"""What the released code does to the first frame, from files made beforehand (their index is taken as K)."""

REFERENCE_HISTORY = FrameDegradation(
    probability=0.05,
    round_trip_share=0.4,
    round_trips=tuple(range(8)),
    round_trip_weights=milder_more_often(8),
    noise_levels=(1, 5, 8),
    noise_weights=(8, 5, 1),
    drift=ColourDrift(probability=0.05, high=0.3),
)
"""What the released code does to the history; P2 degrades it like the first frame."""


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
        colours = frames / 255.0
        tint = np.clip(colours.mean(axis=(0, 1, 2)) + self.offset, 0, 1)
        amount = self.strength * (1 + self.variance * (self.mask(*frames.shape[1:3]) - 0.5))
        amount = np.clip(amount, 0, 1)[..., None]
        return ((colours + amount * (tint - colours)) * 255).astype(np.uint8)


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


def draw_tint(config: ColourDrift, generator: torch.Generator) -> Tint:
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


# How long the history is

HISTORY_LENGTHS = tuple(range(17))
"""Frames of history in training, all alike likely (P2: 0 .. 16)."""

REFERENCE_HISTORY_LENGTHS = (0, 4, 8, 12, 16)
"""The reference's: none for 20 %, else 4, 8, 12 or 16, which is a fifth each; the VAE encodes 1, 5, 9 and 13 of them."""


def draw_history_length(lengths: Sequence[int], available: int, generator: torch.Generator) -> int:
    """Number of history frames of a clip.

    Args:
        lengths: what may be drawn, all alike likely; 0 among them.
        available: frames that the video has before the clip.
        generator: the random choices.

    Returns:
        The drawn length, or where the video has fewer frames the longest of ``lengths`` that fits.

    Raises:
        ValueError: ``lengths`` lacks 0, which the start of a video needs.
    """
    if 0 not in lengths:
        raise ValueError(f"history lengths {tuple(lengths)} lack 0: a clip at the start of a video has no history")
    drawn = lengths[torch.randint(len(lengths), (), generator=generator).item()]
    return max(length for length in lengths if length <= min(drawn, available))
