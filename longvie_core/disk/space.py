"""Free space: asked for before the work starts, and recognised in errors when it has run out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_WINDOWS_DISK_FULL = 112


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what would fill the disk.

    Args:
        folder: where the files will go; it, or a folder above it, exists.
        needed: bytes.

    Raises:
        ValueError: what is needed, what is free, and the mend.
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

    PyAV's errors have the system's number, safetensors' only the text «os error 28».
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
