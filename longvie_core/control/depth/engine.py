"""Raw depth of a driving video by any depth network, window by window, in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from ..raw_depth import KINDS, RawDepth, RawDepthWriter
from .align import joined_windows, steadied


class Video(Protocol):
    """What :func:`extract_depth` needs of a driving video (:class:`longvie_core.media.footage.Footage` is one)."""

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> Fraction: ...

    def read(self, numbers: range) -> Iterator[np.ndarray]: ...


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


class DepthSource(Protocol):
    """Depth that the user already has; see :func:`copy_depth`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def frames(self) -> int: ...

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers`` (ascending, repeats allowed), float32 [H, W]."""
        ...


def extract_depth(
    footage: Video,
    engine: DepthEngine,
    destination: Path,
    progress: Callable[[int, int], object] | None = None,
    *,
    align: bool | None = None,
    before_alignment: Callable[[np.ndarray], object] | None = None,
) -> RawDepth:
    """The depth of a whole video as a :class:`RawDepth` on disk, in memory that does not grow with its length.

    Where the engine's frames are aligned or blended, that happens in disparity, and the signal is of that kind:

    * An engine with a window: each window is brought to the scale and shift of the one before it on the frames that both
      show (:func:`fit_affine`), and cross-faded over them. The last window reaches back so that it is a full one.
    * A per-frame engine: each frame is brought to the mean of the scales and shifts of the frames within ``REACH`` of it
      (:func:`steadied`): what flickers goes, what changes over seconds stays.

    Args:
        footage: the video at the rate and size of the plan.
        destination: ``.npy`` file; it appears when it is complete.
        progress: called with (frames done, frames) after each call of the engine; what it raises ends the extraction.
        align: False keeps the engine's own scale. Default: align disparity, which is relative; leave depth, taken as
            metric. For a network whose depth is relative, say True.
        before_alignment: called with each frame as the engine gave it, in order; :meth:`DepthMeter.add`, for example.

    Raises:
        ValueError: an engine that answers with another shape or with values that mean nothing (its name, the frame and the
            count); a video without frames.
    """
    _check_engine(engine)
    align = engine.kind == "disparity" if align is None else align
    blended = align or engine.window > 1
    windows = _windows(footage, engine, blended, progress)
    if before_alignment is not None:
        windows = _shown(windows, before_alignment)
    frames = (window[0] for _, window in windows) if engine.window == 1 else joined_windows(windows, engine.overlap, align)
    if align and engine.window == 1:
        frames = steadied(frames)
    with RawDepthWriter(destination, "disparity" if blended else engine.kind, footage.fps) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.signal()


def copy_depth(
    source: DepthSource,
    destination: Path,
    fps: Fraction,
    numbers: Iterable[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> RawDepth:
    """Depth that the user already has as a :class:`RawDepth`, streamed. Nothing is aligned: it is taken to be consistent.

    Args:
        fps: frames per second of the signal.
        numbers: which of the source's frames is shown at each frame of the signal, ascending, repeats allowed; all of them
            by default.
        progress: called with (frames done, frames).

    Raises:
        ValueError: a frame that the source does not have, or values that mean nothing.
    """
    wanted = range(source.frames) if numbers is None else list(numbers)
    if any(number >= source.frames for number in wanted[-1:]):
        raise ValueError(
            f"{source.name} has {source.frames} frames (0 .. {source.frames - 1}), but frame {wanted[-1]} was asked for: give "
            "depth that is as long as the video"
        )
    with RawDepthWriter(destination, source.kind, fps) as writer:
        for done, frame in enumerate(source.read(wanted), 1):
            _check_values(frame, source.kind, f"{source.name}: frame {wanted[done - 1]}")
            writer.write(frame)
            if progress is not None:
                progress(done, len(wanted))
    return writer.signal()


# --- calling the engine -----------------------------------------------------------------------------------------------


def _windows(
    footage: Video, engine: DepthEngine, as_disparity: bool, progress: Callable[[int, int], object] | None
) -> Iterator[tuple[int, np.ndarray]]:
    """The engine's depth of each window, float32 [T, h, w], with the number of its leading frames that came before."""
    pictures = footage.read(range(footage.frames))
    recent: deque[np.ndarray] = deque(maxlen=engine.window)
    done = 0
    while done < footage.frames:
        fresh = min(engine.window - (engine.overlap if done else 0), footage.frames - done)
        recent.extend(itertools.islice(pictures, fresh))
        done += fresh
        depth = _called(engine, np.stack(recent), done - len(recent))
        if progress is not None:
            progress(done, footage.frames)
        yield len(recent) - fresh, np.reciprocal(depth) if as_disparity and engine.kind == "depth" else depth


def _called(engine: DepthEngine, pictures: np.ndarray, first: int) -> np.ndarray:
    depth = np.array(engine(pictures), np.float32)  # a copy: the engine may use its array again
    if depth.ndim != 3 or len(depth) != len(pictures):
        raise ValueError(f"{engine.name} answered {list(depth.shape)} to {len(pictures)} pictures: expected [T, h, w]")
    for number, frame in enumerate(depth, first):
        _check_values(frame, engine.kind, f"{engine.name}: frame {number}")
    return depth


def _shown(windows: Iterator[tuple[int, np.ndarray]], see: Callable[[np.ndarray], object]) -> Iterator[tuple[int, np.ndarray]]:
    for shared, window in windows:
        for frame in window[shared:]:
            see(frame)
        yield shared, window


def _check_values(frame: np.ndarray, kind: str, what: str) -> None:
    """Raise ValueError where a frame has values that :class:`RawDepth` would refuse later."""
    with np.errstate(divide="ignore", over="ignore"):
        good = np.isfinite(frame) if kind == "disparity" else (frame > 0) & np.isfinite(np.reciprocal(frame))
    bad = frame.size - int(np.count_nonzero(good))
    if bad:
        rule = "finite" if kind == "disparity" else "positive, or infinite for the sky"
        raise ValueError(f"{what} has {bad} of {frame.size} {kind} values that mean nothing: they must be {rule}")


def _check_engine(engine: DepthEngine) -> None:
    if engine.kind not in KINDS:
        raise ValueError(f"{engine.name}: kind {engine.kind!r} is not one of {', '.join(KINDS)}")
    least = 0 if engine.window == 1 else 1
    if engine.window < 1 or not least <= engine.overlap < engine.window:
        raise ValueError(
            f"{engine.name}: windows of {engine.window} frames cannot overlap by {engine.overlap}: engines with window 1 have "
            "overlap 0, others 1 .. window-1"
        )
