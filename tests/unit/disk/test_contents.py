"""A file is known by what it holds, is read once, and is read again as soon as it may hold something else."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from longvie_core.disk.contents import BLOCK, ContentMemory, content_fingerprint

OLD = 1_700_000_000 * 10**9
"""A time of change long ago, in ns."""


def write(path: Path, data: bytes, changed: int = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(changed, changed))
    return path


class Reads:
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        self.bytes = 0
        self._before = 0

    def __call__(self, done: int, size: int) -> None:
        self.bytes += done if done <= self._before else done - self._before
        self._before = 0 if done == size else done


@pytest.fixture
def memory(tmp_path: Path) -> ContentMemory:
    return ContentMemory(tmp_path / "memory" / "contents.json")


def bytes_read(path: Path, memory: ContentMemory) -> int:
    reads = Reads()
    content_fingerprint(path, memory, reads)
    return reads.bytes


def test_it_is_the_hash_of_the_bytes_and_of_nothing_else(tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK + 12345)
    one, other = write(tmp_path / "one.bin", data), write(tmp_path / "below" / "other.bin", data, OLD + 1)
    assert content_fingerprint(one) == content_fingerprint(other) == blake3(data).hexdigest()
    changed = bytearray(data)
    changed[BLOCK] ^= 1
    assert content_fingerprint(write(one, bytes(changed))) != content_fingerprint(other)


def test_the_files_of_a_folder_count_by_relative_name_and_content(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(folder / "config.json", b"{}")
    write(folder / "unet" / "weights.bin", b"1234")
    fingerprint = content_fingerprint(folder)
    assert content_fingerprint(Path(shutil.copytree(folder, tmp_path / "copy"))) == fingerprint
    (tmp_path / "copy" / "unet" / "weights.bin").rename(tmp_path / "copy" / "weights.bin")
    assert content_fingerprint(tmp_path / "copy") != fingerprint
    write(folder / "unet" / "weights.bin", b"1235")
    assert content_fingerprint(folder) != fingerprint


def test_it_is_read_once_also_by_the_next_process(tmp_path: Path, memory: ContentMemory) -> None:
    path = write(tmp_path / "weights.bin", bytes(1000))
    assert [bytes_read(path, memory) for _ in range(2)] == [1000, 0]
    assert bytes_read(path, ContentMemory(memory.file)) == 0
    (tmp_path / "link.bin").symlink_to(path)
    assert bytes_read(tmp_path / "link.bin", memory) == 0


@pytest.mark.parametrize(("data", "changed"), [(bytes(1001), OLD), (bytes(1000), OLD + 1)], ids=["size", "time"])
def test_another_size_or_time_is_read_again(tmp_path: Path, memory: ContentMemory, data: bytes, changed: int) -> None:
    path = write(tmp_path / "weights.bin", bytes(1000))
    bytes_read(path, memory)
    assert bytes_read(write(path, data, changed), memory) == len(data)
    assert bytes_read(path, memory) == 0


def test_a_file_that_was_changed_a_moment_ago_is_not_remembered(tmp_path: Path, memory: ContentMemory) -> None:
    # On a file system that counts in steps of two seconds it could change once more and show the same time.
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(1000))
    assert [bytes_read(path, memory) for _ in range(2)] == [1000, 1000]


def test_a_file_that_changes_while_it_is_read_is_read_again_and_not_remembered_before(
    tmp_path: Path, memory: ContentMemory
) -> None:
    path = write(tmp_path / "weights.bin", bytes(1000))
    after = bytes(999) + b"!"
    changes = iter([lambda: write(path, after, OLD + 1)])

    def change_once(done: int, size: int) -> None:
        for change in changes:
            change()
            return

    assert content_fingerprint(path, memory, change_once) == blake3(after).hexdigest()
    assert bytes_read(path, memory) == 0

    def change_always(done: int, size: int) -> None:
        write(path, os.urandom(1000), path.stat().st_mtime_ns + 1)

    write(path, bytes(1000), OLD + 2)
    with pytest.raises(ValueError, match=r"weights\.bin is being written: wait until it is complete"):
        content_fingerprint(path, memory, change_always)
    assert bytes_read(path, memory) == 1000


def test_reading_can_be_ended_between_blocks(tmp_path: Path, memory: ContentMemory) -> None:
    class Interrupted(Exception):
        pass

    seen = []

    def interrupt(done: int, size: int) -> None:
        seen.append((done, size))
        raise Interrupted

    path = write(tmp_path / "weights.bin", bytes(3 * BLOCK))
    with pytest.raises(Interrupted):
        content_fingerprint(path, memory, interrupt)
    assert seen == [(BLOCK, 3 * BLOCK)]
    assert bytes_read(path, memory) == 3 * BLOCK


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"version": 1, "files": 3}),
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: text.replace(json.loads(text)["sha256"][:8], "00000000"),
    ],
    ids=["empty", "torn", "nested", "other fields", "other version", "edited"],
)
def test_a_damaged_memory_is_made_again(tmp_path: Path, memory: ContentMemory, damage) -> None:
    path = write(tmp_path / "weights.bin", bytes(1000))
    bytes_read(path, memory)
    memory.file.write_text(damage(memory.file.read_text("utf-8")), encoding="utf-8")
    later = ContentMemory(memory.file)
    assert [bytes_read(path, later) for _ in range(2)] == [1000, 0]
    assert bytes_read(path, ContentMemory(memory.file)) == 0


def test_a_fingerprint_that_was_edited_is_not_believed(tmp_path: Path, memory: ContentMemory) -> None:
    path = write(tmp_path / "weights.bin", bytes(1000))
    digest = content_fingerprint(path, memory)
    memory.file.write_text(memory.file.read_text("utf-8").replace(digest, "0" * 64), encoding="utf-8")
    assert content_fingerprint(path, ContentMemory(memory.file)) == digest


def test_it_forgets_what_it_learnt_first(tmp_path: Path, memory: ContentMemory) -> None:
    memory.most = 3
    paths = [write(tmp_path / f"{number}.bin", bytes(number + 1)) for number in range(4)]
    for path in paths:
        bytes_read(path, memory)
    assert [bytes_read(path, ContentMemory(memory.file, most=3)) for path in reversed(paths)] == [0, 0, 0, 1]
    assert len(json.loads(memory.file.read_text("utf-8"))["files"]) == 3


def learn(file: Path, path: Path) -> str:
    return content_fingerprint(path, ContentMemory(file))


def test_several_processes_share_it(tmp_path: Path, memory: ContentMemory) -> None:
    paths = [write(tmp_path / f"{number}.bin", bytes([number]) * 1000) for number in range(8)]
    with ProcessPoolExecutor(3) as pool:
        digests = list(pool.map(learn, [memory.file] * 8, paths))
    assert digests == [blake3(path.read_bytes()).hexdigest() for path in paths]
    # Whatever they have taken from one another, the file is whole, and what it says is right.
    files = json.loads(memory.file.read_text("utf-8"))["files"]
    assert (
        files
        and {path: entry[2] for path, entry in files.items()}.items()
        <= dict(zip(map(str, paths), digests, strict=True)).items()
    )
    assert [file.name for file in memory.file.parent.iterdir()] == [memory.file.name]


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    path = write(tmp_path / "weights.bin", bytes(1000))
    memory = ContentMemory(tmp_path / "file" / "contents.json")
    assert [bytes_read(path, memory) for _ in range(2)] == [1000, 1000]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist: give the path of a local file"):
        content_fingerprint(tmp_path / "nothing.safetensors")
    assert content_fingerprint(write(tmp_path / "empty", b"")) == blake3(b"").hexdigest()
