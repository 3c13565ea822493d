"""What a finished clip costs beside the model: a run at the paper's size whose model costs nothing, and its last line as JSON.

The critical path lies between the sampling of one clip and of the next. Sampling a real clip takes far longer than writing
one, so the benchmark's model waits for the writer before it hands on a clip. ``critical_s`` is the mean of what is left,
``total_s`` that and the writing.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longvie_core.model.clip import ClipInputs, ModalityRange
from longvie_core.plan import ClipPlan
from longvie_core.run.control_latents import LatentStore
from longvie_core.run.job import Job, Script
from longvie_core.run.keys import NetworkParts, parts_of_0_1
from longvie_core.run.loop import Carry
from longvie_core.run.prompts import PromptSchedule
from longvie_core.run.render import Networks, Texts, render
from longvie_core.run.store import Run

WRITING = threading.Event()
"""Whether a clip is being written, or about to be."""


class NoText:
    """Texts that nobody has to encode."""

    def missing(self, texts: Sequence[str]) -> list[str]:
        return []

    def encode(self, texts: Sequence[str]) -> None:
        pass

    def read(self, text: str) -> str:
        return text


class FreeModel:
    """A model that gives the same clip of moving noise as soon as the last one is written.

    Attributes:
        between: seconds from the sampling of a clip to that of the next.
    """

    def __init__(self, plan: ClipPlan) -> None:
        rng = np.random.default_rng(0)
        y, x = np.mgrid[: plan.height, : plan.width] / plan.height
        waves = np.stack([np.sin(9 * (x + 0.01 * frame) + 7 * y) for frame in range(plan.frames)])
        grain = rng.normal(0, 0.05, (plan.height, plan.width, 3))
        self.frames = np.clip(0.7 * waves[..., None] + grain, -1, 1).astype(np.float32)
        self.shape = (1, 16, plan.latent_frames, *plan.latent_size)
        self.between: list[float] = []
        self._sampled = 0.0

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        return torch.zeros(1, 16, 1 + (len(list(frames)) - 1) // 4, *self.shape[3:])

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return torch.zeros(self.shape)

    encode_image = encode_first_frame

    def sample(self, inputs: ClipInputs) -> Tensor:
        if self._sampled:
            self.between.append(time.perf_counter() - self._sampled)
        while WRITING.is_set():
            time.sleep(0.002)
        self._sampled = time.perf_counter()
        return torch.full(self.shape, float(inputs.clip))

    def decode(self, latents: Tensor) -> np.ndarray:
        return self.frames


class TimedRun(Run):
    """A run that adds up the seconds of its writing."""

    wrote = 0.0

    def new_take(self, *arguments: object, **named: object):
        take = super().new_take(*arguments, **named)
        WRITING.set()
        return take

    def write(self, *arguments: object, **named: object):
        started = time.perf_counter()
        try:
            return super().write(*arguments, **named)
        finally:
            self.wrote += time.perf_counter() - started
            WRITING.clear()


class FreeNetworks(Networks):
    """Networks that cost nothing."""

    def __init__(self, plan: ClipPlan) -> None:
        self.model = FreeModel(plan)

    @property
    def parts(self) -> NetworkParts:
        return NetworkParts({"model": "free"}, "none", (1.0, 0.0), 1.0, ModalityRange(), ModalityRange())

    def former_parts(self, job: Job, clip: int) -> Mapping[str, str]:
        return parts_of_0_1(job, clip)

    def texts(self, folder: Path) -> Texts:
        return NoText()

    def open(self, job: Job, clips: Sequence[int]) -> FreeModel:
        return self.model

    def store(self) -> LatentStore | None:
        return None

    def announce(self, pending: range, carry: Carry) -> None:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python dev.py bench clip-io", description=__doc__)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", default="640x352", metavar="WxH")
    parser.add_argument("--frames", type=int, default=81, help="frames a clip (81)")
    options = parser.parse_args(arguments)
    width, height = map(int, options.size.split("x"))
    plan = ClipPlan(width, height, options.frames, Fraction(16), source_frames=1 + (options.frames - 1) * options.clips)
    script = Script(plan, None, None, np.zeros((height, width, 3), np.uint8), PromptSchedule())
    with tempfile.TemporaryDirectory() as folder:
        run, networks = TimedRun(Path(folder) / "clip-io"), FreeNetworks(plan)
        rendered = render(run, Job(script), networks, print)
        begun = time.perf_counter()
        render(run, Job(script), networks, lambda _: None)
        again = time.perf_counter() - begun
    critical = sum(networks.model.between) / len(networks.model.between)
    total = critical + run.wrote / options.clips
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rendered.clips} clips of {options.frames} frames {width}x{height}; again, with all kept: {again:.2f} s")
    print(json.dumps({"critical_s": round(critical, 3), "total_s": round(total, 3), "peak_rss_mib": round(peak, 1)}))
    return 0
