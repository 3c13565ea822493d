"""Measures of a video against the true one and against itself from clip to clip; none of them needs a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d
from scipy.stats import bootstrap
from skimage.metrics import structural_similarity

SSIM_WINDOW = 11
"""Width in pixels of the Gaussian window (sigma 1.5) of Wang et al. 2004; where it leaves the picture nothing counts."""

RESAMPLES = 10_000


def ssim(frames: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), mean over frames, channels and pixels; 1 = equal.

    Args:
        frames, truth: uint8 [T, H, W, C], at least 11 pixels high and wide.

    Raises:
        ValueError: different shapes, or pictures smaller than the window.
    """
    if frames.shape != truth.shape or min(frames.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"frames {list(frames.shape)} against {list(truth.shape)}: SSIM needs equal shapes [T, H, W, C], and at least "
            f"{SSIM_WINDOW} pixels each way"
        )
    scores = (
        structural_similarity(
            picture,
            true_picture,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
        )
        for picture, true_picture in zip(frames, truth, strict=True)
    )
    return float(np.mean(list(scores)))


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
    picture, depth = (edges - edges.mean() for edges in (edge_magnitude(frames), edge_magnitude(control)))
    scale = np.sqrt((picture**2).sum() * (depth**2).sum())
    return float((picture * depth).sum() / scale) if scale else 0.0


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
    """Bootstrap interval of the mean, bias-corrected and accelerated (BCa, Efron 1987); of pairs, give the differences.

    Args:
        values: one a sample; finite.
        level: share of such intervals that are to hold the true mean.
        resamples: how often the values are drawn anew, with replacement.
        seed: of the drawing.

    Returns:
        (low, high). A single value tells nothing of its spread: (-inf, inf). Equal values have none: (value, value).

    Raises:
        ValueError: no values.
    """
    sample = np.asarray(values, np.float64)
    if not sample.size:
        raise ValueError("there are no values to take an interval of")
    if sample.size == 1:
        return float("-inf"), float("inf")
    if sample.min() == sample.max():
        return float(sample[0]), float(sample[0])
    drawing = np.random.default_rng(seed)
    interval = bootstrap(
        (sample,), np.mean, n_resamples=resamples, confidence_level=level, method="BCa", random_state=drawing
    ).confidence_interval
    return float(interval.low), float(interval.high)
