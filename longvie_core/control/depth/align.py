"""Windows and frames of depth fitted to each other: a network's scale and shift vary, a scene's do not."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

FIT_GRID = 64
"""Fits look at block means, about this many along the shorter side: noise averages out, and the cost does not grow."""

FIT_ROUNDS = 10
CAUCHY = 2.385
"""Residual, in standard deviations, that has half the weight: 95 % efficient where errors are normal."""

AGREEMENT = 0.01
"""Residuals below this share of the spread count as agreement, so that an exact match of half the picture (a sky) does not
make the other half an outlier."""

SAME_SCENE = 0.5
"""Least rank correlation of two depth maps that belong together; below it there was a cut, and nothing to align."""

REACH = 32
"""Frames to each side whose scales a per-frame engine's frame is brought to: 2 seconds at 16 fps."""


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
        return Affine(1 / self.scale, -self.shift / self.scale)


IDENTITY = Affine(1.0, 0.0)


# --- alignment --------------------------------------------------------------------------------------------------------


def fit_affine(new: np.ndarray, old: np.ndarray) -> Affine | None:
    """Scale and shift that bring disparity ``new`` to ``old`` where both show the same, whatever the rest does.

    Robust least squares in closed form, reweighted (Cauchy). The scale is the ratio of the two spreads (geometric mean
    regression) instead of the slope of old on new: both maps are equally noisy, and that slope is too small by the noise's
    share of the variance, which over a chain of hundreds of fits shrinks the scale to nothing.

    Args:
        new, old: float arrays of one shape, [H, W] or [T, H, W].

    Returns:
        None where nothing can be said: one of the two is constant, or they do not correlate (a cut).
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


def joined_windows(windows: Iterable[tuple[int, np.ndarray]], overlap: int, align: bool) -> Iterator[np.ndarray]:
    """Windows with the number of their leading frames that the one before has as well, made one sequence of frames."""
    rising = (np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1))[:, None, None]
    held, scale = None, IDENTITY
    for shared, window in windows:
        if held is not None:
            window = window[shared - len(held) :]
            if align:
                scale = fit_affine(window[:overlap], held) or scale
                window = scale(window)
            window[:overlap] = held + rising * (window[:overlap] - held)
        yield from window[:-overlap]
        held = window[-overlap:]
    if held is not None:
        yield from held


def steadied(frames: Iterable[np.ndarray], reach: int = REACH) -> Iterator[np.ndarray]:
    """Frames of a per-frame engine without the flicker of their scale and shift.

    Neighbouring frames are fitted to each other, and each frame is given as its neighbours within ``reach`` would have
    scaled it: the mean of their scales and shifts, weighted by a raised cosine. A cut ends the neighbourhood.

    Between neighbours a moving camera looks partly like a change of scale. Aligning each frame to the one before adds that
    up over the whole video; here it does not add up at all, and past and future cancel what is left.

    Args:
        frames: disparity, float32 [H, W]; ``reach + 1`` of them are held.
    """
    held: deque[np.ndarray] = deque()
    past: deque[Affine | None] = deque(maxlen=reach)
    future: deque[Affine | None] = deque()
    last = None
    for frame in itertools.chain(frames, itertools.repeat(None, reach)):
        if frame is not None:
            if last is not None:
                future.append(fit_affine(frame, last))
            held.append(frame)
            last = frame
        if held and (frame is None or len(held) > reach):
            yield _mean_scale(past, future, reach)(held.popleft())
            if future:
                past.appendleft(future.popleft())


def _mean_scale(past: Iterable[Affine | None], future: Iterable[Affine | None], reach: int) -> Affine:
    """What brings a frame to the weighted mean of the scales and shifts of its neighbours.

    Args:
        past: maps from the frame to the one before it, from that to the one before, and so on; None = a cut.
        future: maps from the next frame to the frame, from the one after to the next, and so on.
    """
    maps, weights = [IDENTITY], [2.0]
    for steps in (past, [link and link.inverse() for link in future]):
        onto = IDENTITY
        for distance, step in enumerate(itertools.takewhile(bool, steps), 1):
            onto = step.after(onto)
            maps.append(onto)
            weights.append(1 + np.cos(np.pi * distance / (reach + 1)))
    return Affine(*np.average(maps, axis=0, weights=weights).tolist())
