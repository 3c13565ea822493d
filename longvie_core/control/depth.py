"""Raw depth of a driving video on disk, in one consistent scale, streamed.

P1 normalises depth over the whole video, so the whole video must have one scale first. Networks that see one picture, or a few
seconds, at a time give each its own scale and shift: :func:`extract_depth` takes these out. All fits are made in disparity,
which such networks know up to ``a * disparity + b``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.stats import rankdata

from .signal import KINDS, Signal, SignalWriter

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


class Video(Protocol):
    """What :func:`extract_depth` needs of a driving video (:class:`longvie_core.framing.Footage` is one)."""

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


def extract_depth(
    footage: Video,
    engine: DepthEngine,
    destination: Path,
    progress: Callable[[int, int], object] | None = None,
    *,
    align: bool | None = None,
    before_alignment: Callable[[np.ndarray], object] | None = None,
) -> Signal:
    """The depth of a whole video as a :class:`Signal` on disk, in memory that does not grow with its length.

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
    frames = (window[0] for _, window in windows) if engine.window == 1 else _joined(windows, engine.overlap, align)
    if align and engine.window == 1:
        frames = steadied(frames)
    with SignalWriter(destination, "disparity" if blended else engine.kind, footage.fps) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.signal()


def copy_depth(
    source: DepthSource,
    destination: Path,
    fps: Fraction,
    numbers: Iterable[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Signal:
    """Depth that the user already has as a :class:`Signal`, streamed. Nothing is aligned: it is taken to be consistent.

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
    with SignalWriter(destination, source.kind, fps) as writer:
        for done, frame in enumerate(source.read(wanted), 1):
            _check_values(frame, source.kind, f"{source.name}: frame {wanted[done - 1]}")
            writer.write(frame)
            if progress is not None:
                progress(done, len(wanted))
    return writer.signal()


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


def _joined(windows: Iterable[tuple[int, np.ndarray]], overlap: int, align: bool) -> Iterator[np.ndarray]:
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


# --- measuring --------------------------------------------------------------------------------------------------------


class DepthMeter:
    """How steady depth is, frame by frame; two numbers a frame are kept, and the last frame."""

    def __init__(self) -> None:
        self.frames = 0
        self._flat = 0
        self._range = (np.inf, -np.inf)
        self._change = self._spread = 0.0
        self._last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """The next frame, disparity [H, W]."""
        low, high = float(frame.min()), float(frame.max())
        self._flat += low == high
        self._range = min(self._range[0], low), max(self._range[1], high)
        self._spread += float(np.subtract(*np.percentile(frame, (95, 5))))
        if self._last is not None:
            self._change += float(np.abs(frame - self._last).mean(dtype=np.float64))
        self.frames += 1
        self._last = frame

    @property
    def flicker(self) -> float:
        """Temporal flicker: mean absolute change of a value from frame to frame, over the mean spread (95th less 5th
        percentile) of a frame.

        Independent of the signal's scale and shift. What moves counts as well, so it is to be compared on one video: before
        and after alignment, one engine with another. 0 for fewer than two frames and where nothing changes; inf where flat
        frames change.
        """
        if self.frames < 2 or self._change == 0:
            return 0.0
        change, spread = self._change / (self.frames - 1), self._spread / self.frames
        return change / spread if spread else float("inf")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told: depth without any shape."""
        if self._range[0] == self._range[1]:
            return (f"all {self.frames} frames have one and the same depth: the control will be mid grey and guide nothing",)
        if self._flat:
            return (f"{self._flat} of {self.frames} frames are flat, one depth everywhere: the control says nothing there",)
        return ()


def temporal_flicker(depth: Signal | Iterable[np.ndarray]) -> float:
    """:attr:`DepthMeter.flicker` of a signal, or of disparity frames [H, W] one after the other."""
    meter = DepthMeter()
    for frame in depth.disparity(range(depth.frames)) if isinstance(depth, Signal) else depth:
        meter.add(frame)
    return meter.flicker


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
    """Raise ValueError where a frame has values that :class:`Signal` would refuse later."""
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
