"""The cache of derived controls stays under its limit and never takes away what is in use."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longvie_core.disk.atomic import write_atomically
from longvie_core.disk.cache import GIB, ControlCache, cache_limit, remove, size_of


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


# ---- the limit, within one process that lives long


def make(cache: ControlCache, number: int, size: int = 1000) -> Path:
    """An entry that was used once and given back."""
    path = cache.entry("dense", number, suffix=".mkv")
    if not cache.is_intact(path):
        with cache.making(path, size):
            path.write_bytes(bytes([number]) * size)
    cache.release(path)
    return path


def test_what_was_given_back_goes_when_room_is_needed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 4000)
    paths = [make(cache, number) for number in range(20)]
    assert size_of(cache.folder) <= 4000
    assert paths[-1].exists() and not paths[0].exists()
    # Nothing is left of what is gone, its seals included.
    left = {path.name for path in paths if path.exists()}
    assert {file.name.removesuffix(".seal") for file in cache.folder.iterdir()} == left


def test_what_is_being_made_counts_as_soon_as_it_is_there(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 4000)
    old = [make(cache, number) for number in range(3)]
    make(cache, 9, 3500)
    assert size_of(cache.folder) <= 4000 and not any(path.exists() for path in old)


def test_an_entry_is_held_as_often_as_it_was_taken(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 0)
    path = make(cache, 1)
    path.write_bytes(b"here")
    cache.hold(path)
    cache.hold(path)
    cache.release(path)
    assert cache.trim() == [] and path.exists()
    cache.release(path)
    assert cache.trim() == [path]


def test_using_an_entry_does_not_change_its_time_of_change(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", 5000)
    path = make(cache, 1)
    changed = path.stat().st_mtime_ns
    other = make(cache, 2)
    os.utime(other, ns=(time.time_ns() - 1, other.stat().st_mtime_ns))
    make(cache, 1)
    assert path.stat().st_mtime_ns == changed and cache.is_intact(path)
    cache.limit = 1500
    assert cache.trim() == [other]


def test_a_cache_may_keep_so_many_entries(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB, most=3)
    paths = [make(cache, number) for number in range(6)]
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "-inf", "1e400", "1e300", "20 GiB", "0x10"])
def test_a_limit_that_is_no_size_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LONGVIE_CACHE_GIB", text)
    with pytest.raises(ValueError, match="LONGVIE_CACHE_GIB is .*number of GiB, 0 or more, such as 20") as error:
        cache_limit()
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("0.5", GIB // 2), (" 3 ", 3 * GIB), ("", 20 * GIB), (None, 20 * GIB)])
def test_the_limit_is_in_gib(monkeypatch: pytest.MonkeyPatch, text: str | None, size: int) -> None:
    monkeypatch.delenv("LONGVIE_CACHE_GIB", raising=False)
    if text is not None:
        monkeypatch.setenv("LONGVIE_CACHE_GIB", text)
    assert cache_limit() == size


# ---- only what is whole and ours is believed


def forge(path: Path) -> None:
    """Replace a file by another one of its size and time, with the seal of the other one."""
    other = path.with_name("other.mkv")
    other.write_bytes(bytes(path.stat().st_size))
    ControlCache(path.parent, GIB)
    with ControlCache(path.parent, GIB).making(other, 0):
        pass
    other.replace(path)
    other.with_name("other.mkv.seal").replace(path.with_name(path.name + ".seal"))


def link_out(path: Path) -> None:
    """Move a file out of the cache, with a link in its place."""
    outside = path.parent.parent / "outside"
    outside.mkdir()
    moved = shutil.move(path, outside / path.name)
    path.symlink_to(moved)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "one byte": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link": link_out,
    "another's": forge,
    "no seal": lambda path: path.with_name(path.name + ".seal").unlink(),
    "a torn seal": lambda path: os.truncate(path.with_name(path.name + ".seal"), 10),
    "another seal": lambda path: path.with_name(path.name + ".seal").write_text(json.dumps({"size": 1000})),
    "no object": lambda path: path.with_name(path.name + ".seal").write_text("3"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("in_folder", [False, True], ids=["file", "in folder"])
def test_a_damaged_entry_counts_as_not_there_and_is_made_again(tmp_path: Path, damage, in_folder: bool) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    entry = cache.entry("tracks", 1, suffix="" if in_folder else ".mkv")
    file = entry / "track_000.mkv" if in_folder else entry

    def work() -> None:
        with cache.making(entry, 1000):
            if in_folder:
                entry.mkdir(exist_ok=True)
                assert not os.path.lexists(file), "what is there in a folder is taken for finished work"
            write_atomically(file, lambda part: part.write_bytes(b"a" * 1000))

    work()
    assert cache.is_intact(file) and ControlCache(cache.folder, GIB).is_intact(file)
    damage(file)
    assert not cache.is_intact(file)
    work()
    assert cache.is_intact(file) and file.read_bytes() == b"a" * 1000 and not file.is_symlink()
    outside = tmp_path / "outside" / file.name
    assert not outside.exists() or outside.read_bytes() == b"a" * 1000, "nothing was written through the link"


def test_a_touched_or_copied_entry_is_read_and_kept(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    path = make(cache, 1)
    os.utime(path, ns=(5, 5))
    assert cache.is_intact(path)
    copied = Path(shutil.copytree(cache.folder, tmp_path / "moved", copy_function=shutil.copyfile))
    assert ControlCache(copied, GIB).is_intact(copied / path.name)


def test_a_folder_that_is_a_link_is_not_believed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    entry = cache.entry("tracks", 1)
    with cache.making(entry, 10):
        entry.mkdir()
        (entry / "track_000.mkv").write_bytes(b"1")
    entry.rename(tmp_path / "outside")
    entry.symlink_to(tmp_path / "outside")
    assert not cache.is_intact(entry / "track_000.mkv")
    cache.release(entry)
    cache.limit = 0
    cache.trim()
    assert not os.path.lexists(entry) and (tmp_path / "outside" / "track_000.mkv").read_bytes() == b"1"


def test_what_was_finished_before_an_error_is_kept(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    entry = cache.entry("tracks", 1)
    with pytest.raises(RuntimeError), cache.making(entry, 10):
        entry.mkdir()
        (entry / "track_000.mkv").write_bytes(b"1")
        (entry / "track_001.mkv.abc.part").write_bytes(b"2")
        raise RuntimeError
    assert cache.is_intact(entry / "track_000.mkv")
    with cache.making(entry, 10):
        assert [file.name for file in sorted(entry.glob("*.mkv"))] == ["track_000.mkv"]


def test_a_full_disk_is_named_with_the_folder_and_the_bytes(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    entry = cache.entry("depth", 1)
    words = r"is full: up to 3\.0 GiB are needed for depth, .* are free"
    with pytest.raises(ValueError, match=words) as error, cache.making(entry, 3 * GIB):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(cache.folder) in str(error.value) and "LONGVIE_CACHE_GIB" in str(error.value)
    with pytest.raises(OSError, match="Permission denied"), cache.making(entry, 1):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_changed_entry_is_noticed(tmp_path: Path) -> None:
    cache = ControlCache(tmp_path / "cache", GIB)
    path = make(cache, 1)
    assert [cache.forget_lost() for _ in range(2)] == [0, 0]
    make(cache, 1)  # used again
    assert cache.forget_lost() == 0
    os.truncate(path, 10)
    assert [cache.forget_lost() for _ in range(2)] == [1, 1]
    make(cache, 1)
    assert cache.forget_lost() == 1
    cache.limit = 0
    cache.trim()
    assert cache.forget_lost() == 2, "removed to make room: whoever remembers it has to make it again"
