"""What holds for all tests: which ComfyUI they run against, their markers, and their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.places import COMFYUI

LEVELS = ("unit", "parity", "backend", "host", "browser")
"""The folders of tests, fast first; each is also the marker of the tests in it."""

os.environ["COMFYUI_PATH"] = str(COMFYUI)  # for code under test and processes that read it


def level_of(item: pytest.Item) -> str:
    """The folder below ``tests`` that a test lies in."""
    return item.path.relative_to(Path(__file__).parent).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its level, and run the fast levels first."""
    for item in items:
        item.add_marker(level_of(item))
    items.sort(key=lambda item: LEVELS.index(level_of(item)))
