"""Files that appear complete or not at all, and survive a power cut once they have appeared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def temporary_name(destination: Path) -> Path:
    """Where a file is written before :func:`publish`: the same folder, so that the rename cannot cross file systems."""
    return destination.with_name(destination.name + ".part")


def publish(temporary: Path, destination: Path) -> None:
    """Make the finished file ``temporary`` appear as ``destination`` in one step, flushed to disk with its folder entry."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(destination)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(destination.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(destination: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file and publish it as ``destination``; an error leaves nothing behind."""
    temporary = temporary_name(destination)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # some writers replace the file by one that only its owner may read
        publish(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
