"""Depth that the user already has: grey videos, pictures, and arrays."""

from __future__ import annotations

import itertools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
from safetensors import SafetensorError, safe_open

from ...media.probe import video_index
from ...media.read import numbered_frames, read_frames
from ..raw_depth import KINDS, RawDepth
from .networks import known_kind

# --- depth that the user already has ----------------------------------------------------------------------------------

NEAR = ("black", "white")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp", ".bmp")
COLOURED = 0.05
"""Mean difference between the channels, of full scale, from which a picture counts as coloured: a grey one that was compressed
as colour stays far below."""


def grey_disparity(picture: np.ndarray, near: str, what: str = "picture") -> np.ndarray:
    """A grey depth picture as disparity (larger = nearer), float32 [H, W]; nothing is rounded.

    Args:
        picture: uint8, uint16 (0 .. full scale becomes 0 .. 1) or float (taken as it is), [H, W] or [H, W, C]; of more channels
            the mean, and alpha does not count.
        near: ``"white"`` (ComfyUI's depth nodes, most tools) or ``"black"`` (LongVie's own controls).
        what: for messages.

    Raises:
        ValueError: colours (a colour map has no order that could be read back), another type or shape.
    """
    _check_near(near)
    if picture.dtype not in (np.uint8, np.uint16) and picture.dtype.kind != "f":
        raise ValueError(f"{what} is {picture.dtype}: give 8 or 16 bits, or floats")
    if picture.ndim not in (2, 3) or picture.size == 0:
        raise ValueError(f"{what} is {list(picture.shape)}: expected [H, W] or [H, W, channels]")
    full = 1 if picture.dtype.kind == "f" else np.iinfo(picture.dtype).max
    channels = picture.reshape(*picture.shape[:2], -1).astype(np.float32) / np.float32(full)
    channels = channels[..., :1] if channels.shape[-1] < 3 else channels[..., :3]
    if np.ptp(channels, axis=-1).mean() > COLOURED:
        raise ValueError(f"{what} is coloured: a depth video that went through a colour map cannot be used, give the grey one")
    grey = channels.mean(axis=-1, dtype=np.float32)
    return grey if near == "white" else 1 - grey


class ReadyDepthVideo:
    """Grey depth that the user already has, as a video file or as pictures, in its full bit depth (see :func:`grey_disparity`).

    A video is read with its 8, 10, 12 or 16 bits. The grey values are taken as disparity on one scale for the whole video:
    depth that was normalised picture by picture flickers, and nothing here can mend that.

    Args:
        path: a video, a picture, or a folder of pictures, which count in the order of the numbers in their names.
        near: ``"white"`` or ``"black"``.

    Attributes:
        frames: number of pictures.

    Raises:
        FileNotFoundError, ValueError: no such file, not a video, or a folder without pictures.
    """

    kind = "disparity"

    def __init__(self, path: Path, near: str) -> None:
        _check_near(near)
        self.name = str(path)
        self._path, self._near = path, near
        self._pictures = _picture_files(path)
        self.frames = len(self._pictures) or video_index(path).info.frames

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Disparity float32 [H, W] of the frames ``numbers``, ascending; a number may come again.

        Raises:
            ValueError: when it is reached: a coloured or damaged picture.
        """
        if self._pictures:
            return (_read_picture(self._pictures[number], self._near) for number in numbers)
        return self._read_video(list(numbers))

    def _read_video(self, numbers: list[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        for frame in read_frames(self._path, range(1)):
            grey_disparity(frame, self._near, f"{self._path}: frame 0")  # its colours are lost below
        rotation = video_index(self._path).info.rotation
        wanted = iter(numbers)
        number = next(wanted)
        for found, frame in numbered_frames(self._path, video_index(self._path), number):
            if frame is None or found is None or found > number:
                break
            if found < number:
                continue
            disparity = grey_disparity(np.rot90(_grey(frame), rotation // 90), self._near, f"{self._path}: frame {number}")
            while number == found:
                yield disparity
                number = next(wanted, None)
            if number is None:
                return
        raise ValueError(f"{self._path}: frame {number} is damaged: copy the file again, or export it anew")


class DepthArray:
    """Depth that the user already has as floats: ``.npy``, ``.npz`` or ``.safetensors`` of [L, H, W] ([L, 1, H, W] and
    [L, H, W, 1] as well), read frame by frame.

    Args:
        path: the file. Of several arrays in it, the one named ``disparity`` or ``depth`` is read, first the one that ``kind``
            names.
        kind: ``"disparity"`` (larger = nearer) or ``"depth"``: the file does not say it.

    Attributes:
        frames, height, width: shape.

    Raises:
        FileNotFoundError, ValueError: no such file, none of these formats, pickled objects, or no array of that shape.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = known_kind(kind, str(path))
        self.name = str(path)
        self._path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        openers = {".npy": _NpyArray, ".npz": _NpzArray, ".safetensors": _SafetensorsArray}
        if path.suffix.lower() not in openers:
            raise ValueError(f"{path} is no array file: give {', '.join(openers)}")
        self._array = openers[path.suffix.lower()](path, kind)
        shape = self._array.shape
        if len(shape) == 4 and 1 in (shape[1], shape[3]):
            shape = (shape[0], *(shape[2:] if shape[1] == 1 else shape[1:3]))
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"{path} holds an array {list(self._array.shape)}: expected [frames, height, width]")
        self.frames, self.height, self.width = shape

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers``, float32 [H, W], ascending; a number may come again."""
        return (frame.astype(np.float32).reshape(self.height, self.width) for frame in self._array.read(numbers))

    def signal(self, fps: Fraction) -> RawDepth | None:
        """The file itself as a signal, where it is already what one is on disk; None: it has to be copied."""
        if not self._array.plain:
            return None
        return RawDepth(self._path, self.kind, self.frames, self.height, self.width, fps)


class _NpyArray:
    """An array in a ``.npy`` file."""

    def __init__(self, path: Path, _kind: str) -> None:
        self._path = path
        with self._open() as (file, size):
            self._start, self.shape, self._dtype, version = _npy_header(file, str(path))
        whole = self._start + self._dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        if size != whole:
            raise ValueError(f"{path} has {size} bytes instead of {whole}: it is incomplete or damaged, copy it again")
        self.plain = version == (1, 0) and self._dtype == np.dtype("<f4") and len(self.shape) == 3

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The file, and how many bytes it has."""
        with self._path.open("rb") as file:
            yield file, self._path.stat().st_size

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        size = self._dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        with self._open() as (file, _):
            for number, repeats in itertools.groupby(numbers):
                file.seek(self._start + number * size)
                frame = np.frombuffer(file.read(size), self._dtype)
                yield from (frame for _ in repeats)


class _NpzArray(_NpyArray):
    """An array in a ``.npz`` file, compressed or not; unpacked on the fly."""

    def __init__(self, path: Path, kind: str) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no .npz file, or an incomplete one: {error}") from error
        self._name = _chosen(names, kind, path) + ".npy"
        super().__init__(path, kind)
        self.plain = False

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._name) as file:
                yield file, archive.getinfo(self._name).file_size
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self._path} is damaged: copy it again ({error})") from error


class _SafetensorsArray:
    """An array in a ``.safetensors`` file. Opened anew for each frame: what a mapping has read counts as this process's
    memory as long as it is open."""

    plain = False

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self._name = _chosen(list(file.keys()), kind, path)
                self.shape = tuple(file.get_slice(self._name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or an incomplete one: {error}") from error

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        for number, repeats in itertools.groupby(numbers):
            with safe_open(self._path, "pt") as file:
                frame = file.get_slice(self._name)[number].float().numpy()
            yield from (frame for _ in repeats)


def _npy_header(file: IO[bytes], what: str) -> tuple[int, tuple[int, ...], np.dtype, tuple[int, int]]:
    """Where the values start, the shape, the type and the version of a ``.npy``."""
    try:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"version {version} of the format is not known")
        shape, fortran, dtype = headers[version](file)
    except ValueError as error:
        raise ValueError(f"{what} is no .npy array: {error}") from error
    if dtype.kind not in "fui":
        raise ValueError(f"{what} holds {dtype}: only numbers are read, never pickled objects")
    if fortran:
        raise ValueError(f"{what} is stored in Fortran order, which cannot be read frame by frame: save it in C order")
    return file.tell(), shape, dtype, version


def _chosen(names: list[str], kind: str, path: Path) -> str:
    """The array to read: the one named as its kind, or as the other kind, or the only one."""
    for name in (kind, *KINDS):
        if name in names:
            return name
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}): name the one to read 'depth' or 'disparity'")
    return names[0]


def _grey(frame: av.VideoFrame) -> np.ndarray:
    """A decoded picture without rounding: uint16 grey [H, W] of grey and YUV pictures, uint8 or uint16 RGB [H, W, 3] of RGB.

    FFmpeg's grey of YUV is the luma, exactly, brought to full range; its grey of RGB is weighted and rounded, and its 16 bits
    of 8-bit RGB end below full scale.
    """
    rgb = "rgb48le" if frame.format.components[0].bits > 8 else "rgb24"
    return frame.to_ndarray(format=rgb if frame.format.is_rgb else "gray16le", src_color_range=frame.color_range)


def _picture_files(path: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names; a single picture; none for anything else."""
    if path.is_file():
        return [path] if path.suffix.lower() in PICTURES else []
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    found = [file for file in path.iterdir() if file.suffix.lower() in PICTURES]
    if not found:
        raise ValueError(f"{path} holds no pictures: give a folder of {', '.join(PICTURES)}")

    def order(file: Path) -> list[tuple[bool, int, str]]:
        return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", file.name)]

    return sorted(found, key=order)


def _read_picture(path: Path, near: str) -> np.ndarray:
    import cv2

    # Unchanged: as deep as it is. Read by NumPy, since OpenCV does not open every file name everywhere.
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f"{path} is not a readable picture: export it again as PNG")
    return grey_disparity(picture, near, str(path))


def _check_near(near: str) -> None:
    if near not in NEAR:
        raise ValueError(f"near {near!r} is not one of {', '.join(NEAR)}")
