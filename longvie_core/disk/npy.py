"""Headers of ``.npy`` files, for arrays that are read and written frame by frame; NumPy itself loads whole ones only."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

import numpy as np

FLOAT32 = np.dtype("<f4")
"""What is written: little-endian on every machine."""

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class NpyHeader:
    """What the header of a ``.npy`` file says.

    Attributes:
        version: of the format.
        shape: of the array; entry k of the first axis is called frame k here.
        fortran: whether the values lie in column order, so that no frame lies in one piece.
        dtype: of the values.
        start: bytes before the first value.
    """

    version: tuple[int, int]
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.start + self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def read_header(file: IO[bytes]) -> NpyHeader:
    """The header of a ``.npy`` file opened at its beginning.

    Raises:
        ValueError: no ``.npy``, or of a version that is not known.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"version {version} of the format is not known")
    shape, fortran, dtype = _READERS[version](file)
    return NpyHeader(version, shape, fortran, dtype, file.tell())


def float32_header(shape: tuple[int, ...]) -> bytes:
    """Header of a little-endian float32 array. NumPy pads it, so its length stays the same while the first axis grows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": FLOAT32.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()
