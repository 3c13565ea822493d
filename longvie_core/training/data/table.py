"""Tensors of numbered clips on disk, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from ...disk.atomic import write_atomically


class LatentTable:
    """Tensors of numbered clips under names, float16, memory-mapped; it knows which are there.

    Args:
        folder: made where it is missing.
        rows: how many clips there may be.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rows = folder, rows
        self._open: dict[str, tuple[np.memmap, np.memmap]] = {}
        self._written: list[tuple[str, int]] = []

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for tensors of these shapes; only one process at a time."""
        for name, shape in shapes.items():
            for path, dtype, rest in ((self._path(name), np.float16, shape), (self._path(f"{name}.done"), bool, ())):
                if not path.is_file():
                    write_atomically(path, partial(self._create, dtype=dtype, shape=rest))

    def done(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Which of the clips are there, bool [len(rows)]; none where nothing was ever written under this name."""
        return self._arrays(name)[1][rows] if self._path(name).is_file() else np.zeros(len(rows), bool)

    def write(self, name: str, row: int, value: Tensor) -> None:
        """Keep a clip's tensor [1, ...]; it counts as there after the next :meth:`commit`."""
        self._arrays(name)[0][row] = value[0].cpu().numpy()
        self._written.append((name, row))

    def commit(self) -> None:
        """From now on what was written counts as there; values reach the disk before the marks that they are."""
        for name in {name for name, _ in self._written}:
            self._arrays(name)[0].flush()
        for name, row in self._written:
            self._arrays(name)[1][row] = True
        for name in {name for name, _ in self._written}:
            self._arrays(name)[1].flush()
        self._written.clear()

    def read(self, name: str, rows: Sequence[int]) -> Tensor:
        """float32 [len(rows), ...]; see :meth:`read_half`."""
        return self.read_half(name, rows).float()

    def read_half(self, name: str, rows: Sequence[int]) -> Tensor:
        """float16 [len(rows), ...], as on disk.

        Raises:
            ValueError: one of the clips is not there.
        """
        missing = int((~self.done(name, rows)).sum())
        if missing:
            raise ValueError(f"{self.folder}: {name} of {missing} clips is not encoded: run 'prepare' first")
        return torch.from_numpy(self._arrays(name)[0][rows])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _create(self, path: Path, dtype: type, shape: tuple[int, ...]) -> None:
        open_memmap(path, mode="w+", dtype=dtype, shape=(self.rows, *shape)).flush()

    def _arrays(self, name: str) -> tuple[np.memmap, np.memmap]:
        """Values and which of them are there."""
        if name not in self._open:
            arrays = tuple(open_memmap(self._path(part), mode="r+") for part in (name, f"{name}.done"))
            if any(len(array) != self.rows for array in arrays):
                raise ValueError(f"{self._path(name)} has {len(arrays[0])} rows instead of {self.rows}: use another folder")
            self._open[name] = arrays
        return self._open[name]
