"""Seals: what a file holds, written beside it, so that a damaged, foreign or unfinished one is told from what belongs there."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

from .atomic import write_atomically
from .contents import content_fingerprint

SEAL = ".seal"


def seal(path: Path, root: Path, progress: Callable[[int, int], object] | None = None) -> None:
    """Say of a finished file that it is what belongs there. It is read once.

    Args:
        path: a file.
        root: folder that it lies below; the folders between count as a part of its name.
        progress: as in :func:`.contents.content_fingerprint`.
    """
    status = path.lstat()
    claim = {
        "name": path.relative_to(root).as_posix(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "blake3": content_fingerprint(path, None, progress),
    }
    write_atomically(seal_of(path), lambda part: part.write_text(json.dumps(claim), encoding="utf-8"))


def is_sealed(path: Path, root: Path) -> bool:
    """Whether a file is there, is no link and lies behind none below ``root``, and holds what its seal says.

    It is read only where its time of change is another than when it was sealed.
    """
    try:
        return _fits_seal(path, root)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def seal_of(path: Path) -> Path:
    """Where the seal of a file lies."""
    return path.with_name(path.name + SEAL)


def _fits_seal(path: Path, root: Path) -> bool:
    inner = path.relative_to(root)
    if any((root / folder).is_symlink() for folder in inner.parents if folder != Path()):
        return False
    status, seal_status = path.lstat(), seal_of(path).lstat()
    if not stat.S_ISREG(status.st_mode) or not stat.S_ISREG(seal_status.st_mode):
        return False
    claim = json.loads(seal_of(path).read_text(encoding="utf-8"))
    if claim["name"] != inner.as_posix() or claim["size"] != status.st_size:
        return False
    if claim["mtime_ns"] == status.st_mtime_ns:
        return True
    if content_fingerprint(path) != claim["blake3"]:
        return False
    seal(path, root)  # copied or touched: from now on by its new time
    return True
