"""The lock of a run: one holder at a time, in this process or another, and none that is dead."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longvie_core.disk.lock import exclusive

HOLD = """
import sys
from pathlib import Path
from longvie_core.disk.lock import exclusive
with exclusive(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def holder(path: Path) -> subprocess.Popen:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def take(path: Path) -> bool:
    with exclusive(path, "run 'a'") as known:
        return known


def test_a_second_holder_in_this_process_is_refused_by_name(path: Path) -> None:
    with exclusive(path, "run 'a'"):
        says = rf"run 'a' is being written by process {os.getpid()} on .* since .*: wait until it has finished, stop it, or use"
        with pytest.raises(ValueError, match=says):
            take(path)
        with pytest.raises(ValueError, match="is being written"):  # the refused one has not opened it for others
            take(path)
    assert take(path)


def test_another_process_is_refused_and_named_until_it_ends(path: Path) -> None:
    process = holder(path)
    with pytest.raises(ValueError, match=f"is being written by process {process.pid} on "):
        take(path)
    process.communicate("", timeout=10)
    assert take(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM] if os.name != "nt" else [])
def test_a_killed_process_holds_nothing(path: Path, way: signal.Signals) -> None:
    process = holder(path)
    process.send_signal(way)
    process.wait(10)
    assert str(process.pid) in path.read_text(), "its text stays behind, and must not count"
    assert take(path)
    process.stdout.close()


def test_an_error_inside_gives_it_back(path: Path) -> None:
    with pytest.raises(KeyError), exclusive(path, "it"):
        raise KeyError
    assert take(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_keep_it(path: Path) -> None:
    """A child made by fork has the parent's open files, and may outlive it."""
    reading, writing = os.pipe()
    with exclusive(path, "it"):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        assert take(path)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_two_files_are_two_locks(path: Path) -> None:
    with exclusive(path, "a"), exclusive(path.with_name("other.lock"), "b"):
        pass


def test_the_text_is_only_who_holds_it(path: Path) -> None:
    path.write_text("x" * 1000)
    with exclusive(path, "it"):
        assert path.read_text().startswith(f"process {os.getpid()} on ") and "x" * 10 not in path.read_text()


@pytest.mark.parametrize("text", ["", "\0\0", "\x1b[2Jred", "\udcff"])
def test_a_text_that_says_nothing_is_not_shown(path: Path, text: str) -> None:
    with exclusive(path, "it"):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"run 'a' is being written by another process: wait"):
            take(path)


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        take(path)
    assert precious.read_text() == "precious"


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_says_so(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert take(path) is False


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_other_errors_of_the_system_pass(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="broken"):
        take(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_keep_from_locking(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def on_full_disk(descriptor: int, *rest: object, **more: object) -> object:
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, descriptor)
        os.close(full)
        return real(descriptor, *rest, **more)

    monkeypatch.setattr(os, "fdopen", on_full_disk)
    assert take(path)
