"""A driving video as the clips see it: at the plan's rate and size (16 fps and 640x352 in P1 and P2, both in section 3.1).

Resampling follows the clock, not the frame count: output frame k is the picture that the source shows k/fps seconds
after its first one. Nothing is blended. A faster source loses pictures, a slower one repeats them, and both keep their
length, so that the sound still fits.
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
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..disk.fingerprints import cached_file_sha256
from ..plan import ClipPlan
from .probe import FrameTimes, frame_times, probe
from .read import read_frames

FITS = ("stretch", "crop")


class DrivingVideo(Protocol):
    """What making controls needs of a driving video; :class:`Footage` is one."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def fps(self) -> Fraction:
        """Frames per second."""
        ...

    def read(self, numbers: range) -> Iterator[np.ndarray]:
        """The frames ``numbers``, uint8 RGB [height, width, 3]."""
        ...


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
        """Find out how long a video is at ``fps``; the arguments are this class's attributes.

        Raises:
            FileNotFoundError, ValueError: as :func:`.probe.frame_times` for the file; and ValueError for a setting out of
                range.
        """
        if fit not in FITS:
            raise ValueError(f"fit {fit!r} is not one of {', '.join(FITS)}")
        if fps <= 0:
            raise ValueError(f"fps {fps} is not positive: the reference uses 16")
        if width < 1 or height < 1:
            raise ValueError(f"size {width}x{height} is empty: the reference uses 640x352")
        return cls(path, Fraction(fps), width, height, fit, Pace.of(path).length(Fraction(fps)))

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
                f"{self.path} has {self.frames} frames at {rate_text(self.fps)} fps (0 .. {self.frames - 1}), but frame "
                f"{numbers[-1]} was asked for"
            )
        if Pace.of(self.path).length(self.fps) != self.frames:
            raise ValueError(f"{self.path} has changed since it was opened: queue the workflow again")
        sources = self.source_frames(numbers)
        if self.fit == "stretch":
            return read_frames(self.path, sources, size=(self.width, self.height))
        return self._cropped(read_frames(self.path, sources), probe(self.path).pixel_aspect)

    def source_frames(self, numbers: range) -> array[int]:
        """Which frame of the file is shown at each of ``numbers``; numbers past the end give the last."""
        pace = Pace.of(self.path)
        return array("q", (pace.frame_at(min(number, self.frames - 1) / self.fps) for number in numbers))

    def digest(self) -> str:
        """sha256 that changes when the file's bytes or a setting change."""
        parts = (cached_file_sha256(self.path), str(self.fps), self.width, self.height, self.fit)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def summary(self, plan: ClipPlan) -> str:
        """One sentence for the user: what resampling and ``plan`` make of the video, and what the tail rule costs.

        Raises:
            ValueError: as :meth:`.ClipPlan.resolved`, if the footage is too short for the plan.
        """
        plan = plan.resolved(self.frames)
        pace = Pace.of(self.path)
        source_rate = f"{rate_text(pace.even_rate)} fps" if pace.even_rate else "a varying rate"
        clips = f"{plan.clips} clip{'s' * (plan.clips != 1)} of {plan.frames}"
        dropped = self.frames - plan.output_frames
        padding = plan.stitched_frames(plan.clips) - plan.output_frames
        outcome, mend = f"{plan.output_frames} frames used", ""
        if dropped:
            outcome += f", {dropped} dropped"
            rule = "choose tail 'pad' to keep them" if plan.source_frames == self.frames else "the plan ends there"
            mend = f" - {rule}"
        if padding:
            outcome += f", {padding} added by repeating the last and cut off again"
        return (
            f"{len(pace.times.pts)} frames at {source_rate} become {self.frames} at {rate_text(self.fps)} fps: "
            f"{clips} ({outcome}){mend}"
        )

    def _cropped(self, frames: Iterator[np.ndarray], pixel_aspect: Fraction) -> Iterator[np.ndarray]:
        source: np.ndarray | None = None
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
    aspect = Fraction(*size) / pixel_aspect
    kept_width, kept_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    box = tuple(float(edge) for edge in (left, top, left + kept_width, top + kept_height))
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC, box))


def rate_text(fps: Fraction) -> str:
    """Frames per second for messages: five digits."""
    return f"{float(fps):.5g}"


# --- which source frame is shown when ---------------------------------------------------------------------------------

LEAST_SLACK = Fraction(12, 10_000)
"""Seconds: Matroska and FLV round to 1 ms, and such times, copied to a file with a finer clock, are rounded again there."""

MOST_SLACK = Fraction(1, 200)
"""Seconds: half a tick of GIF, the coarsest clock to which times are rounded. In coarser ones a tick is a frame: exact."""

FLOAT_ERROR = 1e-7
"""Seconds: more than float64 loses in a day's timestamps."""


@dataclass(frozen=True)
class Pace:
    """Which frame of a file is shown at a time, in seconds after its first picture.

    Containers round timestamps to their tick. That must not make a 16 fps video drop and repeat frames at 16 fps, so a
    timestamp may be off by ``slack``. Where all of them fit an even rate within that, the even rate is taken as exact;
    elsewhere (variable frame rate) a picture counts as shown from ``slack`` before its timestamp.

    Attributes:
        times: the file's timestamps.
        even_rate: frames per second of an even source; None where the rate varies.
        slack: seconds: one tick (half for a timestamp's own rounding, half for the first one's), within ``LEAST_SLACK`` ..
            ``MOST_SLACK``.
    """

    times: FrameTimes
    even_rate: Fraction | None
    slack: Fraction

    @classmethod
    def of(cls, path: Path) -> Pace:
        """The pace of a file.

        Raises:
            FileNotFoundError, ValueError: as :func:`.probe.frame_times`.
        """
        times = frame_times(path)
        slack = min(max(times.tick, LEAST_SLACK), MOST_SLACK)
        seconds = (np.asarray(times.pts) - times.pts[0]) * float(times.tick)
        error = np.abs(seconds - np.arange(len(seconds)) / float(times.rate)).max()
        last_error = abs(_last_duration(times, slack) * times.tick - 1 / times.rate)
        even = max(error, last_error) <= float(slack) + FLOAT_ERROR
        return cls(times, times.rate if even else None, slack)

    def length(self, fps: Fraction) -> int:
        """Number of frames at ``fps``: how many k have k/fps before the end of the last picture; at least 1."""
        pts = self.times.pts
        if self.even_rate:
            return math.ceil(len(pts) * fps / self.even_rate)
        end = (pts[-1] + _last_duration(self.times, self.slack) - pts[0]) * self.times.tick
        return max(1, math.ceil((end - 2 * self.slack) * fps))  # the last timestamp and its duration: two roundings

    def frame_at(self, time: Fraction) -> int:
        """Number of the frame shown at ``time`` seconds; of frames with one timestamp the last."""
        if self.even_rate:
            return math.floor(time * self.even_rate)
        pts = self.times.pts
        return bisect_right(pts, pts[0] + math.floor((time + self.slack) / self.times.tick)) - 1


def _last_duration(times: FrameTimes, slack: Fraction) -> int:
    """Ticks for which the last picture is shown: as the file says, or as long as most pictures.

    A stated duration within ``slack`` is not believed: rounding alone may have made it.
    """
    if times.last_duration * times.tick > slack:
        return times.last_duration
    gaps = np.diff(times.pts)
    return round(np.median(gaps)) if gaps.size else round(1 / (times.rate * times.tick))
