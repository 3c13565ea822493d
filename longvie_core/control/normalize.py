"""Global control normalisation (P1): one depth scale for the whole video, so that clips do not disagree about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..clips import ClipPlan
from ..video import VideoWriter
from .signal import Control, Signal

PERCENTILES = (5.0, 95.0)
"""P1: the values that black and white stand for; what lies outside is clipped."""

HIGH_BINS = 1 << 16
SIGN_BIN = HIGH_BINS >> 1
EXPONENT = 0x7F80
"""Exponent bits in the upper half of a float32: all set for NaN and infinity."""


def global_percentiles(
    frames: Callable[[], Iterator[np.ndarray]], percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """Exact percentiles of all values of a stream, in memory that does not grow with it.

    Equal, bit by bit, to ``np.percentile(all_values, percentiles)`` of NumPy 2 with its linear rule. The stream is read
    twice: once to count the upper 16 bits of every float32, once to count the lower 16 bits of those that can be a
    percentile.

    Args:
        frames: called twice; each call gives the same arrays, of float32 (or float16 or uint8, which float32 holds).
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


def normalize(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Disparity to control (P1): ``(p95 - clip(v, p5, p95)) / (p95 - p5)``, float64; near = 0 = black, far = 1 = white.

    Where ``low == high`` the video has one depth only, and its control is neutral: 0.5 everywhere. (The released code
    divides by zero there and gives NaN.)

    Args:
        values: disparity of any shape, larger = nearer.
        low, high: 5th and 95th percentile of the whole video, see :func:`global_percentiles`.
    """
    if low > high:
        raise ValueError(f"the lower percentile {low} is above the upper one {high}")
    if low == high:
        return np.full(values.shape, 0.5)
    return (high - np.clip(values.astype(np.float64), low, high)) / (high - low)


def to_uint8(normalized: np.ndarray) -> np.ndarray:
    """8-bit grey of values in 0 .. 1, by truncation: the released code's rule, which the weights were used with."""
    return (normalized * 255).astype(np.uint8)


def normalized_frames(
    signal: Signal, length: int, percentiles: tuple[float, float] = PERCENTILES
) -> Iterator[np.ndarray]:
    """The first ``length`` frames of a signal as 8-bit control, grey [H, W], near = black.

    The percentiles are those of these frames only, as in the released code: what the tail rule drops does not count.
    """
    return _normalized(signal, range(length), percentiles)


def _normalized(signal: Signal, numbers: range, percentiles: tuple[float, float]) -> Iterator[np.ndarray]:
    low, high = global_percentiles(lambda: signal.disparity(numbers), percentiles)
    for disparity in signal.disparity(numbers):
        yield to_uint8(normalize(disparity, low, high))


def write_control(
    signal: Signal, plan: ClipPlan, destination: Path, percentiles: tuple[float, float] = PERCENTILES
) -> Control:
    """Normalise a signal over the frames that ``plan`` shows; write it as a lossless dense control video (``.mkv``).

    A plan that does not know its source length takes the signal's.

    Raises:
        ValueError: a signal shorter than the plan, or with values that mean nothing; no ``.mkv`` file name.
    """
    length = plan.resolved(signal.frames).output_frames
    with VideoWriter(destination, signal.width, signal.height, signal.fps, codec="lossless") as writer:
        for grey in normalized_frames(signal, length, percentiles):
            writer.write(np.repeat(grey[..., None], 3, axis=-1))
    return Control("dense", True, (destination,), False, length, signal.width, signal.height)


def write_control_per_clip(
    signal: Signal, plan: ClipPlan, folder: Path, percentiles: tuple[float, float] = PERCENTILES
) -> Control:
    """The ablation «per clip» (P1: «without global normalisation»): each clip by the percentiles of its own window.

    Not for making videos: the clips disagree about depth, and the frame that two clips share has two different pictures, so
    that each clip needs a file (``dense_00.mkv`` ..., lossless). Padding (tail rule ``"pad"``) repeats the last frame
    and does not count for the percentiles. A file that is there already is kept: the folder must belong to this signal, plan
    and percentiles alone.

    Raises:
        ValueError: as :func:`write_control`.
    """
    plan = plan.resolved(signal.frames)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"dense_{clip:02d}.mkv" for clip in range(plan.clips))
    for clip, path in enumerate(paths):
        if path.is_file():
            continue
        window = plan.control_frames(clip)
        numbers = range(window.start, min(window.stop, plan.source_frames))
        with VideoWriter(path, signal.width, signal.height, signal.fps, codec="lossless") as writer:
            for grey in _normalized(signal, numbers, percentiles):
                picture = np.repeat(grey[..., None], 3, axis=-1)
                writer.write(picture)
            for _ in range(plan.frames - len(numbers)):
                writer.write(picture)
    return Control("dense", True, paths, True, plan.frames, signal.width, signal.height)


def _bits(frame: np.ndarray) -> np.ndarray:
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
        found = np.bincount(_bits(frame) >> 16, minlength=HIGH_BINS)
        if found[not_finite].any():
            raise ValueError(f"frame {number} has {found[not_finite].sum()} of {frame.size} values that are not finite")
        counts += found
    return counts, dtype


def _order_statistics(frames: Iterable[np.ndarray], counts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The ``ranks``-th smallest values (from 0) as float32, by a second look at the bins of upper bits that hold them.

    Read as integers, positive floats ascend and negative ones descend, with the sign bit set.
    """
    ascending = np.concatenate([np.arange(HIGH_BINS - 1, SIGN_BIN - 1, -1), np.arange(SIGN_BIN)])
    reached = np.cumsum(counts[ascending])
    bins = ascending[np.searchsorted(reached, ranks, side="right")]
    before = dict(zip(ascending.tolist(), (reached - counts[ascending]).tolist(), strict=True))
    wanted = np.unique(bins).tolist()
    lows = {high: np.zeros(HIGH_BINS, np.int64) for high in wanted}
    for frame in frames:
        bits = _bits(frame)
        highs = bits >> 16
        for high in wanted:
            lows[high] += np.bincount(bits[highs == high] & 0xFFFF, minlength=HIGH_BINS)
    if any(lows[high].sum() != counts[high] for high in wanted):
        raise ValueError("the values changed between the two readings: each reading must give the same frames")
    found = np.empty(ranks.shape, np.uint32)
    for place, high in np.ndenumerate(bins):
        order = np.arange(HIGH_BINS) if high < SIGN_BIN else np.arange(HIGH_BINS - 1, -1, -1)
        low = order[np.searchsorted(np.cumsum(lows[high][order]), ranks[place] - before[high], side="right")]
        found[place] = high << 16 | low
    return found.view(np.float32)


def _interpolate(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """NumPy's linear rule, with its rounding: the difference in the values' own dtype, from the nearer neighbour."""
    difference = above - below
    return np.where(weight < 0.5, below + difference * weight, above - difference * (1 - weight))
