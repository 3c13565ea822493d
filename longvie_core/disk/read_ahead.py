"""Reading ahead: items of iterables are made on a thread of their own while the caller does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from typing import TypeVar

Item = TypeVar("Item")


class ReadAhead:
    """One thread that reads finite iterables, one after the other; it starts with the first of them.

    It is the same thread all along: each new one might get memory of its own from the allocator, which is then not given back.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="longvie-read-ahead")

    def read(self, items: Callable[[], Iterable[Item]]) -> Future[list[Item]]:
        """Begin to read what ``items`` gives when it is called on the thread.

        The future's ``result`` is the list of items; what the reading raised is raised there, in the caller's thread.
        """
        return self._pool.submit(lambda: list(takewhile(lambda _: not self._stopped.is_set(), items())))

    def stop(self) -> None:
        """Give up all reading: the thread ends after the item that it is at. Returns when it has."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
