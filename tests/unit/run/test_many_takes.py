"""A run of 600 clips and 1,000 takes is checked before a queue in less than a second."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from longvie_core.plan import ClipPlan
from longvie_core.run.keys import ClipKey
from longvie_core.run.manifest import Manifest, StoredFile, Take
from longvie_core.run.store import Run

CLIPS, OTHERS = 600, 400
LIMIT = 1.0
"""Seconds of this process, whatever else the machine does."""

PLAN = ClipPlan(source_frames=1 + 80 * CLIPS)


def key(clip: int, version: int) -> ClipKey:
    """As many parts, and as long ones, as a real clip has."""
    parts = {f"part {number}": hashlib.sha256(bytes([number])).hexdigest() for number in range(18)}
    return ClipKey(parts | {"prompt": f"{clip} {version}"})


def stored(path: Path, content: bytes) -> StoredFile:
    path.write_bytes(content)
    status = path.stat()
    return StoredFile(path.name, hashlib.sha256(content).hexdigest(), status.st_size, status.st_mtime_ns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files; what counts is how many there are."""
    folder = tmp_path_factory.mktemp("many") / "run"
    folder.mkdir()
    takes: list[Take] = []
    for version, clips in ((1, OTHERS), (0, CLIPS)):
        before = ""
        for clip in range(clips):
            made_from = key(clip, version)
            before = made_from.fingerprint(before)
            name = f"clip_{clip + 1:04d}_{before[:12]}"
            files = [stored(folder / f"{name}.{ending}", before.encode()) for ending in ("safetensors", "mp4")]
            takes.append(Take(clip, before, made_from.parts, 80, files[0], files[1], 400.0, prompt="a horse " * 40))
    sequence = tuple(take.fingerprint for take in takes[OTHERS:])
    (folder / "run.json").write_text(Manifest(tuple(takes), sequence, (), "16").to_json(), "utf-8")
    return folder


def seconds_of_a_check(folder: Path, version: int) -> tuple[float, int]:
    """How long all takes that a queue does before it renders, and how many clips it keeps; the shortest of three times."""
    keys = [key(clip, version) for clip in range(CLIPS)]
    taken = []
    for _ in range(3):
        started = time.process_time()
        with Run(folder).locked() as run:
            decision = run.decide(keys)
            run.adopt(decision)
            run.set_sequence([take for take in decision.takes if take is not None], PLAN)
            run.occupied()
        taken.append(time.process_time() - started)
    return min(taken), decision.kept


@pytest.mark.parametrize(("version", "kept"), [(0, CLIPS), (1, OTHERS)])
def test_checking_a_run(folder: Path, version: int, kept: int) -> None:
    seconds, found = seconds_of_a_check(folder, version)
    print(f"{found} of {CLIPS} clips kept in {seconds:.3f} s")
    assert found == kept and seconds < LIMIT


def test_files_that_were_only_touched(folder: Path) -> None:
    """They are read once, which takes as long as they are large; what is noted of them costs no more than that of others."""
    for path in folder.glob("clip_*"):
        os.utime(path, ns=(1, 1))
    seconds, found = seconds_of_a_check(folder, 0)
    assert found == CLIPS and seconds < LIMIT


def test_writing_one_more_take(folder: Path) -> None:
    """The manifest is written anew after each clip."""
    run = Run(folder)
    taken = []
    for _ in range(3):
        started = time.process_time()
        run.pin(run.manifest.takes[0])
        taken.append(time.process_time() - started)
    print(f"manifest of {len(run.manifest.takes)} takes written in {min(taken):.3f} s")
    assert min(taken) < LIMIT
