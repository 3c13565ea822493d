"""One writer at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

_LOCKED_BYTE = 1 << 30
"""Windows lets nobody read a locked byte, so the one that we lock lies far behind the text that others read."""


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[bool]:
    """Hold a lock for the length of a ``with`` block. The system frees it when the process ends, however that ends.

    Args:
        path: lock file, made if missing and left in place. Its text names the holder, for messages only.
        what: what the lock guards, for messages.

    Yields:
        Whether the file system knows locks; where it does not, nothing is held.

    Raises:
        ValueError: a process holds it already; the message names which.
        OSError: the file cannot be opened for writing; a link in its place is never followed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            _take(file)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                yield False
                return
            if error.errno not in _HELD:
                raise
            raise ValueError(
                f"{what} is being written by {_holder(file)}: wait until it has finished, stop it, or use another name"
            ) from error
        try:
            with suppress(OSError):  # on a full disk the lock holds without its text
                file.write(_myself().encode())
                file.truncate()
            yield True
        finally:
            _release(file)


def _take(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(file: BinaryIO) -> None:
    if sys.platform == "win32":
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:  # not left to closing: a forked child would keep it
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    text = file.read(300).decode(errors="replace").strip()
    return text if text and text.isprintable() and "\ufffd" not in text else "another process"
