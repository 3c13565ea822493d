"""A folder of derived controls, named by what they were made from, that never grows over its limit."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

GIB = 1 << 30
DEFAULT_LIMIT_GIB = 20


def cache_limit() -> int:
    """Bytes that a cache of controls may hold: ``LONGVIE_CACHE_GIB`` of the environment, else 20 GiB."""
    return int(float(os.environ.get("LONGVIE_CACHE_GIB", DEFAULT_LIMIT_GIB)) * GIB)


class ControlCache:
    """Content-addressed files and folders, the least recently used removed first. Several hosts may share a folder.

    Args:
        folder: made if missing.
        limit: bytes that it may hold; more only where this process uses them.

    Attributes:
        used: entries that this process relies on; they are never removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self.used: set[Path] = set()
        self._losses = 0
        folder.mkdir(parents=True, exist_ok=True)

    def entry(self, kind: str, *made_from: object, suffix: str = "") -> Path:
        """Path of what is made from these values, whether it is there or not; marked as used.

        Args:
            kind: how the file's name begins.
            made_from: values that count by their ``repr``: frozen dataclasses, numbers, text and hashes.
            suffix: how it ends.
        """
        name = hashlib.sha256(repr(made_from).encode()).hexdigest()
        path = self.folder / f"{kind}_{name}{suffix}"
        self.used.add(path)
        with suppress(OSError):  # not there yet, or just removed by another host
            os.utime(path)
        return path

    def trim(self) -> list[Path]:
        """Remove the least recently used entries until the rest fits the limit.

        Returns:
            What was removed.
        """
        times: dict[Path, int] = {}
        sizes: dict[Path, int] = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another host has just renamed or removed it
                times[path], sizes[path] = path.stat().st_mtime_ns, size_of(path)
        excess = sum(sizes.values()) - self.limit
        removed = []
        for path in sorted(sizes, key=times.__getitem__):
            if excess <= 0:
                break
            if path in self.used:
                continue
            remove(path)
            removed.append(path)
            excess -= sizes[path]
        return removed

    def forget_lost(self) -> int:
        """How often, so far, an entry that this process relies on was found deleted. A change means: make it again."""
        lost = {path for path in self.used if not path.exists()}
        self.used -= lost
        self._losses += bool(lost)
        return self._losses


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is still there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
