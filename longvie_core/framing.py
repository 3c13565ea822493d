"""A driving video as the clips see it: at the plan's rate and size (P1 section 3.1, P2 section 3.1 use 16 fps, 640x352).

Resampling follows the clock, not the frame count: output frame k is the picture that the source shows at time k/fps
after its first picture. Nothing is blended. A source that is faster loses pictures, a slower one repeats them, and both
keep their length, so that the sound still fits.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .clips import ClipPlan
from .files import file_sha256
from .video import FrameTimes, frame_times, probe, read_frames

FITS = ("stretch", "crop")

LEAST_SLACK = Fraction(12, 10_000)
"""Seconds: Matroska and FLV round to 1 ms, and a finer clock, with its own rounding, may hold what came from such a file."""
MOST_SLACK = Fraction(1, 200)
"""Seconds: half a tick of GIF, the coarsest clock that rounds timestamps. Coarser ticks are whole frames, and exact."""
FLOAT_ERROR = 1e-7
"""Seconds: more than float64 loses in a day's timestamps."""


@dataclass(frozen=True)
class Footage:
    """A video at another rate and size, read window by window.

    Attributes:
        path: the video file.
        fps: frames per second that it is resampled to.
        width, height: size in pixels that its pictures are brought to.
        fit: ``"stretch"`` (bicubic without cropping, as the released code does) or ``"crop"`` (keeps shapes: the largest
            centred part of the right proportions).
        frames: frames after resampling: all k with k/fps before the end of the last picture.
    """

    path: Path
    fps: Fraction
    width: int
    height: int
    fit: str
    frames: int

    @classmethod
    def open(cls, path: Path, fps: Fraction, width: int, height: int, fit: str = "stretch") -> Footage:
        """Look at the file and find out how long it is at ``fps``.

        Raises:
            FileNotFoundError, ValueError: as :func:`~.video.frame_times` for the file; and ValueError for a setting that
                is out of range.
        """
        if fit not in FITS:
            raise ValueError(f"fit {fit!r} is not one of {', '.join(FITS)}")
        if fps <= 0:
            raise ValueError(f"fps {fps} is not positive: the reference uses 16")
        if width < 1 or height < 1:
            raise ValueError(f"size {width}x{height} is empty: the reference uses 640x352")
        return cls(path, Fraction(fps), width, height, fit, _Pace.of(path).length(Fraction(fps)))

    def read(self, numbers: range, *, repeat_last: bool = False) -> Iterator[np.ndarray]:
        """Yield the frames ``numbers``, uint8 RGB [height, width, 3], seeking to the first where the file allows it.

        Every source picture is decoded and resized once, and only one is kept: a picture that the clock repeats comes as
        the same array again.

        Args:
            numbers: frame numbers, ascending.
            repeat_last: numbers past the end give the last frame again (tail rule ``"pad"``); otherwise they are an error.

        Raises:
            ValueError: numbers that the footage does not have, or a file that is no longer the one opened (at the call);
                a frame that cannot be decoded (when it is reached).
        """
        if numbers.step < 1 or (numbers and numbers[0] < 0):
            raise ValueError(f"frame numbers {numbers} must be ascending and not negative")
        if numbers and numbers[-1] >= self.frames and not repeat_last:
            raise ValueError(
                f"{self.path} has {self.frames} frames at {_rate(self.fps)} fps (0 .. {self.frames - 1}), but frame "
                f"{numbers[-1]} was asked for"
            )
        if _Pace.of(self.path).length(self.fps) != self.frames:
            raise ValueError(f"{self.path} has changed since it was opened: queue the workflow again")
        sources = self.source_frames(numbers)
        if self.fit == "stretch":
            return read_frames(self.path, sources, size=(self.width, self.height))
        return self._cropped(read_frames(self.path, sources), probe(self.path).pixel_aspect)

    def source_frames(self, numbers: range) -> array[int]:
        """Which frame of the file is shown at each of ``numbers``; numbers past the end give the last."""
        pace = _Pace.of(self.path)
        return array("q", (pace.shown(min(number, self.frames - 1) / self.fps) for number in numbers))

    def digest(self) -> str:
        """sha256 that changes when the file's bytes or a setting change."""
        status = self.path.stat()
        content = _file_digest(self.path, status.st_size, status.st_mtime_ns)
        use = (content, str(self.fps), self.width, self.height, self.fit)
        return hashlib.sha256(json.dumps(use).encode()).hexdigest()

    def summary(self, plan: ClipPlan) -> str:
        """One sentence for the user: what resampling and ``plan`` make of the video, and what the tail rule costs.

        Raises:
            ValueError: as :meth:`.ClipPlan.resolved`, if the footage is too short for the plan.
        """
        plan = plan.resolved(self.frames)
        pace = _Pace.of(self.path)
        speed = f"{_rate(pace.even)} fps" if pace.even else "a varying rate"
        clips = f"{plan.clips} clip{'s' * (plan.clips != 1)} of {plan.frames}"
        left = self.frames - plan.output_frames
        padding = plan.stitched_frames(plan.clips) - plan.output_frames
        outcome, mend = f"{plan.output_frames} frames used", ""
        if left:
            outcome += f", {left} dropped"
            rule = "choose tail 'pad' to keep them" if plan.source_frames == self.frames else "the plan ends there"
            mend = f" - {rule}"
        if padding:
            outcome += f", {padding} added by repeating the last and cut off again"
        return (
            f"{len(pace.times.pts)} frames at {speed} become {self.frames} at {_rate(self.fps)} fps: {clips} ({outcome}){mend}"
        )

    def _cropped(self, frames: Iterator[np.ndarray], pixel_aspect: Fraction) -> Iterator[np.ndarray]:
        source = picture = None
        for frame in frames:
            if frame is not source:
                source, picture = frame, crop(frame, (self.width, self.height), pixel_aspect)
            yield picture


def crop(frame: np.ndarray, size: tuple[int, int], pixel_aspect: Fraction = Fraction(1)) -> np.ndarray:
    """Bring a uint8 picture [H, W, 3] to ``size`` = (width, height) with its shapes kept: resized by Pillow's bicubic
    filter until it covers ``size``, and cut off evenly on both sides.

    Args:
        pixel_aspect: width of the picture's pixels divided by their height; those of the result are square.
    """
    height, width = frame.shape[:2]
    if (width, height) == tuple(size) and pixel_aspect == 1:
        return frame
    wanted = Fraction(*size) / pixel_aspect
    kept_width, kept_height = min(width, height * wanted), min(height, width / wanted)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    box = tuple(float(edge) for edge in (left, top, left + kept_width, top + kept_height))
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC, box))


@dataclass(frozen=True)
class _Pace:
    """Which source frame is shown when, in seconds after the first picture.

    Containers round timestamps to their tick, which must not make a 16 fps video drop and repeat frames at 16 fps. So a
    timestamp may be off by ``slack``: one tick (half a tick for its own rounding, half for the first one's), at least
    ``LEAST_SLACK`` and at most ``MOST_SLACK``. Where all timestamps fit an even rate within that, the even rate is taken
    as exact; elsewhere (variable frame rate) a picture counts as shown from ``slack`` before its timestamp.

    Attributes:
        times: the file's timestamps.
        even: frames per second of an even source; None where the rate varies.
        slack: seconds.
    """

    times: FrameTimes
    even: Fraction | None
    slack: Fraction

    @classmethod
    def of(cls, path: Path) -> _Pace:
        times = frame_times(path)
        slack = min(max(times.tick, LEAST_SLACK), MOST_SLACK)
        seconds = (np.asarray(times.pts) - times.pts[0]) * float(times.tick)
        off = np.abs(seconds - np.arange(len(seconds)) / float(times.rate)).max()
        last_off = abs(_last(times, slack) * times.tick - 1 / times.rate)
        return cls(times, times.rate if max(off, last_off) <= float(slack) + FLOAT_ERROR else None, slack)

    def length(self, fps: Fraction) -> int:
        """How many k have k/fps before the end of the last picture; at least 1."""
        pts = self.times.pts
        if self.even:
            return math.ceil(len(pts) * fps / self.even)
        end = (pts[-1] + _last(self.times, self.slack) - pts[0]) * self.times.tick
        return max(1, math.ceil((end - 2 * self.slack) * fps))  # the last timestamp and its duration: two roundings

    def shown(self, time: Fraction) -> int:
        """Number of the frame shown at ``time``; of frames with one timestamp the last."""
        if self.even:
            return math.floor(time * self.even)
        pts = self.times.pts
        return bisect_right(pts, pts[0] + math.floor((time + self.slack) / self.times.tick)) - 1


def _last(times: FrameTimes, slack: Fraction) -> int:
    """Ticks for which the last picture is shown; where the file does not say, as long as most pictures.

    A duration that rounding could have made from nothing says nothing.
    """
    if times.last * times.tick > slack:
        return times.last
    gaps = np.diff(times.pts)
    return round(np.median(gaps)) if gaps.size else round(1 / (times.rate * times.tick))


@lru_cache(maxsize=64)
def _file_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)


def _rate(fps: Fraction) -> str:
    return f"{float(fps):.5g}"
