"""Windows and frames of depth brought to one scale and shift: a network's vary from call to call, a scene's do not."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

REACH = 32
"""Frames to each side over which the scale of a per-frame engine's frame is averaged: 2 seconds at 16 fps."""


class Affine(NamedTuple):
    """``x -> scale * x + shift``, with a positive scale."""

    scale: float
    shift: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x * np.float32(self.scale) + np.float32(self.shift)).astype(np.float32, copy=False)

    def after(self, other: Affine) -> Affine:
        """``x -> self(other(x))``."""
        return Affine(self.scale * other.scale, self.scale * other.shift + self.shift)

    def inverse(self) -> Affine:
        """The map back."""
        return Affine(1 / self.scale, -self.shift / self.scale)


IDENTITY = Affine(1.0, 0.0)


def joined_windows(windows: Iterable[tuple[int, np.ndarray]], overlap: int, align: bool) -> Iterator[np.ndarray]:
    """Windows joined to one sequence of frames, cross-faded over what two of them share.

    Args:
        windows: float32 [T, H, W] each, with the number of its leading frames that the window before it has as well.
        overlap: frames to cross-fade over, at least 1.
        align: bring each window to the scale and shift of the one before it first.
    """
    fade_in = (np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1))[:, None, None]
    tail, scale = None, IDENTITY
    for shared, window in windows:
        if tail is not None:
            window = window[shared - len(tail) :]
            if align:
                scale = fit_affine(window[:overlap], tail) or scale
                window = scale(window)
            window[:overlap] = tail + fade_in * (window[:overlap] - tail)
        yield from window[:-overlap]
        tail = window[-overlap:]
    if tail is not None:
        yield from tail


def steadied(frames: Iterable[np.ndarray], reach: int = REACH) -> Iterator[np.ndarray]:
    """Frames of a per-frame engine without the flicker of their scale and shift.

    Neighbouring frames are fitted to each other, and each frame gets the mean scale and shift of its neighbours within
    ``reach``, weighted by a raised cosine. A cut ends the neighbourhood.

    Not a chain, each frame aligned to the one before: a moving camera looks partly like a change of scale, which a chain would
    add up over the whole video. In the mean over past and future it cancels.

    Args:
        frames: disparity, float32 [H, W]; ``reach + 1`` of them are held.
    """
    queue: deque[np.ndarray] = deque()
    past: deque[Affine | None] = deque(maxlen=reach)
    future: deque[Affine | None] = deque()
    last = None
    for frame in itertools.chain(frames, itertools.repeat(None, reach)):
        if frame is not None:
            if last is not None:
                future.append(fit_affine(frame, last))
            queue.append(frame)
            last = frame
        if queue and (frame is None or len(queue) > reach):
            yield _mean_scale(past, future, reach)(queue.popleft())
            if future:
                past.appendleft(future.popleft())


def _mean_scale(past: Iterable[Affine | None], future: Iterable[Affine | None], reach: int) -> Affine:
    """The map that brings a frame to the weighted mean of its neighbours' scales and shifts.

    Args:
        past: maps from the frame to the one before it, from that to the one before, and so on; None = a cut.
        future: maps from the next frame to the frame, from the one after to the next, and so on.
    """
    maps, weights = [IDENTITY], [2.0]
    for steps in (past, [link and link.inverse() for link in future]):
        onto = IDENTITY
        for distance, step in enumerate(steps, 1):
            if step is None:
                break
            onto = step.after(onto)
            maps.append(onto)
            weights.append(1 + np.cos(np.pi * distance / (reach + 1)))
    return Affine(*np.average(maps, axis=0, weights=weights).tolist())


FIT_GRID = 64
"""Fits look at means over square blocks, about this many along the shorter side: less noise, and a cost that does not grow."""

FIT_ROUNDS = 10
"""Fits, each weighted by the residuals of the one before."""

CAUCHY = 2.385
"""Residual, in standard deviations, that has half the weight: 95 % efficient where errors are normal."""

AGREEMENT = 0.01
"""Least standard deviation of residuals, as a share of the spread. Where half the picture (a sky) matches exactly, it would be
0, and the other half an outlier."""

SAME_SCENE = 0.5
"""Least rank correlation of two depth maps that belong together; below it there was a cut, and nothing to align."""


def fit_affine(new: np.ndarray, old: np.ndarray) -> Affine | None:
    """Scale and shift that bring disparity ``new`` to ``old`` where both show the same, whatever the rest does.

    Robust least squares, reweighted (Cauchy). The scale is the ratio of the two spreads (geometric mean regression), not the
    slope of ``old`` on ``new``: noise in ``new`` makes that slope too small, and a chain of hundreds of fits would shrink the
    depth to nothing.

    Args:
        new, old: float arrays of one shape, [H, W] or [T, H, W].

    Returns:
        None where there is nothing to fit: one of the two is constant, or they do not correlate (a cut).
    """
    x, y = _block_means(new), _block_means(old)
    if np.ptp(x) == 0 or np.ptp(y) == 0 or np.corrcoef(rankdata(x), rankdata(y))[0, 1] < SAME_SCENE:
        return None
    least = AGREEMENT * y.std()
    fit = _weighted_fit(x, y, np.ones_like(x))
    for _ in range(FIT_ROUNDS):
        residual = y - (fit.scale * x + fit.shift)
        sigma = max(1.4826 * float(np.median(np.abs(residual))), least)
        fit = _weighted_fit(x, y, 1 / (1 + np.square(residual / (CAUCHY * sigma))))
    return fit


def _weighted_fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Affine:
    """Geometric mean regression: both sides get the same weighted mean and spread."""
    mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
    scale = np.sqrt((weight @ np.square(y - mean_y)) / (weight @ np.square(x - mean_x)))
    return Affine(float(scale), float(mean_y - scale * mean_x))


def _block_means(depth: np.ndarray) -> np.ndarray:
    """Means over square blocks, flat, float64: about ``FIT_GRID`` of them along the shorter side."""
    height, width = depth.shape[-2:]
    block = max(1, min(height, width) // FIT_GRID)
    rows, columns = height // block, width // block
    blocks = depth[..., : rows * block, : columns * block].reshape(-1, rows, block, columns, block)
    return blocks.mean(axis=(2, 4), dtype=np.float64).reshape(-1)
