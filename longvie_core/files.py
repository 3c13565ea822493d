"""Files that appear complete or not at all, and survive a power cut once they have appeared; and the room they need."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

UNFINISHED = (".part", ".tmp")
"""Name endings and beginnings of files that a killed process may leave: ours, and those of the safetensors library."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_WINDOWS_DISK_FULL = 112
_PROCESS = secrets.token_hex(4)
"""Two processes that make the same file must not write into the same temporary one."""


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
        temporary.touch(exist_ok=False)  # a link that lies there is never written through
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


def text_sha256(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what would fill the disk.

    Args:
        folder: where the files will go; it, or a folder above it, exists.
        needed: bytes.

    Raises:
        ValueError: naming what is needed, what is free, and the mend.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"{folder} has {in_words(free)} of free disk space, but up to {in_words(needed)} are needed: free "
            f"{in_words(needed - free)}, render fewer clips, or keep the output on a larger disk"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk or a quota is full, or was raised because of one that does.

    PyAV's errors carry the system's number; safetensors has it in the text alone («os error 28»).
    """
    while error is not None:
        number = re.search(r"\(os error (\d+)\)", str(error)) if not isinstance(error, OSError) else None
        code = int(number.group(1)) if number else getattr(error, "errno", None)
        if code in _FULL or (os.name == "nt" and number and code == _WINDOWS_DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_words(size: int) -> str:
    """Bytes as people say them, rounded up."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{-(-size * 10 // unit) / 10:.1f} {name}"
    return f"{-(-size // 1024)} KiB"
