"""The pack's caches inside the host's folders, and what keeps an entry there: the prompt whose nodes use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context

from ..longvie_core.disk.cache import ControlCache, cache_limit
from .contents import reading_progress

TAILS = 16
"""Clips whose last frames Sample Clip keeps, beside those of the prompt that runs."""


@lru_cache(maxsize=1)
def control_cache() -> ControlCache:
    """Derived controls in ``<user>/longvie/controls``, at most ``LONGVIE_CACHE_GIB`` (20) of them.

    Raises:
        ValueError: the variable is no size.
    """
    return ControlCache(Path(folder_paths.get_user_directory()) / "longvie" / "controls", cache_limit())


@lru_cache(maxsize=1)
def tail_cache() -> ControlCache:
    """What Sample Clip leaves for the next clip, in ``<temp>/longvie``: the newest few."""
    return ControlCache(Path(folder_paths.get_temp_directory()) / "longvie", 1 << 60, most=TAILS)


class PromptHolds:
    """Holds on entries, for as long as the prompt runs that they were taken in.

    The host answers from its own cache without running a node. So what a node has asked for when it last ran is held from the
    beginning of each prompt that has the node.
    """

    def __init__(self) -> None:
        self.state = ""
        self._prompt: str | None = None
        self._held: dict[str, dict[Path, ControlCache]] = {}
        self._asked: dict[str, dict[Path, ControlCache]] = {}
        self._ran: set[str] = set()

    def take(self, cache: ControlCache, kind: str, *made_from: object, suffix: str) -> Path:
        """Where what is made from these values is kept; held until another prompt begins."""
        node = self._begin()
        path = cache.entry(kind, *made_from, suffix=suffix)
        if node not in self._ran:  # what it used in earlier prompts is not needed in this one
            self._ran.add(node)
            self._give_back(node)
            self._asked[node] = {}
        if path in self._held.setdefault(node, {}):
            cache.release(path)
        self._held[node][path] = self._asked[node][path] = cache
        return path

    def check(self) -> str:
        """Text that changes when an entry was lost; holds what the node that asks has used when it last ran."""
        node = self._begin()
        held = self._held.setdefault(node, {})
        for path, cache in self._asked.get(node, {}).items():
            if path not in held and path.exists():
                cache.hold(path)
                held[path] = cache
        return self.state

    def _begin(self) -> str:
        """The running node; gives everything back when it is the first one that asks in this prompt."""
        context = get_executing_context()
        prompt, node = ("", "") if context is None else (context.prompt_id, context.node_id)
        if prompt != self._prompt:
            for other in list(self._held):
                self._give_back(other)
            self._ran.clear()
            self.state = f"{control_cache().forget_lost()} {tail_cache().forget_lost()}"
            self._prompt = prompt
        return node

    def _give_back(self, node: str) -> None:
        for path, cache in self._held.pop(node, {}).items():
            cache.release(path)


_holds = PromptHolds()


def cached(kind: str, *made_from: object, suffix: str = ".mkv") -> Path:
    """Where what is made from these things is kept; it stays there while this prompt runs."""
    return _holds.take(control_cache(), kind, *made_from, suffix=suffix)


def cached_tail(*made_from: object) -> Path:
    """Where the tail of a clip is kept; it stays there while this prompt runs."""
    return _holds.take(tail_cache(), "tail", *made_from, suffix=".safetensors")


def is_intact(path: Path) -> bool:
    """Whether a cached file is there and whole."""
    return control_cache().is_intact(path)


@contextmanager
def making(path: Path, needed: int) -> Iterator[Callable[[Path], None]]:
    """See :meth:`longvie_core.disk.cache.ControlCache.making`."""
    with control_cache().making(path, needed, reading_progress) as finished:
        yield finished


def cache_state() -> str:
    """Text that changes when a cached file that this process relies on was deleted or damaged: it has to be made again."""
    return _holds.check()
