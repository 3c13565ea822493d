"""Measures of a video against the true one and against itself from clip to clip; none of them needs a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter

SSIM_SIGMA = 1.5
"""Gaussian window of Wang et al. 2004, 11 pixels wide."""

SSIM_BORDER = 5
"""Pixels at each border where the window leaves the picture; they do not count."""

SSIM_CONSTANTS = (0.01 * 255) ** 2, (0.03 * 255) ** 2

RESAMPLES = 10_000


def ssim(found: np.ndarray, wanted: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames, channels and pixels; 1 = equal.

    Args:
        found, wanted: uint8 [T, H, W, C], more than 10 pixels high and wide.

    Raises:
        ValueError: different shapes, or pictures smaller than the window.
    """
    if found.shape != wanted.shape or min(found.shape[1:3]) <= 2 * SSIM_BORDER:
        raise ValueError(
            f"frames {list(found.shape)} against {list(wanted.shape)}: SSIM needs equal shapes [T, H, W, C], and more than "
            f"{2 * SSIM_BORDER} pixels each way"
        )
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = SSIM_CONSTANTS
    index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    return float(index[:, inside, inside].mean())


def _smooth(frames: np.ndarray) -> np.ndarray:
    return gaussian_filter(frames, (0, SSIM_SIGMA, SSIM_SIGMA, 0), radius=(0, SSIM_BORDER, SSIM_BORDER, 0))


def edge_magnitude(frames: np.ndarray) -> np.ndarray:
    """Length of the Sobel gradient at every pixel, over all channels, so that edges between equally bright colours count.

    Args:
        frames: [T, H, W] or [T, H, W, C].

    Returns:
        float64 [T, H, W].
    """
    values = frames.astype(np.float64)
    squares = _slope(values, 1, 2) ** 2 + _slope(values, 2, 1) ** 2
    return np.sqrt(squares if squares.ndim == 3 else squares.sum(axis=-1))


def _slope(values: np.ndarray, along: int, across: int) -> np.ndarray:
    """Sobel in a picture's two axes alone; scipy's own smooths over time and channels too."""
    return correlate1d(correlate1d(values, (-1, 0, 1), axis=along), (1, 2, 1), axis=across)


def edge_agreement(frames: np.ndarray, control: np.ndarray) -> float:
    """Pearson correlation of the edges of pictures with those of their depth control, over all pixels of all frames.

    It asks for no second depth estimate, so it is weight-free; edges of texture, which depth has not, keep it below 1 even
    where the depth is right: compare with the true pictures' value.

    Args:
        frames: uint8 [T, H, W, 3].
        control: uint8 [T, H, W].

    Returns:
        -1 .. 1; 0 where either has the same edges everywhere, as a blank picture has: then nothing is followed.
    """
    found, wanted = (edges - edges.mean() for edges in (edge_magnitude(frames), edge_magnitude(control)))
    scale = np.sqrt((found**2).sum() * (wanted**2).sum())
    return float((found * wanted).sum() / scale) if scale else 0.0


def adjacent_differences(video: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame to the next, in grey levels: uint8 [T, H, W, 3] -> float64 [T - 1]."""
    return np.abs(np.diff(video.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))


def seam_score(video: np.ndarray, starts: Sequence[int]) -> float:
    """How much more the picture jumps where clips meet than inside them; 1 = no more.

    Args:
        video: stitched, uint8 [T, H, W, 3], each shared frame once.
        starts: number of the first frame that each clip after the first adds.

    Returns:
        Mean difference at the seams over the median of all other adjacent differences; infinite where nothing else moves.
    """
    differences = adjacent_differences(video)
    seams = np.asarray(starts) - 1
    jump, pace = differences[seams].mean(), np.median(np.delete(differences, seams))
    return float(jump / pace) if pace else float("inf")


def colour_change(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """How each channel's mean and standard deviation change between two clips, in grey levels: float64 [2, 3].

    Args:
        first, last: uint8 [T, H, W, 3].
    """
    before, after = (np.stack([clip.mean(axis=(0, 1, 2)), clip.std(axis=(0, 1, 2))]) for clip in (first, last))
    return after - before


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; of paired differences, give the differences.

    Args:
        values: one a sample; finite.
        level: share of the resampled means between the bounds.
        resamples: how often the values are drawn anew, with replacement.
        seed: of the drawing.

    Returns:
        (low, high). A single value tells nothing of its spread: (-inf, inf).

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("there are no values to take an interval of")
    if len(values) == 1:
        return float("-inf"), float("inf")
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.asarray(values, np.float64)[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
