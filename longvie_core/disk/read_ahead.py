"""Reading ahead on a thread, while the caller does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from typing import TypeVar

Item = TypeVar("Item")


class ReadAhead:
    """One thread that reads finite iterables, one after the other. It starts with the first of them.

    One thread for all: the allocator may keep memory for each new one, and never give it back.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="longvie-read-ahead")

    def read(self, items: Callable[[], Iterable[Item]]) -> Future[list[Item]]:
        """Call ``items`` on the thread and read what it gives.

        Returns:
            The list of items to come. Its ``result`` waits for it, and raises in the caller's thread what reading raised.
        """
        return self._pool.submit(lambda: list(takewhile(lambda _: not self._stopped.is_set(), items())))

    def stop(self) -> None:
        """End the thread after the item that it is reading, and wait for that."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
