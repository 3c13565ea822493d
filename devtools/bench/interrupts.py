"""Seconds from an interrupt until the host calls the prompt interrupted, in each long stage: real host, tiny random weights.

Every stage is interrupted at several moments, counted from its node's start, its first progress or its first file, with nothing
remembered of earlier tries. The pictures are as large as LongVie's, 640x352, and clips have 81 frames; but those that networks
see are smaller: one layer of a network is not interrupted, and at that size a single one takes a CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from devtools.demo import ROOT, WORKFLOW
from devtools.host import Host
from devtools.tiny import load_random, write_tiny_weights
from longvie_core.control.clips_folder import write_clips_folder
from longvie_core.control.control import Control
from longvie_core.control.raw_depth import RawDepthWriter
from longvie_core.media.write import VideoWriter
from longvie_core.model.clip import ClipInputs, ModalityRange
from longvie_core.plan import ClipPlan
from longvie_core.run.job import Job, Script
from longvie_core.run.keys import NetworkParts
from longvie_core.run.loop import Carry
from longvie_core.run.render import Networks, render
from longvie_core.run.store import Run

WIDTH, HEIGHT, FRAMES, FPS = 640, 352, 81, Fraction(16)
VIDEO_FRAMES = 241
NETWORK_SIZE = (96, 64)
HASHED_BYTES = 4_000_000_000
"""Size of the driving video whose bytes are hashed: a sparse file, most of it padding that no player reads."""
JOINED_CLIPS, JOINED_SIZE = 300, 32
LIMIT = 0.5
"""Seconds that an interrupt may take."""
POLL = 0.002
"""Seconds between two looks for a file."""

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Long work and how to catch it at it.

    Args:
        name: for the table.
        prompt: the graph.
        node: class of the node that does the work.
        moments: seconds after the stage's start at which it is interrupted, one try each.
        starts: what starts it: ``""`` = the node itself, ``"progress"`` = its first progress, else a pattern of a file below
            the host's folder.
    """

    name: str
    prompt: Prompt
    node: str
    moments: tuple[float, ...]
    starts: str = ""


# ---- material


def texture(width: int, height: int) -> np.ndarray:
    """A picture of random blocks, uint8 [height, width, 3]."""
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def film(path: Path, frames: int) -> None:
    """A driving video: a textured picture that wanders."""
    picture = texture(WIDTH, HEIGHT)
    with VideoWriter(path, WIDTH, HEIGHT, FPS) as writer:
        for number in range(frames):
            writer.write(np.roll(picture, (number // 2, number), axis=(0, 1)))


def pad(video: Path, path: Path, size: int) -> None:
    """The same mp4 with a box of zeros at its end, sparse: as many bytes to hash as are asked for."""
    shutil.copy(video, path)
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        box = size - file.tell()
        file.write(box.to_bytes(4, "big") + b"free")
        file.truncate(size)


def write_material(inputs: Path) -> None:
    """Everything that the stages read."""
    inputs.mkdir(parents=True)
    film(inputs / "drive.mp4", VIDEO_FRAMES)
    pad(inputs / "drive.mp4", inputs / "big.mp4", HASHED_BYTES)
    slope = np.linspace(1, 2, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    with RawDepthWriter(inputs / "depth.npy", "disparity", FPS) as writer:
        for number in range(VIDEO_FRAMES):
            writer.write(np.roll(slope, number, axis=1))
    picture = texture(*NETWORK_SIZE)
    moved = [np.roll(picture, number, axis=1) for number in range(FRAMES)]
    write_clips_folder(inputs / "clips", ["", ""], [moved] * 2, [moved] * 2, picture, fps=FPS)


class NoModel:
    """A :class:`longvie_core.model.clip.ClipBackend` that costs nothing."""

    def __init__(self, plan: ClipPlan) -> None:
        self.latents = torch.zeros(1, 16, plan.latent_frames, *plan.latent_size)
        self.pixels = np.random.default_rng(0).uniform(-1, 1, (plan.frames, plan.height, plan.width, 3)).astype(np.float32)

    def encode(self, frames: object) -> Tensor:
        return self.latents

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return self.latents

    encode_image = encode_first_frame

    def sample(self, inputs: ClipInputs) -> Tensor:
        return self.latents

    def decode(self, latents: Tensor) -> np.ndarray:
        return self.pixels


class NoTexts:
    """No text at all."""

    def missing(self, texts: object) -> list[str]:
        return []

    def encode(self, texts: object) -> None:
        pass

    def read(self, text: str) -> str:
        return text


class NoNetworks(Networks):
    """Networks of :class:`NoModel`."""

    parts = NetworkParts({"model": "none"}, "none", (1.0, 0.0), 1.0, ModalityRange(), ModalityRange())

    def former_parts(self, job: Job, clip: int) -> Mapping[str, str]:
        return {}

    def texts(self, folder: Path) -> NoTexts:
        return NoTexts()

    def open(self, job: Job, clips: range) -> NoModel:
        return NoModel(job.script.plan)

    def store(self) -> None:
        return None

    def announce(self, pending: range, carry: Carry) -> None:
        pass


def write_run(folder: Path) -> None:
    """A finished run of many small clips, without a model."""
    plan = ClipPlan(JOINED_SIZE, JOINED_SIZE, FRAMES, FPS, source_frames=1 + (FRAMES - 1) * JOINED_CLIPS)
    picture = np.zeros((JOINED_SIZE, JOINED_SIZE, 3), np.uint8)
    control = folder.parent / "control.mkv"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(control, JOINED_SIZE, JOINED_SIZE, FPS, codec="lossless") as writer:
        for _ in range(plan.source_frames):
            writer.write(picture)
    render(Run(folder), Job(Script(plan, Control.from_video(control, "dense"), None, picture)), NoNetworks(), lambda _: None)


# ---- stages


def shown(prompt: Prompt, link: list) -> Prompt:
    """The graph with an output that asks for this link."""
    return {**prompt, "out": {"class_type": "PreviewAny", "inputs": {"source": link}}}


def controls(video: str, depth: str) -> Prompt:
    """Plan, driving video, depth, dense and sparse control at LongVie's size."""
    plan = {"width": WIDTH, "height": HEIGHT, "frames_per_clip": FRAMES, "fps": 16.0, "overlap": 1, "tail": "drop"}
    engine = {"engine": "depth file", "engine.file": depth, "engine.kind": "disparity"} if depth else {"engine": PARALLAX}
    footage = {} if depth else {"video": ["video", 0]}
    tracker = {"engine": "Lucas-Kanade", "grid": 50, "style": "reference", "fit": "stretch"}
    return {
        "plan": {"class_type": "LongVieClipPlan", "inputs": {**plan, "source_frames": 0}},
        "video": {"class_type": "LoadVideo", "inputs": {"file": video}},
        "depth": {"class_type": "LongVieDepthControl", "inputs": {"plan": ["plan", 0], "fit": "stretch", **engine, **footage}},
        "dense": {
            "class_type": "LongVieGlobalNormalize",
            "inputs": {"signal": ["depth", 0], "plan": ["plan", 0], "low_percentile": 5.0, "high_percentile": 95.0},
        },
        "sparse": {
            "class_type": "LongVieTrackControl",
            "inputs": {"plan": ["plan", 0], "dense": ["dense", 0], "video": ["video", 0], **tracker},
        },
    }


PARALLAX = "parallax (no weights)"


def loop(run_name: str) -> Prompt:
    """The tiny workflow with random weights, without previews."""
    workflow = load_random(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    values = {
        "LongVieLoadClips": dict(zip(("folder", "width", "height"), ("clips", *NETWORK_SIZE), strict=True)),
        "LongVieSigmas": {"steps": 50},
        "LongVieClipLoop": {"run_name": run_name},
    }
    hidden = ("LongVieControlPreview", "PreviewImage")
    prompt = {key: node for key, node in workflow.items() if node["class_type"] not in hidden}
    for node in prompt.values():
        node["inputs"].update(values.get(node["class_type"], {}))
    return prompt


def stages() -> list[Stage]:
    """The long stages in the order of the work."""
    ready, made = controls("drive.mp4", "depth.npy"), controls("drive.mp4", "")
    images = {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "drive.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}},
        "control": {
            "class_type": "LongVieControlFromVideo",
            "inputs": {"images": ["parts", 0], "modality": "dense", "polarity": "near = black"},
        },
    }
    assemble = {"out": {"class_type": "LongVieAssemble", "inputs": {"run_name": "joined"}}}
    hashed = controls("big.mp4", "")
    return [
        Stage("hashing a driving video", shown(hashed, ["depth", 1]), "LongVieDepthControl", (0.5, 2.0)),
        Stage("depth", shown(made, ["depth", 1]), "LongVieDepthControl", (0.5, 2.0, 5.0)),
        Stage("normalising", shown(ready, ["dense", 0]), "LongVieGlobalNormalize", (0.3, 1.0, 3.0)),
        Stage("tracks", shown(ready, ["sparse", 0]), "LongVieTrackControl", (1.0, 4.0, 8.0)),
        Stage("drawing tracks", shown(ready, ["sparse", 0]), "LongVieTrackControl", (0.0, 0.3), "user/**/track_000.mkv.*.part"),
        Stage("writing pictures", shown(images, ["control", 0]), "LongVieControlFromVideo", (0.1, 0.5, 2.0)),
        Stage("encoding controls", loop("encoding"), "LongVieClipLoop", (0.2, 0.5, 1.0)),
        Stage("sampling", loop("sampling"), "LongVieClipLoop", (0.0, 0.5, 2.0), "progress"),
        Stage("joining", assemble, "LongVieAssemble", (0.1, 0.3)),
    ]


# ---- measuring


class Interrupter:
    """Interrupts a prompt at a moment of a stage, and takes the time until the host says so."""

    def __init__(self, host: Host, stage: Stage, moment: float) -> None:
        self.host, self.stage, self.moment = host, stage, moment
        self.node = next(key for key, node in stage.prompt.items() if node["class_type"] == stage.node)
        self.begun = self.asked = self.ended = 0.0
        self._over = threading.Event()

    def on_event(self, kind: str, data: Any) -> None:
        """For :meth:`devtools.host.Host.run`."""
        now = time.perf_counter()
        if kind in ("execution_interrupted", "execution_error", "execution_success"):
            self.ended = now
            self._over.set()
        starts = "progress" if self.stage.starts == "progress" else "executing"
        if kind == starts and isinstance(data, Mapping) and data.get("node") == self.node and not self.begun:
            self.begun = now
            threading.Thread(target=self._interrupt, args=[data["prompt_id"]], daemon=True).start()

    def _interrupt(self, prompt_id: str) -> None:
        if self.stage.starts not in ("", "progress"):
            while not any(self.host.base.glob(self.stage.starts)):
                if self._over.wait(POLL):
                    return
        if not self._over.wait(self.moment):
            self.asked = time.perf_counter()
            self.host.interrupt(prompt_id)


def latency(host: Host, stage: Stage, moment: float) -> float:
    """Seconds from the interrupt to the end of the prompt.

    Raises:
        SystemExit: the prompt ended in another way, or something half-written is left.
    """
    interrupter = Interrupter(host, stage, moment)
    result = host.run(stage.prompt, interrupter.on_event, timeout=300)
    if result.status != "interrupted" or not interrupter.asked:
        what = result.error.exception_message if result.error else "it ended before the interrupt"
        raise SystemExit(f"{stage.name}, {moment} s: {result.status}, {what}")
    left = [path for folder in ("user", "output") for path in (host.base / folder).rglob("*.part")]
    if left:
        raise SystemExit(f"{stage.name}, {moment} s: half-written files are left: {left}")
    return interrupter.ended - interrupter.asked


def forget(host: Host) -> None:
    """Take away what earlier tries may have finished."""
    shutil.rmtree(host.base / "user" / "longvie" / "controls", ignore_errors=True)
    (host.base / "user" / "longvie" / "controls").mkdir(parents=True, exist_ok=True)
    for run_name in ("encoding", "sampling"):
        shutil.rmtree(host.base / "output" / "longvie" / run_name, ignore_errors=True)
    for video in (host.base / "output" / "longvie" / "joined").glob("*video*.mp4"):
        video.unlink()


def measure(base: Path, wanted: Callable[[Stage], bool]) -> dict[str, list[float]]:
    """Latencies of the wanted stages, by name."""
    write_tiny_weights(base / "models")
    write_material(base / "input")
    write_run(base / "output" / "longvie" / "joined")
    found: dict[str, list[float]] = {}
    with Host(comfyui=Path(os.environ["COMFYUI_PATH"]), base=base, pack=ROOT) as host:
        for stage in filter(wanted, stages()):
            found[stage.name] = []
            for moment in stage.moments:
                forget(host)
                found[stage.name].append(latency(host, stage, moment))
            times = "  ".join(f"{seconds:.3f}" for seconds in found[stage.name])
            print(f"{stage.name:<24} {max(found[stage.name]):.3f} s at most  ({times})", flush=True)
    return found


def main(arguments: list[str]) -> int:
    """Command line; prints the largest of each stage as JSON in the last line. 1 where one is above the limit."""
    parser = argparse.ArgumentParser(prog="python dev.py bench interrupts", description=__doc__)
    parser.add_argument("--only", default="", help="stages whose names hold this")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="longvie_bench_") as folder:
        found = measure(Path(folder), lambda stage: options.only in stage.name)
    worst = {name: round(max(seconds), 3) for name, seconds in found.items()}
    print(json.dumps({**worst, "limit_s": LIMIT}))
    return int(max(worst.values()) > LIMIT)
