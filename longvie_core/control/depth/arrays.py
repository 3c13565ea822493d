"""Depth that the user already has as floats in a ``.npy``, ``.npz`` or ``.safetensors`` file."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from ...disk.npy import FLOAT32, NpyHeader, read_header
from ..raw_depth import KINDS, RawDepth, check_kind


class DepthArray:
    """An array [frames, height, width] in a file, read frame by frame; an axis of 1 for channels may be there as well.

    A :class:`.ready.DepthSource`.

    Args:
        path: the file. Of several arrays in it, the one named as ``kind`` is read, or the one named as the other kind.
        kind: ``"disparity"`` (larger = nearer) or ``"depth"``: the file does not say it.

    Attributes:
        name: the file's, for messages.
        frames, height, width: shape.

    Raises:
        FileNotFoundError, ValueError: no such file, none of these formats, pickled objects, or no array of that shape.
    """

    def __init__(self, path: Path, kind: str) -> None:
        check_kind(kind, str(path))
        self.kind = kind
        self.name = str(path)
        self._path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        openers: dict[str, Callable[[Path, str], _Array]] = {
            ".npy": _NpyArray,
            ".npz": _NpzArray,
            ".safetensors": _SafetensorsArray,
        }
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

    def raw_depth(self, fps: Fraction) -> RawDepth | None:
        """The file itself as raw depth, where it has that format; None: it has to be copied."""
        if not self._array.plain:
            return None
        return RawDepth(self._path, self.kind, self.frames, self.height, self.width, fps)


class _Array(Protocol):
    """An array [frames, ...] in a file; ``plain``: the file has the format of :class:`.raw_depth.RawDepth`."""

    shape: tuple[int, ...]
    plain: bool

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]: ...


class _NpyArray:
    """An array in a ``.npy`` file."""

    def __init__(self, path: Path, _kind: str) -> None:
        self._path = path
        with self._open() as (file, size):
            self._header = _checked_header(file, path)
        whole = self._header.file_bytes
        if size != whole:
            raise ValueError(f"{path} has {size} bytes instead of {whole}: it is incomplete or damaged, copy it again")
        self.shape = self._header.shape
        self.plain = self._header.dtype == FLOAT32 and len(self.shape) == 3

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The file, and how many bytes it has."""
        with self._path.open("rb") as file:
            yield file, self._path.stat().st_size

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        header = self._header
        with self._open() as (file, _):
            for number, repeats in itertools.groupby(numbers):
                file.seek(header.start + number * header.frame_bytes)
                frame = np.frombuffer(file.read(header.frame_bytes), header.dtype)
                yield from (frame for _ in repeats)


class _NpzArray(_NpyArray):
    """An array in a ``.npz`` file, compressed or not; unpacked on the fly."""

    def __init__(self, path: Path, kind: str) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no .npz file, or an incomplete one: {error}") from error
        self._name = _array_name(names, kind, path) + ".npy"
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
    """An array in a ``.safetensors`` file.

    The file is opened anew for each frame: it is mapped, and what was read of a mapping counts as this process's memory until
    the file is closed.
    """

    plain = False

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self._name = _array_name(list(file.keys()), kind, path)
                self.shape = tuple(file.get_slice(self._name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or an incomplete one: {error}") from error

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        for number, repeats in itertools.groupby(numbers):
            with safe_open(self._path, "pt") as file:
                frame = file.get_slice(self._name)[number].float().numpy()
            yield from (frame for _ in repeats)


def _checked_header(file: IO[bytes], path: Path) -> NpyHeader:
    """Header of a ``.npy`` of numbers that lie frame by frame; ValueError for any other."""
    try:
        header = read_header(file)
    except ValueError as error:
        raise ValueError(f"{path} is no .npy array: {error}") from error
    if header.dtype.kind not in "fui":
        raise ValueError(f"{path} holds {header.dtype}: only numbers are read, never pickled objects")
    if header.fortran:
        raise ValueError(f"{path} is stored in Fortran order, which cannot be read frame by frame: save it in C order")
    return header


def _array_name(names: list[str], kind: str, path: Path) -> str:
    """The array to read: the one named as its kind, or as the other kind, or the only one."""
    for name in (kind, *KINDS):
        if name in names:
            return name
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}): name the one to read 'depth' or 'disparity'")
    return names[0]
