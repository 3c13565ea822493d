"""Stopping long work early: every loop over frames, blocks or packets asks at each turn whether the user still wants it.

The core does not know who interrupts it: a host hangs its own question on the thread that does the work (:func:`asking`), and
:func:`checkpoint` asks it. What that raises goes through the core as any error does, so that nothing half-written stays.
Other threads ask nothing: what one thread reads or writes for another ends when that tells it to.

A single call of a network cannot be interrupted from here: it ends when it has ended, unless the network's own layers ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")

INTERVAL = 0.1
"""Seconds between two questions while another thread is waited for."""


class _Asked(threading.local):
    question: Callable[[], object] | None = None


_asked = _Asked()


@contextmanager
def asking(question: Callable[[], object]) -> Iterator[None]:
    """Hang a question on this thread for a ``with`` block.

    Args:
        question: called very often, so it must be quick. It raises where the work is to stop, and best no :class:`Exception`:
            nobody then takes it for a failure that could be mended.
    """
    before, _asked.question = _asked.question, question
    try:
        yield
    finally:
        _asked.question = before


def checkpoint() -> None:
    """Let the host stop this work here; to be called at least a few times in each second of it."""
    if _asked.question is not None:
        _asked.question()


def result_of(future: Future[Value]) -> Value:
    """The result of another thread's work, as ``future.result()``, but the wait can be interrupted."""
    while True:
        checkpoint()
        try:
            return future.result(INTERVAL)
        except FutureTimeoutError:
            if future.done():  # the work's own error, or a result that came just now
                return future.result()
