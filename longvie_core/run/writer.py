"""A finished clip's files are written on a thread while the next clip is sampled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..interrupt import asking, result_of

Value = TypeVar("Value")


class Hurried(BaseException):
    """What can be made again later is to be left for then: somebody waits for the run to end."""


class ClipWriter:
    """One thread that writes clips in their order, one at a time: at most two clips of frames are in memory.

    Leaving its ``with`` block waits for what is being written. Where the block was interrupted, the work asks
    (:func:`longvie_core.interrupt.checkpoint`) and is told by :class:`Hurried`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="longvie-clip-writer")
        self._hurry = threading.Event()
        self._last: Future | None = None

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._hurry.set()
        self._pool.shutdown(wait=True)

    def write(self, work: Callable[[], Value]) -> Future[Value]:
        """Begin to write the next clip as soon as the last one is written.

        Raises:
            The last one's error.
        """
        self.drain()
        self._last = self._pool.submit(self._do, work)
        return self._last

    def drain(self) -> None:
        """Wait until everything is written; raises its error."""
        last, self._last = self._last, None
        if last is not None:
            result_of(last)

    def _do(self, work: Callable[[], Value]) -> Value:
        with asking(self._ask):
            return work()

    def _ask(self) -> None:
        if self._hurry.is_set():
            raise Hurried
