"""The cache of derived controls stays under its limit and never takes away what is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longvie_core.disk.cache import ControlCache, remove, size_of


def fill(path: Path, size: int, age: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path if path.parent.name == "cache" else path.parent, (1000 - age, 1000 - age))
    return path


def test_equal_things_share_an_entry_and_others_do_not(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 100)
    entry = cache.entry("dense", "file", 81, (5.0, 95.0), suffix=".mkv")
    assert entry == cache.entry("dense", "file", 81, (5.0, 95.0), suffix=".mkv")
    others = [
        cache.entry("sparse", "file", 81, (5.0, 95.0), suffix=".mkv"),
        cache.entry("dense", "file", 82, (5.0, 95.0), suffix=".mkv"),
        cache.entry("dense", "file", 81, (5.0, 96.0), suffix=".mkv"),
    ]
    assert len({entry, *others}) == 4
    assert entry.parent == tmp_path / "cache"


def test_oldest_entries_go_first_and_only_as_many_as_needed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 100)
    old = fill(cache.folder / "old", 60, age=3)
    middle = fill(cache.folder / "middle", 50, age=2)
    new = fill(cache.folder / "new", 50, age=1)
    assert cache.trim() == [old]
    assert [old.exists(), middle.exists(), new.exists()] == [False, True, True]


def test_folders_count_and_go_as_a_whole(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 100)
    clip = fill(cache.folder / "tracks" / "clip_0001.mkv", 90, age=5)
    fill(cache.folder / "dense", 90, age=1)
    assert size_of(clip.parent) == 90
    assert cache.trim() == [clip.parent]
    assert not clip.parent.exists()


def test_what_is_in_use_is_never_removed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 10)
    used = cache.entry("dense", 1)
    fill(used, 60, age=9)
    spare = fill(cache.folder / "spare", 60, age=1)
    assert cache.trim() == [spare]
    assert used.exists()


def test_using_an_entry_makes_it_young(tmp_path: Path) -> None:
    first = ControlCache(tmp_path / "cache", 100)
    wanted = fill(first.entry("dense", 1), 60, age=9)
    other = fill(first.folder / "other", 60, age=1)
    ControlCache(tmp_path / "cache", 100).entry("dense", 1)
    assert ControlCache(tmp_path / "cache", 100).trim() == [other]
    assert wanted.exists()


def test_a_vanished_entry_is_noticed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 100)
    entry = fill(cache.entry("dense", 1), 6, age=0)
    assert cache.forget_lost() == 0
    entry.unlink()
    assert [cache.forget_lost(), cache.forget_lost()] == [1, 1]


def test_what_another_host_removes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ControlCache(tmp_path / "cache", 100)
    kept = fill(cache.folder / "kept", 60, age=2)
    seen = [cache.folder / "renamed.part", kept]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(seen))
    assert cache.trim() == []
    monkeypatch.setattr(Path, "exists", lambda path: True)  # ... and is gone when its time is to be set
    assert cache.entry("dense", 1).parent == cache.folder
    remove(cache.folder / "gone")
