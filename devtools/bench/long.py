"""Memory, time and disk of a run by its number of clips, and what a run costs beside the model: real host, tiny random weights.

The runs of ``--clips`` have small pictures and few steps, 81 frames of 64x32 in 2 steps: what has to stay flat is what grows
with the clips, not what one clip takes. Each has a host and a control cache of its own, so that its peak is its own and each
control is encoded. The overhead is that of 12 clips of 81 frames at 160x96 in 8 steps; all of the prompt's time counts, that of
loading the models too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from devtools.demo import ROOT, WORKFLOW
from devtools.host import Host
from devtools.tiny import load_random, write_tiny_weights
from longvie_core.control.clips_folder import write_clips_folder

FRAMES, FPS = 81, Fraction(16)
MEMORY_RUN = (64, 32, 2)
"""Width, height and steps."""

OVERHEAD_CLIPS = 12
OVERHEAD_RUN = (160, 96, 8)
WARM_UP = 2
"""Clips at the start of a run whose time does not count."""

SAMPLING_INTERVAL = 0.01
"""Seconds between two looks at the host's memory."""


@dataclass(frozen=True)
class Measured:
    """One run: its peak memory, the seconds of each clip, what it left on disk, and the seconds of prompt and model."""

    peak_rss_mib: float
    clip_seconds: list[float]
    disk_mib: float
    prompt_seconds: float
    model_seconds: float

    @property
    def s_per_clip(self) -> float:
        """Median without the first two: one loads the models, and each meets shapes for the first time."""
        return statistics.median(self.clip_seconds[WARM_UP:])


class PeakMemory:
    """Largest resident memory of the host while the ``with`` block runs, looked at from a thread."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLING_INTERVAL):
            self.mib = max(self.mib, self.host.rss_mib())


def film(folder: Path, width: int, height: int, clips: int) -> None:
    """Control clips that cost little to make: textures that wander."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = np.kron(texture, np.ones((8, 8, 1), np.uint8))

    def moved(clip: int, step: int) -> Iterator[np.ndarray]:
        first = clip * (FRAMES - 1)
        return (np.roll(picture, step * number, axis=1) for number in range(first, first + FRAMES))

    dense, sparse = ((moved(clip, step) for clip in range(clips)) for step in (1, 2))
    write_clips_folder(folder, [""] * clips, dense, sparse, picture, fps=FPS)


def prompt_for(name: str, width: int, height: int, steps: int, clips: int) -> dict:
    """The tiny workflow on the filmed clips, its report shown, without the nodes that preview the controls."""
    values = {
        "LongVieLoadClips": {"folder": f"{width}x{height}", "width": width, "height": height, "max_clips": clips},
        "LongVieSigmas": {"steps": steps},
        "LongVieClipLoop": {"run_name": name},
    }
    workflow = load_random(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    previews = ("LongVieControlPreview", "PreviewImage")
    prompt = {key: node for key, node in workflow.items() if node["class_type"] not in previews}
    for node in prompt.values():
        node["inputs"].update(values.get(node["class_type"], {}))
    (loop,) = [key for key, node in prompt.items() if node["class_type"] == "LongVieClipLoop"]
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": [loop, 2]}}
    return prompt


def measure(base: Path, size: tuple[int, int, int], clips: int) -> Measured:
    """Render a run of so many clips in a host of its own, with nothing in the control cache."""
    width, height, steps = size
    name = f"{width}x{height}_{clips}"
    shutil.rmtree(base / "user" / "longvie", ignore_errors=True)
    with Host(comfyui=Path(os.environ["COMFYUI_PATH"]), base=base, pack=ROOT) as host, PeakMemory(host) as peak:
        started = time.perf_counter()
        result = host.run(prompt_for(name, width, height, steps, clips), timeout=3600)
        seconds = time.perf_counter() - started
    if result.status != "success":
        raise SystemExit(f"{clips} clips of {width}x{height} failed: {result.error or result.status}")
    report = result.outputs["report"]["text"][0]
    return Measured(
        peak.mib,
        [float(clip) for clip in re.findall(r"rendered in ([\d.]+) s", report)],
        sum(file.stat().st_size for file in (base / "output" / "longvie" / name).rglob("*") if file.is_file()) / 2**20,
        seconds,
        model_seconds(report),
    )


def model_seconds(report: str) -> float:
    """Seconds of sampler and VAE by the loop's own report."""
    found = re.search(r"([\d.]+)% of ([\d.]+) s was sampler and VAE", report)
    if found is None:
        raise SystemExit(f"the loop's report does not say what the model took:\n{report}")
    return float(found[1]) / 100 * float(found[2])


def main(arguments: list[str]) -> int:
    """Command line; prints the lists as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python dev.py bench long", description=__doc__)
    parser.add_argument("--clips", default="3,12,60", help="numbers of clips, comma-separated")
    options = parser.parse_args(arguments)
    counts = [int(count) for count in options.clips.split(",")]
    if min(counts) <= WARM_UP:
        parser.error(f"give at least {WARM_UP + 1} clips: the first {WARM_UP} are for warming up")
    with tempfile.TemporaryDirectory(prefix="longvie_bench_") as folder:
        base = Path(folder)
        write_tiny_weights(base / "models")
        for (width, height, _), clips in ((MEMORY_RUN, max(counts)), (OVERHEAD_RUN, OVERHEAD_CLIPS)):
            film(base / "input" / f"{width}x{height}", width, height, clips)
        measured = []
        for count in counts:
            one = measure(base, MEMORY_RUN, count)
            measured.append(one)
            line = f"peak {one.peak_rss_mib:.0f} MiB, {one.s_per_clip:.2f} s and {one.disk_mib / count:.2f} MiB a clip"
            print(f"{count} clips, {1 + (FRAMES - 1) * count} frames: {line}", flush=True)
        whole = measure(base, OVERHEAD_RUN, OVERHEAD_CLIPS)
    overhead = 1 - whole.model_seconds / whole.prompt_seconds
    print(f"{OVERHEAD_CLIPS} clips of 160x96: {overhead:.1%} of {whole.prompt_seconds:.0f} s outside sampler and VAE")
    result = {
        "clips": counts,
        "peak_rss_mib": [round(one.peak_rss_mib, 1) for one in measured],
        "s_per_clip": [round(one.s_per_clip, 3) for one in measured],
        "disk_mib_per_clip": [round(one.disk_mib / count, 3) for one, count in zip(measured, counts, strict=True)],
        "overhead_fraction": round(overhead, 4),
    }
    print(json.dumps(result))
    return 0
