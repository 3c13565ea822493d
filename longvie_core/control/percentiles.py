"""Percentiles of a whole video's values in bounded memory (P1 section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

PERCENTILES = (5.0, 95.0)
"""P1: of disparity, what white (5th) and black (95th) stand for; what lies outside is clipped."""

HIGH_BINS = 1 << 16
"""Patterns of the upper 16 bits of a float32."""

SIGN_BIN = HIGH_BINS >> 1
"""The first pattern of a negative number."""

EXPONENT = 0x7F80
"""Exponent bits among the upper 16: all set for NaN and infinity."""


def global_percentiles(
    frames: Callable[[], Iterator[np.ndarray]], percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """Exact percentiles of all values of a stream, in memory that does not grow with it.

    Equal, bit by bit, to ``np.percentile(all_values, percentiles)`` of NumPy 2 with its linear rule. The stream is read
    twice: once to count the upper 16 bits of every float32, once to count the lower 16 bits of those near a percentile.

    Args:
        frames: called twice; each call gives the same arrays, of float32 (or float16 or uint8, which float32 can hold).
        percentiles: ascending, in 0 .. 100.

    Raises:
        ValueError: percentiles out of order, no values, values that are not finite (with frame number and count),
            another dtype, or two readings that differ.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles {percentiles} must ascend within 0 .. 100: P1 uses 5 and 95")
    counts, dtype = _count_high_bits(frames())
    values = int(counts.sum())
    if values == 0:
        raise ValueError("there are no values to take percentiles of")
    position = (values - 1) * (np.asarray(percentiles, np.float64) / 100)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, values - 1)
    below, above = _order_statistics(frames(), counts, np.stack([lower, upper])).astype(dtype)
    low, high = _interpolate(below, above, position - lower)
    return float(low), float(high)


def _bits(frame: np.ndarray) -> np.ndarray:
    """Values of float32 read as uint32, flat."""
    return np.ascontiguousarray(frame, np.float32).reshape(-1).view(np.uint32)


def _count_high_bits(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.dtype]:
    """How many values have each pattern of upper 16 bits, and the dtype of the frames."""
    counts = np.zeros(HIGH_BINS, np.int64)
    not_finite = np.flatnonzero(np.arange(HIGH_BINS) & EXPONENT == EXPONENT)
    dtype = np.dtype(np.float32)
    for number, frame in enumerate(frames):
        if frame.dtype not in (np.float32, np.float16, np.uint8) or (number and frame.dtype != dtype):
            raise ValueError(f"frame {number} is {frame.dtype}: give float32 (or float16, or uint8) throughout")
        dtype = frame.dtype
        frame_counts = np.bincount(_bits(frame) >> 16, minlength=HIGH_BINS)
        bad = frame_counts[not_finite].sum()
        if bad:
            raise ValueError(f"frame {number} has {bad} of {frame.size} values that are not finite")
        counts += frame_counts
    return counts, dtype


def _order_statistics(frames: Iterable[np.ndarray], counts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The ``ranks``-th smallest values (from 0) as float32, by a second reading of those with the same upper bits.

    Read as integers, positive floats ascend; negative ones have the sign bit set and descend.
    """
    ascending = np.concatenate([np.arange(HIGH_BINS - 1, SIGN_BIN - 1, -1), np.arange(SIGN_BIN)])
    reached = np.cumsum(counts[ascending])
    bins = ascending[np.searchsorted(reached, ranks, side="right")]
    before = dict(zip(ascending.tolist(), (reached - counts[ascending]).tolist(), strict=True))
    rank_bins = np.unique(bins).tolist()
    lows = {high: np.zeros(HIGH_BINS, np.int64) for high in rank_bins}
    for frame in frames:
        bits = _bits(frame)
        highs = bits >> 16
        for high in rank_bins:
            lows[high] += np.bincount(bits[highs == high] & 0xFFFF, minlength=HIGH_BINS)
    if any(lows[high].sum() != counts[high] for high in rank_bins):
        raise ValueError("the values changed between the two readings: each reading must give the same frames")
    values = np.empty(ranks.shape, np.uint32)
    for place, high in np.ndenumerate(bins):
        order = np.arange(HIGH_BINS) if high < SIGN_BIN else np.arange(HIGH_BINS - 1, -1, -1)
        low = order[np.searchsorted(np.cumsum(lows[high][order]), ranks[place] - before[high], side="right")]
        values[place] = high << 16 | low
    return values.view(np.float32)


def _interpolate(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """NumPy's linear rule, with its rounding: the difference in the values' own dtype, counted from the nearer neighbour."""
    difference = above - below
    return np.where(weight < 0.5, below + difference * weight, above - difference * (1 - weight))
