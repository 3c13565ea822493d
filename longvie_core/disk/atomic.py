"""Files that appear complete or not at all, and survive a power cut once they have appeared."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

UNFINISHED = (".part", ".tmp")
"""How names of half-written files end (ours) and begin (the safetensors library's)."""

_PROCESS = secrets.token_hex(4)
"""Part of our names, so that two processes which make the same file do not write into the same temporary one."""


def temporary_name(destination: Path) -> Path:
    """Where a file is written before :func:`publish`: the same folder, so that the rename cannot cross file systems."""
    return destination.with_name(f"{destination.name}.{_PROCESS}.part")


def publish(temporary: Path, destination: Path) -> None:
    """Make the finished file ``temporary`` appear as ``destination`` in one step, flushed to disk with its folder entry."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(destination)
    sync_folder(destination.parent)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that they survive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def write_atomically(destination: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file and publish it as ``destination``; an error leaves nothing behind."""
    temporary = temporary_name(destination)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)  # never writes through a link that lies there
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # some writers replace the file by one that only its owner may read
        publish(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> list[Path]:
    """Delete what killed processes left half-written in a folder and its subfolders; only while nobody else writes there.

    Returns:
        What was deleted.
    """
    ending, beginning = UNFINISHED
    removed = []
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ending) or name.startswith(beginning):
                path = Path(root) / name
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed
