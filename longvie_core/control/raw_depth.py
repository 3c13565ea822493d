"""Raw depth on disk, as a network gives it: not normalized, and labelled with its kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from ..disk.atomic import publish, temporary_name
from ..disk.npy import FLOAT32, float32_header, read_header
from ..interrupt import checkpoint

KINDS = ("disparity", "depth")


@dataclass(frozen=True)
class RawDepth:
    """Raw, unnormalized depth of a whole video, on disk as a ``.npy`` of float32 [frames, height, width].

    Attributes:
        path: the file.
        kind: ``"disparity"`` (larger = nearer: Video-Depth-Anything, Depth Anything V2, MiDaS) or ``"depth"``
            (distance, larger = farther: DA3, Zoe).
        frames, height, width: shape.
        fps: frames per second of the video that it was taken from.

    Raises:
        ValueError: an unknown kind.
    """

    path: Path
    kind: str
    frames: int
    height: int
    width: int
    fps: Fraction

    def __post_init__(self) -> None:
        check_kind(self.kind, str(self.path))

    def disparity(self, numbers: range) -> Iterator[np.ndarray]:
        """The frames ``numbers`` as disparity, float32 [H, W], larger = nearer; see :func:`to_disparity`.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: a frame that is not there; a file of another shape; values that mean nothing, with their frame and
                count.
        """
        if numbers.step < 1 or (numbers and not 0 <= numbers[0] <= numbers[-1] < self.frames):
            raise ValueError(f"{self.path} has frames 0 .. {self.frames - 1}, but {numbers} was asked for")
        return self._disparity(numbers)

    def _disparity(self, numbers: range) -> Iterator[np.ndarray]:
        size = self.height * self.width
        with self.path.open("rb") as file:
            start = self._first_value(file)
            # Read, not mapped: mapped pages would count as this process's memory until the whole file is in it.
            for number in numbers:
                checkpoint()
                file.seek(start + number * size * FLOAT32.itemsize)
                frame = np.fromfile(file, FLOAT32, size).reshape(self.height, self.width)
                yield to_disparity(frame, self.kind, f"{self.path}: frame {number}")

    def _first_value(self, file: IO[bytes]) -> int:
        """Where the values start; ValueError unless the file holds float32 of this shape, and all of it."""
        try:
            header = read_header(file)
        except ValueError as error:
            raise ValueError(f"{self.path} is not a signal: {error}") from error
        shape = (self.frames, self.height, self.width)
        if header.shape != shape or header.fortran or header.dtype != FLOAT32:
            raise ValueError(
                f"{self.path} holds {header.dtype} {list(header.shape)}, expected float32 {list(shape)}: it was replaced"
            )
        size = os.fstat(file.fileno()).st_size
        if size != header.file_bytes:
            raise ValueError(
                f"{self.path} has {size} bytes instead of {header.file_bytes}: it is incomplete or damaged, make it again"
            )
        return header.start


class RawDepthWriter:
    """Write raw depth frame by frame; the file appears, complete, when the ``with`` block ends without an error.

    The number of frames need not be known before. :meth:`raw_depth` describes the finished file.

    Args:
        path: ``.npy`` file.
        kind: see :class:`RawDepth`.
        fps: frames per second of the source video.

    Raises:
        ValueError: an unknown kind, another file name ending, or no frame at all.
    """

    def __init__(self, path: Path, kind: str, fps: Fraction) -> None:
        check_kind(kind, str(path))
        if path.suffix != ".npy":
            raise ValueError(f"{path}: raw depth needs the file name ending .npy")
        self.path, self.kind, self.fps = path, kind, fps
        self.frames = 0
        self._shape: tuple[int, ...] = ()
        self._temporary = temporary_name(path)

    def __enter__(self) -> RawDepthWriter:
        self._file = self._temporary.open("wb")
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame [H, W] of floats; kept as float32.

        Raises:
            ValueError: not two axes, or another shape than the first frame's.
        """
        checkpoint()
        if frame.ndim != 2 or frame.shape != (self._shape or frame.shape):
            expected = list(self._shape) or "[H, W]"
            raise ValueError(f"{self.path}: frame {self.frames} is {list(frame.shape)}, expected {expected}")
        if not self._shape:
            self._shape = frame.shape
            self._file.write(float32_header((0, *frame.shape)))
        self._file.write(np.ascontiguousarray(frame, FLOAT32).data)
        self.frames += 1

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if error is None and self.frames == 0:
                    raise ValueError(f"{self.path}: no frame was written, so there is no depth to keep")
                if error is None:
                    self._file.seek(0)
                    self._file.write(float32_header((self.frames, *self._shape)))
            if error is None:
                publish(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def raw_depth(self) -> RawDepth:
        """The finished file; to be asked for after the ``with`` block."""
        height, width = self._shape
        return RawDepth(self.path, self.kind, self.frames, height, width, self.fps)


def to_disparity(frame: np.ndarray, kind: str, what: str) -> np.ndarray:
    """Raw depth of one frame as disparity of the same shape and type, larger = nearer.

    Depth z becomes 1/z, before any percentile is taken; z = inf (sky) becomes 0.

    Args:
        kind: of the frame's values.
        what: names the frame in messages.

    Raises:
        ValueError: values that mean nothing (NaN, infinite disparity, z <= 0 or too near 0 to have an inverse), with their
            count.
    """
    disparity = frame
    if kind == "depth":
        with np.errstate(divide="ignore", over="ignore"):
            disparity = np.where(frame > 0, np.reciprocal(frame), np.float32(np.nan))
    bad = frame.size - int(np.count_nonzero(np.isfinite(disparity)))
    if bad:
        rule = "finite" if kind == "disparity" else "positive, or infinite for the sky"
        raise ValueError(f"{what} has {bad} of {frame.size} {kind} values that mean nothing: they must be {rule}")
    return disparity


def check_kind(kind: str, what: str) -> None:
    """Raise ValueError, naming ``what`` it belongs to, unless the kind is one of ``KINDS``."""
    if kind not in KINDS:
        raise ValueError(f"{what}: kind {kind!r} is not one of {', '.join(KINDS)}")
