"""Reading ahead on a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from longvie_core.disk.read_ahead import ReadAhead


@pytest.fixture
def reader() -> Iterator[ReadAhead]:
    reader = ReadAhead()
    yield reader
    reader.stop()


def test_gives_all_items_in_order_and_reads_everything_on_one_other_thread(reader: ReadAhead) -> None:
    threads = set()

    def items() -> Iterator[int]:
        for item in range(100):
            threads.add(threading.current_thread())
            yield item

    readings = [reader.read(items) for _ in range(3)]
    assert [reading.result() for reading in readings] == [list(range(100))] * 3
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_there_is_no_thread_before_there_is_something_to_read() -> None:
    before = threading.active_count()
    reader = ReadAhead()
    assert threading.active_count() == before
    reader.stop()


def test_reads_while_the_caller_does_something_else(reader: ReadAhead) -> None:
    read = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        read.set()

    ahead = reader.read(items)
    assert read.wait(10), "nothing was read before the result was asked for"
    assert ahead.result() == [1]


@pytest.mark.parametrize("after", [None, 3])
def test_an_error_comes_out_in_the_caller_with_its_text(reader: ReadAhead, after: int | None) -> None:
    def items() -> Iterator[int]:
        if after is None:
            raise ValueError("depth_03.mp4 is too short")

        def some() -> Iterator[int]:
            yield from range(after)
            raise ValueError("depth_03.mp4 is too short")

        return some()

    failed, next_one = reader.read(items), reader.read(lambda: iter([1]))
    with pytest.raises(ValueError, match="depth_03.mp4 is too short"):
        failed.result()
    assert next_one.result() == [1]


def test_stop_ends_the_thread_at_the_next_item_and_starts_nothing_more() -> None:
    started, read = threading.Event(), []

    def items() -> Iterator[int]:
        while True:
            started.set()
            read.append(0)
            time.sleep(0.001)
            yield 0

    before = threading.active_count()
    reader = ReadAhead()
    reader.read(items)
    waiting = reader.read(items)
    assert started.wait(10)
    reader.stop()
    count = len(read)
    time.sleep(0.02)
    assert len(read) == count
    assert threading.active_count() == before
    with pytest.raises(CancelledError):
        waiting.result()


def test_stopping_twice_or_after_an_error_is_no_error() -> None:
    def fails() -> Iterator[int]:
        raise OSError("gone")

    for items in (lambda: iter([1]), fails):
        reader = ReadAhead()
        reader.read(items)
        reader.stop()
        reader.stop()
