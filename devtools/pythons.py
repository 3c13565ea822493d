"""Tests and demo on the newest and the oldest supported Python of this machine, and with the lowest allowed versions.

``python dev.py pythons`` runs, one after the other: on the newest Python all tests and the demo; on the oldest one the tests of
unit, parity and backend, and the demo; and there the unit tests with every direct dependency at its lower bound. Tests on the
Python that runs dev.py itself are left to ``python dev.py test``. A Python that is not found is no failure.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]

PARTS_FOR_THE_OLDEST = ["tests/unit", "tests/parity", "tests/backend"]
# A version manager's stand-in may be on the path and refuse to start, and some systems leave out what makes environments.
QUESTION = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys.executable)"
COUNTS = re.compile(r"(\d+ (?:passed|failed|skipped|error)[^=]* in [\d.]+s)")


# ---- which Pythons there are


def find_python(version: Version) -> Path | None:
    """A Python of this version that runs and can make environments: this one, from the path, or from pyenv; else None."""
    return next((found for path in _candidates(version) if (found := _verified(path, version))), None)


def _candidates(version: Version) -> Iterator[str]:
    if version == sys.version_info[:2]:
        yield sys.executable
    name = f"python{version[0]}.{version[1]}"
    for folder in os.get_exec_path():
        if found := shutil.which(name, path=folder):
            yield found
    executable = "python.exe" if os.name == "nt" else f"bin/{name}"
    for root in _pyenv_roots():
        releases = (root / "versions").glob(f"{version[0]}.{version[1]}.*")
        for release in sorted(releases, key=_numbers, reverse=True):
            yield str(release / executable)


def _pyenv_roots() -> Iterator[Path]:
    if named := os.environ.get("PYENV_ROOT"):
        yield Path(named)
    yield Path.home() / ".pyenv"
    if pyenv := shutil.which("pyenv"):
        answer = subprocess.run([pyenv, "root"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if answer.stdout.strip():
            yield Path(answer.stdout.strip())


def _numbers(release: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release.name)]


def _verified(path: str, version: Version) -> Path | None:
    """What this executable says it is; None where it does not run, is of another version or cannot make environments."""
    try:
        answer = subprocess.run(
            [path, "-c", QUESTION], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    major, minor, executable = [*answer.stdout.strip().split(" ", 2), "", "", ""][:3]
    return Path(executable) if executable and (major, minor) == tuple(map(str, version)) else None


# ---- what is run on them


@dataclass(frozen=True)
class Run:
    """One start of dev.py.

    Attributes:
        title: the Python and why it is taken.
        python: its executable.
        arguments: dev.py's.
    """

    title: str
    python: Path
    arguments: list[str]

    def __str__(self) -> str:
        return f"{self.title}: dev.py {' '.join(self.arguments)}"


def plan(found: Mapping[Version, Path], this: Version) -> list[Run]:
    """What to run, given the Pythons found (one at least) and the one whose tests ``dev.py test`` runs anyway."""
    newest, oldest = max(found), min(found)
    runs = []
    for version, role, parts in ((newest, "newest", []), (oldest, "oldest", PARTS_FOR_THE_OLDEST)):
        title = f"Python {_spelt(version)}, the {role}"
        if version != this and not (version == newest and role == "oldest"):
            runs.append(Run(title, found[version], ["test", *parts]))
        if role == "newest" or version != newest:
            runs.append(Run(title, found[version], ["demo"]))
    title = f"Python {_spelt(oldest)}, lowest versions"
    return [*runs, Run(title, found[oldest], ["--lowest", "test", "tests/unit"])]


def run_everywhere(dev: Path, supported: Sequence[Version], comfyui: str | None, arguments: list[str]) -> int:
    """Find, run, sum up; 0 where nothing failed, 1 where something did, 130 after Ctrl-C.

    Args:
        dev: dev.py.
        supported: the versions to look for, ascending.
        comfyui: a host of the caller's own; None takes the pinned one.
        arguments: of the command; there are none.
    """
    argparse.ArgumentParser(
        prog="python dev.py pythons", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    found = {}
    for version in supported:
        python = find_python(version)
        print(f"Python {_spelt(version)}: {python or 'not found on the path or under pyenv'}", flush=True)
        if python is not None:
            found[version] = python
    if not found:
        print(f"none of the supported Pythons ({', '.join(map(_spelt, supported))}) can be used here: nothing to run")
        return 0
    this = sys.version_info[:2]
    if this in (max(found), min(found)):
        print(f"Python {_spelt(this)} runs this command, so its tests are left to: dev.py test", flush=True)
    host = [] if comfyui is None else ["--comfyui", comfyui]
    summary, failed = [], 0
    for run in plan(found, this):
        print(f"\n=== {run}", flush=True)
        begin = time.monotonic()
        try:
            status, counts = _watched([str(run.python), str(dev), *host, *run.arguments])
        except KeyboardInterrupt:
            return 130
        failed += status != 0
        outcome = "ok" if status == 0 else f"FAILED (exit status {status})"
        summary.append(f"{run}: {outcome}, {time.monotonic() - begin:.0f} s{counts and f'; {counts}'}")
    print("\n=== in short", *summary, sep="\n", flush=True)
    return 1 if failed else 0


def _watched(command: list[str]) -> tuple[int, str]:
    """Run a command, pass its output on as it comes, and pick pytest's closing counts out of it."""
    counts = ""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if match := COUNTS.search(line.decode(errors="replace")):
                counts = match.group(1)
        return process.wait(), counts
    finally:
        process.terminate()
        process.wait()


def _spelt(version: Version) -> str:
    return ".".join(map(str, version))
