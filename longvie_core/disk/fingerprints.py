"""Hashes that stand for the content of texts and files."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from ..interrupt import checkpoint

BLOCK = 1 << 20
"""Bytes that are read at once."""


def text_sha256(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checkpoint()
            digest.update(block)
    return digest.hexdigest()


def cached_file_sha256(path: Path) -> str:
    """:func:`file_sha256`, read once as long as the file's size and time stay the same."""
    return _sha256_of(path, file_stamp(path))


def file_stamp(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns: what tells one state of a file from another without reading it."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8192)
def _sha256_of(path: Path, _stamp: tuple[int, int]) -> str:
    return file_sha256(path)


def files_fingerprint(path: Path | None) -> str:
    """Hash of the names, sizes and times of a file, or of all files below a folder; ``"none"`` for ``None``.

    Raises:
        FileNotFoundError: there is nothing at this path.
    """
    if path is None:
        return "none"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a local file or folder, nothing is downloaded")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return text_sha256(json.dumps(stamps))
