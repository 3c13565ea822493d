"""Global control normalization (P1 section 3.2): one depth scale for the whole video, so that clips agree about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..media.write import VideoWriter
from ..plan import ClipPlan
from .control import Control
from .percentiles import PERCENTILES, global_percentiles
from .raw_depth import RawDepth


def normalize(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Disparity to control (P1): ``(p95 - clip(v, p5, p95)) / (p95 - p5)``, float64; near = 0 = black, far = 1 = white.

    Where ``low == high`` the video has one depth only, and its control is neutral: 0.5 everywhere. (The released code
    divides by zero there and gives NaN.)

    Args:
        values: disparity of any shape, larger = nearer.
        low, high: 5th and 95th percentile of the whole video, see :func:`global_percentiles`.

    Raises:
        ValueError: ``low`` is above ``high``.
    """
    if low > high:
        raise ValueError(f"the lower percentile {low} is above the upper one {high}")
    if low == high:
        return np.full(values.shape, 0.5)
    return (high - np.clip(values.astype(np.float64), low, high)) / (high - low)


def to_uint8(normalized: np.ndarray) -> np.ndarray:
    """8-bit grey of values in 0 .. 1, by truncation: the released code's rule, which the weights were used with."""
    return (normalized * 255).astype(np.uint8)


def normalized_frames(raw_depth: RawDepth, length: int, percentiles: tuple[float, float] = PERCENTILES) -> Iterator[np.ndarray]:
    """The first ``length`` frames as 8-bit control, grey [H, W], near = black.

    The percentiles are those of these frames only, as in the released code: what the tail rule drops does not count.

    Raises:
        ValueError: when the first frame is asked for: values that mean nothing, or frames that are not there.
    """
    return _normalized(raw_depth, range(length), percentiles)


def write_control(
    raw_depth: RawDepth, plan: ClipPlan, destination: Path, percentiles: tuple[float, float] = PERCENTILES
) -> Control:
    """Normalize depth over the frames that ``plan`` shows; write it as a lossless dense control video (``.mkv``).

    A plan that does not know its source length takes the depth's.

    Raises:
        ValueError: depth that is shorter than the plan, or has values that mean nothing; no ``.mkv`` file name.
    """
    length = plan.resolved(raw_depth.frames).output_frames
    with VideoWriter(destination, raw_depth.width, raw_depth.height, raw_depth.fps, codec="lossless") as writer:
        for grey in normalized_frames(raw_depth, length, percentiles):
            writer.write(np.repeat(grey[..., None], 3, axis=-1))
    return Control("dense", True, (destination,), False, length, raw_depth.width, raw_depth.height)


def write_control_per_clip(
    raw_depth: RawDepth, plan: ClipPlan, folder: Path, percentiles: tuple[float, float] = PERCENTILES
) -> Control:
    """P1's ablation «without global normalization»: each clip by the percentiles of its own window.

    Not for making videos: the clips disagree about depth, and the frame that two clips share has two different pictures, so
    that each clip needs a file (``dense_00.mkv`` ..., lossless). Padding (tail rule ``"pad"``) repeats the last frame
    and does not count for the percentiles. A file that is there already is kept: the folder must belong to this depth, plan
    and percentiles alone.

    Raises:
        ValueError: as :func:`write_control`.
    """
    plan = plan.resolved(raw_depth.frames)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"dense_{clip:02d}.mkv" for clip in range(plan.clips))
    for clip, path in enumerate(paths):
        if path.is_file():
            continue
        window = plan.control_frames(clip)
        numbers = range(window.start, min(window.stop, plan.source_frames))
        with VideoWriter(path, raw_depth.width, raw_depth.height, raw_depth.fps, codec="lossless") as writer:
            for grey in _normalized(raw_depth, numbers, percentiles):
                picture = np.repeat(grey[..., None], 3, axis=-1)
                writer.write(picture)
            for _ in range(plan.frames - len(numbers)):
                writer.write(picture)
    return Control("dense", True, paths, True, plan.frames, raw_depth.width, raw_depth.height)


def _normalized(raw_depth: RawDepth, numbers: range, percentiles: tuple[float, float]) -> Iterator[np.ndarray]:
    low, high = global_percentiles(lambda: raw_depth.disparity(numbers), percentiles)
    for disparity in raw_depth.disparity(numbers):
        yield to_uint8(normalize(disparity, low, high))
