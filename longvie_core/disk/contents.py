"""What files hold, as a short text that neither their names nor their places nor their times change.

A file is read as a whole, once: BLAKE3 on all cores, which is about as fast as disks are. From then on its size and time of
change are looked at and nothing more, as long as a :class:`ContentMemory` remembers it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from .atomic import make_folder, write_atomically
from .fingerprints import file_stamp, text_sha256

BLOCK = 4 << 20
"""Bytes between two calls of ``progress``: a few milliseconds of hashing, and short even on a slow disk."""

ATTEMPTS = 2
"""How often a file is read that somebody writes meanwhile, before that is an error."""

SETTLED_NS = 2 * 10**9
"""Age in ns from which a file's time tells its states apart: file systems count in steps of up to two seconds."""

MOST_ENTRIES = 4096
VERSION = 1


def content_fingerprint(
    path: Path, memory: ContentMemory | None = None, progress: Callable[[int, int], object] | None = None
) -> str:
    """Hash of the bytes of a file; for a folder, of the relative names and bytes of all files below it.

    Args:
        path: file or folder.
        memory: asked before a file is read, and told afterwards.
        progress: called with (bytes done, bytes) of each file that has to be read, every few MiB; what it raises ends the
            reading.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is being written.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a local file or folder, nothing is downloaded")
    if not path.is_dir():
        return _of_file(path, memory, progress)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    return text_sha256(json.dumps([(name, _of_file(file, memory, progress)) for name, file in files]))


class ContentMemory:
    """Fingerprints of files, remembered by their size and time of change in a small JSON file.

    Several processes may share the file; where two of them write at once, one forgets what it has just learnt. A damaged one is
    made again, and one that cannot be written is done without: then files are read again, which costs time and nothing else.

    Args:
        file: made when there is something to remember.
        most: files that it remembers; those that were learnt first are forgotten first.
    """

    def __init__(self, file: Path, most: int = MOST_ENTRIES) -> None:
        self.file = file
        self.most = most
        self._read: tuple[tuple[int, int] | None, dict[str, list]] = (None, {})

    def recall(self, path: Path, stamp: tuple[int, int]) -> str | None:
        """The fingerprint of a file in the state ``stamp``; ``None`` where it is not remembered."""
        size, changed, digest = self._entries().get(str(path), (None, None, None))
        return digest if (size, changed) == stamp else None

    def learn(self, path: Path, stamp: tuple[int, int], digest: str) -> None:
        """Remember the fingerprint of a file in the state ``stamp``."""
        entries = dict(self._entries())
        entries.pop(str(path), None)
        entries[str(path)] = [*stamp, digest]
        kept = dict(list(entries.items())[-self.most :])
        text = json.dumps({"version": VERSION, "files": kept, "sha256": _checksum(kept)}, indent=0)
        with suppress(OSError):
            make_folder(self.file.parent)
            write_atomically(self.file, lambda part: part.write_text(text, encoding="utf-8"))

    def _entries(self) -> dict[str, list]:
        """What is remembered, path -> [size, time of change in ns, fingerprint]; nothing where the file is damaged."""
        try:
            stamp = file_stamp(self.file)
            if self._read[0] == stamp:
                return self._read[1]
            data = json.loads(self.file.read_text(encoding="utf-8"))
            entries = data["files"]
            intact = data["version"] == VERSION and data["sha256"] == _checksum(entries)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
        self._read = (stamp, entries if intact else {})
        return self._read[1]


def _checksum(entries: object) -> str:
    return text_sha256(json.dumps(entries))


def _of_file(path: Path, memory: ContentMemory | None, progress: Callable[[int, int], object] | None) -> str:
    path = path.resolve()
    for _ in range(ATTEMPTS):
        stamp = file_stamp(path)
        known = None if memory is None else memory.recall(path, stamp)
        if known is not None:
            return known
        digest = _read_through(path, stamp[0], progress)
        if file_stamp(path) == stamp:
            # Changed a moment ago, it could change once more without another time to show for it.
            if memory is not None and abs(time.time_ns() - stamp[1]) > SETTLED_NS:
                memory.learn(path, stamp, digest)
            return digest
    raise ValueError(f"{path} is being written: wait until it is complete (a copy or a download), then queue again")


def _read_through(path: Path, size: int, progress: Callable[[int, int], object] | None) -> str:
    """Read, not mapped: a mapped file that somebody cuts short meanwhile would end the process."""
    digest = blake3(max_threads=blake3.AUTO)
    block = memoryview(bytearray(min(BLOCK, max(size, 1))))
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            if progress is not None:
                progress(done, size)
    return digest.hexdigest()
