"""Memory and time of making controls, by length of the driving video: depth, normalized control, tracks."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil

from longvie_core.control.depth.engine import extract_depth
from longvie_core.control.normalize import write_control
from longvie_core.control.tracks.lucas_kanade import LucasKanade
from longvie_core.control.tracks.write import write_tracks
from longvie_core.media.footage import Footage
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan

WIDTH, HEIGHT, FPS = 160, 96, Fraction(16)
GRID = 8


class Brightness:
    """A per-frame depth engine that costs next to nothing, so that what is measured is the streaming around it."""

    name, kind, window, overlap = "brightness", "disparity", 1, 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return frames.mean(axis=-1, dtype=np.float32) + 1


def film(path: Path, frames: int) -> None:
    """Write a driving video of that length: a textured picture that wanders."""
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    picture = np.kron(texture, np.ones((4, 4, 1), np.uint8))
    with VideoWriter(path, WIDTH, HEIGHT, FPS) as writer:
        for number in range(frames):
            writer.write(np.roll(picture, (number // 2 % HEIGHT, number % WIDTH), axis=(0, 1)))


def measure(video: Path, folder: Path) -> dict[str, float]:
    """Make the controls of a video in this process: peak memory in MiB and seconds a frame."""
    start = time.perf_counter()
    footage = Footage.open(video, FPS, WIDTH, HEIGHT)
    plan = ClipPlan(WIDTH, HEIGHT, 81, FPS).resolved(footage.frames)
    raw_depth = extract_depth(footage, Brightness(), folder / "depth.npy")
    dense = write_control(raw_depth, plan, folder / "dense.mkv")
    write_tracks(footage, dense, plan, LucasKanade(), folder / "tracks", grid=GRID)
    seconds = time.perf_counter() - start
    return {"peak_rss_mib": peak_rss_mib(), "s_per_frame": seconds / footage.frames}


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: list[str]) -> int:
    """Command line; prints the lists as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python dev.py bench controls", description=__doc__)
    parser.add_argument("--frames", default="81,801,4801", help="lengths of the driving video, comma-separated")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.measure.parent)))
        return 0
    lengths = [int(length) for length in options.frames.split(",")]
    results = []
    for length in lengths:
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "drive.mp4"
            film(video, length)
            command = [sys.executable, "-m", "devtools.bench", "controls", "--measure", str(video)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{length} frames: {results[-1]['peak_rss_mib']:.0f} MiB, {results[-1]['s_per_frame']:.4f} s a frame", flush=True)
    table = {key: [round(result[key], 4) for result in results] for key in ("peak_rss_mib", "s_per_frame")}
    print(json.dumps({"frames": lengths, **table}))
    return 0
