"""A folder of derived files, named by what they were made from, that keeps its limit and is believed only where it is whole.

Each file has a seal beside it (:mod:`.seal`), or says itself what it holds (:mod:`.tensors`). What does not hold what it says,
or is a link, counts as not there and is made again.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .atomic import UNFINISHED
from .seal import SEAL, is_sealed, seal, seal_of
from .space import in_words, is_disk_full

GIB = 1 << 30
DEFAULT_LIMIT_GIB = 20
LIMIT_VARIABLE = "LONGVIE_CACHE_GIB"

State = tuple[tuple[str, int, int], ...]
"""Relative name, size and time of change of every file of an entry."""


def cache_limit() -> int:
    """Bytes that a cache of controls may hold: ``LONGVIE_CACHE_GIB`` of the environment, else 20 GiB.

    Raises:
        ValueError: the variable is set to something else than a number of GiB.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(DEFAULT_LIMIT_GIB)
    try:
        size = float(text) * GIB
    except ValueError:
        size = math.nan
    if not math.isfinite(size) or size < 0:
        raise ValueError(
            f"the environment variable {LIMIT_VARIABLE} is {text!r}, but it must be a number of GiB, 0 or more, such as "
            f"{DEFAULT_LIMIT_GIB}: correct it or leave it out, and start again"
        )
    return int(size)


class ControlCache:
    """Content-addressed files and folders, the least recently used removed first. Several hosts may share a folder.

    A file was last used at its time of access, a folder at its time of change.

    Args:
        folder: made if missing.
        limit: bytes that it may hold; more only while more is in use.
        most: entries that it may hold; ``None`` = any number.

    Attributes:
        used: how often each entry is held at present; what is held is never removed.
    """

    def __init__(self, folder: Path, limit: int, most: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.most = most
        self.used: Counter[Path] = Counter()
        self._relied: dict[Path, State | None] = {}
        self._losses = 0
        folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, kind: str, *made_from: object, suffix: str = "") -> Path:
        """Path of what is made from these values, whether it is there or not.

        Args:
            kind: how the file's name begins.
            made_from: values that count by their ``repr``: frozen dataclasses, numbers, text and hashes.
            suffix: how it ends.
        """
        return self.folder / f"{kind}_{hashlib.sha256(repr(made_from).encode()).hexdigest()}{suffix}"

    def entry(self, kind: str, *made_from: object, suffix: str = "") -> Path:
        """:meth:`path_of`, held until :meth:`release`, and missed by :meth:`forget_lost` ever after."""
        path = self.path_of(kind, *made_from, suffix=suffix)
        self._relied[path] = _state(path)
        self.hold(path)
        return path

    def hold(self, path: Path) -> None:
        """Keep an entry from being removed, once more, until :meth:`release`; it counts as used just now."""
        self.used[path] += 1
        with suppress(OSError):  # not there yet, or just removed by another host
            now, status = time.time_ns(), path.lstat()
            if not stat.S_ISLNK(status.st_mode):
                os.utime(path, ns=(now, now if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns))

    def release(self, path: Path) -> None:
        """Give back one :meth:`hold`."""
        self.used[path] -= 1
        if self.used[path] <= 0:
            del self.used[path]

    def is_intact(self, path: Path) -> bool:
        """Whether a file, which is an entry or lies in one, is there and whole (:func:`.seal.is_sealed`)."""
        return is_sealed(path, self.folder)

    @contextmanager
    def making(
        self, path: Path, needed: int, progress: Callable[[int, int], object] | None = None
    ) -> Iterator[Callable[[Path], None]]:
        """Make an entry within a ``with`` block: room before it, what it has made sealed and the limit kept after it.

        In a folder, intact files of earlier work stay, all else goes first. After an error, what is finished is sealed as
        well, so that the next attempt goes on from there.

        Args:
            path: the entry, a file or a folder, which the block makes.
            needed: bytes that it may take, for the message that the disk is full.
            progress: called while it is read for its seal, as in :func:`.seal.seal`.

        Yields:
            What seals a file of the folder as soon as it is finished, so that even a killed process does not lose it.

        Raises:
            ValueError: the disk is full; names the folder, the bytes that are needed and the mend.
        """
        self.hold(path)
        try:
            if path.is_symlink() or (path.suffix and path.is_dir()):
                remove(path)
            for file in list(_files_of(path)):
                # A single file is replaced by the new one, whoever else may be making it just now.
                if file != path and not self.is_intact(file):
                    remove(file)
            self.trim()
            try:
                yield self._seal_all
            finally:
                self._seal_all(path, progress)
            self._relied[path] = _state(path)
            self.trim()
        except Exception as error:
            if not is_disk_full(error):
                raise
            free = shutil.disk_usage(self.folder).free
            raise ValueError(
                f"the disk of {self.folder} is full: up to {in_words(needed)} are needed for {path.name.partition('_')[0]}, "
                f"{in_words(free)} are free. Free some space there, lower {LIMIT_VARIABLE}, or move the folder to a larger disk"
            ) from error
        finally:
            self.release(path)

    def trim(self) -> list[Path]:
        """Remove the least recently used entries until the rest fits the limit; none that is held.

        Returns:
            What was removed.
        """
        times: dict[Path, int] = {}
        sizes: dict[Path, int] = {}
        for path in self.folder.iterdir():
            if path.name.endswith(SEAL):
                if not os.path.lexists(path.with_name(path.name.removesuffix(SEAL))):
                    path.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):  # another host has just renamed or removed it
                times[path], sizes[path] = _last_use(path), size_of(path)
        excess = sum(sizes.values()) - self.limit
        surplus = 0 if self.most is None else len(sizes) - self.most
        removed = []
        for path in sorted(sizes, key=times.__getitem__):
            if excess <= 0 and surplus <= 0:
                break
            if path in self.used:
                continue
            remove(path)
            removed.append(path)
            excess -= sizes[path]
            surplus -= 1
        return removed

    def forget_lost(self) -> int:
        """How often, so far, an entry that this process has asked for was found deleted or changed since.

        A change of this number means: make it again. Whoever remembers an entry by its path must ask.
        """
        lost = []
        for path, known in self._relied.items():
            state = _state(path)
            if state is None or state != (known or state):
                lost.append(path)
            self._relied[path] = state
        for path in lost:
            del self._relied[path]
        self._losses += bool(lost)
        return self._losses

    def _seal_all(self, path: Path, progress: Callable[[int, int], object] | None = None) -> None:
        """Seal the finished files of an entry that have no seal that fits."""
        for file in list(_files_of(path)):
            if not self.is_intact(file):
                with suppress(FileNotFoundError):  # removed by another host
                    seal(file, self.folder, progress)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, with their seals; links count by themselves."""
    if path.is_dir() and not path.is_symlink():
        return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(path) for name in names)
    seal = seal_of(path)
    return path.lstat().st_size + (seal.lstat().st_size if os.path.lexists(seal) else 0)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder with its seal, if it is still there; nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        seal_of(path).unlink(missing_ok=True)


def _last_use(path: Path) -> int:
    """When an entry was used, in ns: looking into a folder would change its time of access."""
    status = path.lstat()
    return status.st_mtime_ns if stat.S_ISDIR(status.st_mode) else status.st_atime_ns


def _files_of(path: Path) -> Iterator[Path]:
    """A file itself, or all that lies in a folder; without seals and what is unfinished."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            yield path
        return
    yield from (file for file in path.iterdir() if not file.name.endswith((SEAL, UNFINISHED[0])))


def _state(path: Path) -> State | None:
    """Sizes and times of an entry's files; ``None`` where it is not there."""
    try:
        stats = [(file.relative_to(path).as_posix(), file.lstat()) for file in sorted(_files_of(path))]
    except FileNotFoundError:
        return None
    state = tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats)
    return state if state or path.is_dir() else None
