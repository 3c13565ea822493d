"""Raw depth of a driving video by any depth network, window by window, in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from ...interrupt import checkpoint
from ...media.footage import DrivingVideo
from ..raw_depth import RawDepth, RawDepthWriter, check_kind, to_disparity
from .align import joined_windows, steadied


class DepthEngine(Protocol):
    """A depth network.

    Attributes:
        name: for messages.
        kind: ``"disparity"`` (larger = nearer, up to scale and shift) or ``"depth"`` (distance, larger = farther).
        window: most frames a call; 1 = each picture on its own.
        overlap: frames that two calls share; 0 where ``window`` is 1, otherwise 1 .. window-1.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def window(self) -> int: ...

    @property
    def overlap(self) -> int: ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Raw depth float32 [T, h, w] of pictures uint8 RGB [T, H, W, 3]; h and w stay the same from call to call."""
        ...


def extract_depth(
    footage: DrivingVideo,
    engine: DepthEngine,
    destination: Path,
    progress: Callable[[int, int], object] | None = None,
    *,
    align: bool | None = None,
    before_alignment: Callable[[np.ndarray], object] | None = None,
) -> RawDepth:
    """The depth of a whole video as a :class:`RawDepth` on disk, in memory that does not grow with its length.

    Where the engine's frames are aligned or blended, that happens in disparity, and the result is of that kind:

    * An engine with a window: each window is brought to the scale and shift of the one before it on the frames that both
      show (:func:`.align.fit_affine`), and cross-faded over them. The last window reaches back so that it is a full one.
    * A per-frame engine: each frame is brought to the mean of the scales and shifts of the frames within ``REACH`` of it
      (:func:`.align.steadied`): what flickers goes, what changes over seconds stays.

    Args:
        footage: the video at the rate and size of the plan.
        destination: ``.npy`` file; it appears when it is complete.
        progress: called with (frames done, frames) after each call of the engine; what it raises ends the extraction.
        align: False keeps the engine's own scale. Default: align disparity, which is relative; leave depth, taken as
            metric. For a network whose depth is relative, say True.
        before_alignment: called with each frame as the engine gave it, in order; :meth:`.meter.DepthMeter.add`, for example.

    Raises:
        ValueError: an engine that answers with another shape or with values that mean nothing (its name, the frame and the
            count); a video without frames.
    """
    _check_engine(engine)
    align = engine.kind == "disparity" if align is None else align
    blended = align or engine.window > 1
    windows = _windows(footage, engine, blended, progress)
    if before_alignment is not None:
        windows = _passed_on(windows, before_alignment)
    frames = (window[0] for _, window in windows) if engine.window == 1 else joined_windows(windows, engine.overlap, align)
    if align and engine.window == 1:
        frames = steadied(frames)
    with RawDepthWriter(destination, "disparity" if blended else engine.kind, footage.fps) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.raw_depth()


def _windows(
    footage: DrivingVideo, engine: DepthEngine, as_disparity: bool, progress: Callable[[int, int], object] | None
) -> Iterator[tuple[int, np.ndarray]]:
    """The engine's depth of each window, float32 [T, h, w], with the number of its leading frames that came before."""
    pictures = footage.read(range(footage.frames))
    recent: deque[np.ndarray] = deque(maxlen=engine.window)
    done = 0
    while done < footage.frames:
        fresh = min(engine.window - (engine.overlap if done else 0), footage.frames - done)
        recent.extend(itertools.islice(pictures, fresh))
        done += fresh
        checkpoint()
        depth = _answer(engine, np.stack(recent), done - len(recent), as_disparity)
        if progress is not None:
            progress(done, footage.frames)
        yield len(recent) - fresh, depth


def _answer(engine: DepthEngine, pictures: np.ndarray, first: int, as_disparity: bool) -> np.ndarray:
    """What the engine answers to pictures from frame ``first`` on, checked, and as disparity where that is asked for."""
    depth = np.array(engine(pictures), np.float32)  # a copy: the engine may use its array again
    if depth.ndim != 3 or len(depth) != len(pictures):
        raise ValueError(f"{engine.name} answered {list(depth.shape)} to {len(pictures)} pictures: expected [T, h, w]")
    disparity = [
        to_disparity(frame, engine.kind, f"{engine.name}: frame {number}") for number, frame in enumerate(depth, first)
    ]
    return np.stack(disparity) if as_disparity and engine.kind == "depth" else depth


def _passed_on(
    windows: Iterator[tuple[int, np.ndarray]], observe: Callable[[np.ndarray], object]
) -> Iterator[tuple[int, np.ndarray]]:
    """The same windows; each frame is shown to ``observe`` once."""
    for shared, window in windows:
        for frame in window[shared:]:
            observe(frame)
        yield shared, window


def _check_engine(engine: DepthEngine) -> None:
    check_kind(engine.kind, engine.name)
    least = 0 if engine.window == 1 else 1
    if engine.window < 1 or not least <= engine.overlap < engine.window:
        raise ValueError(
            f"{engine.name}: windows of {engine.window} frames cannot overlap by {engine.overlap}: engines with window 1 have "
            "overlap 0, others 1 .. window-1"
        )
