"""Raw depth on disk, as a network gives it: not normalised, and told apart by its kind."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..disk.atomic import publish, temporary_name

KINDS = ("disparity", "depth")


@dataclass(frozen=True)
class RawDepth:
    """Raw, un-normalised depth of a whole video, on disk as a ``.npy`` of float32 [frames, height, width].

    Attributes:
        path: the file.
        kind: ``"disparity"`` (larger = nearer: Video-Depth-Anything, Depth Anything V2, MiDaS) or ``"depth"``
            (distance, larger = farther: DA3, Zoe).
        frames, height, width: shape.
        fps: frames per second of the video that it was taken from.
    """

    path: Path
    kind: str
    frames: int
    height: int
    width: int
    fps: Fraction

    def __post_init__(self) -> None:
        check_kind(self.kind)

    def disparity(self, numbers: range) -> Iterator[np.ndarray]:
        """The frames ``numbers`` as disparity, float32 [H, W], larger = nearer.

        Depth z becomes 1/z here, and only here, before any percentile is taken; z = inf (sky) becomes 0.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: a frame that the signal does not have; a file of another shape; a frame with values that mean
                nothing (NaN, infinite disparity, z <= 0 or too near 0 to have an inverse), with number and count.
        """
        if numbers.step < 1 or (numbers and not 0 <= numbers[0] <= numbers[-1] < self.frames):
            raise ValueError(f"{self.path} has frames 0 .. {self.frames - 1}, but {numbers} was asked for")
        return self._disparity(numbers)

    def _disparity(self, numbers: range) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            start = _npy_start(file, (self.frames, self.height, self.width))
            # Read, not mapped: mapped pages would count as this process's memory until the whole signal is in it.
            for number in numbers:
                file.seek(start + number * self.height * self.width * 4)
                raw = np.fromfile(file, "<f4", self.height * self.width).reshape(self.height, self.width)
                yield self._checked(raw, number) if self.kind == "disparity" else self._inverse(raw, number)

    def _inverse(self, z: np.ndarray, number: int) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.reciprocal(z)
        return self._checked(np.where(z > 0, inverse, np.float32(np.nan)), number)

    def _checked(self, disparity: np.ndarray, number: int) -> np.ndarray:
        bad = disparity.size - int(np.count_nonzero(np.isfinite(disparity)))
        if bad:
            rule = "finite" if self.kind == "disparity" else "positive, or infinite for the sky"
            raise ValueError(
                f"{self.path}: frame {number} has {bad} of {disparity.size} {self.kind} values that mean nothing: they "
                f"must be {rule}"
            )
        return disparity


class RawDepthWriter:
    """Write raw depth frame by frame; the file appears, complete, when the ``with`` block ends without an error.

    The number of frames need not be known before. :meth:`signal` describes the finished file.

    Args:
        path: ``.npy`` file.
        kind: see :class:`RawDepth`.
        fps: frames per second of the source video.
    """

    def __init__(self, path: Path, kind: str, fps: Fraction) -> None:
        check_kind(kind)
        if path.suffix != ".npy":
            raise ValueError(f"{path}: a signal needs the file name ending .npy")
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
        if frame.ndim != 2 or frame.shape != (self._shape or frame.shape):
            expected = list(self._shape) or "[H, W]"
            raise ValueError(f"{self.path}: frame {self.frames} is {list(frame.shape)}, expected {expected}")
        if not self._shape:
            self._shape = frame.shape
            self._file.write(_npy_header((0, *frame.shape)))
        self._file.write(np.ascontiguousarray(frame, "<f4").data)
        self.frames += 1

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if error is None and self.frames == 0:
                    raise ValueError(f"{self.path}: no frame was written, so there is no signal to keep")
                if error is None:
                    self._file.seek(0)
                    self._file.write(_npy_header((self.frames, *self._shape)))
            if error is None:
                publish(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def signal(self) -> RawDepth:
        """The written signal; to be asked for after the ``with`` block."""
        return RawDepth(self.path, self.kind, self.frames, *self._shape, self.fps)


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"signal kind {kind!r} is not one of {', '.join(KINDS)}")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of a ``.npy`` of little-endian float32. NumPy pads it, so its length stays while the first axis grows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _npy_start(file: io.BufferedReader, shape: tuple[int, int, int]) -> int:
    """Where the values start, after checking that the file holds float32 of this shape, and all of it."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the .npy format")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ValueError(f"{file.name} is not a signal: {error}") from error
    if found != shape or fortran or dtype != np.dtype("<f4"):
        raise ValueError(f"{file.name} holds {dtype} {list(found)}, expected float32 {list(shape)}: it was replaced")
    start = file.tell()
    whole = start + 4 * int(np.prod(shape, dtype=np.int64))
    size = os.fstat(file.fileno()).st_size
    if size != whole:
        raise ValueError(f"{file.name} has {size} bytes instead of {whole}: it is incomplete or damaged, make it again")
    return start
