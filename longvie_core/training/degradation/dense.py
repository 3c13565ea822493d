"""Degradation of the dense control: its features, by a weight, and its depth pictures, by scales and blur (P1 section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..draws import chance, require_probabilities, uniform


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
        require_probabilities(probability=self.probability)
        if not 0 < self.low <= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: give 0 < low <= high (P1: 0.05 to 1)")


def draw_dense_strength(config: FeatureDegradation, generator: torch.Generator) -> float:
    """lambda of P1 eq. 3, ``phi_b(lambda * dense + sparse)``: 1, or U[low, high] with the probability of ``config``.

    One draw holds for a whole forward pass, every block alike: give it as the dense one of
    :class:`longvie_core.model.dual_control.Strengths`.
    """
    degraded = chance(config.probability, generator)
    return uniform(config.low, config.high, generator) if degraded else 1.0


@dataclass(frozen=True)
class DepthDegradation:
    """Data-level degradation of the dense control pictures (P1 section 3.4, appendix).

    The reference's operators skip one blur in ten, count the zeros of their padding in the blur (dark borders, which the
    network reads as near) and truncate to 8 bit; ours do none of the three.

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
        require_probabilities(probability=self.probability, start=self.start, both=self.both)
        low, high = self.kernels
        if not 1 <= low <= high or low % 2 == 0 or high % 2 == 0:
            raise ValueError(f"kernels is {self.kernels}: give two odd widths, the smaller first (the reference: 3, 15)")
        if self.halvings < 1:
            raise ValueError(f"halvings is {self.halvings}: at least 1, since one scale is dropped (P1: 5)")


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
