"""The use case: a run is rendered, or what is missing of it. Read :func:`render` top to bottom.

Both ways to render call it, ComfyUI's Clip Loop and ``python -m longvie_core.generate``; they bring a :class:`Job` and
:class:`Networks` and add nothing to what happens to a run.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..disk.space import check_space
from ..model.clip import ClipBackend
from .control_latents import LatentStore
from .job import Job
from .keys import ClipKey, NetworkParts, clip_parts
from .loop import Carry, TimedBackend, check_history, generate
from .names import clip_range
from .store import Run


class Texts(Protocol):
    """Encoded prompts of a run."""

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those that have to be encoded."""

    def encode(self, texts: Sequence[str]) -> None:
        """Encode and keep these; all at once, so that text encoder and video model are not loaded in turn."""

    def read(self, text: str) -> Any:
        """An encoded text, as the backend wants it."""


class Networks(ABC):
    """The networks of a host, and what they are known by. Nothing is loaded before a clip has to be rendered."""

    @property
    @abstractmethod
    def parts(self) -> NetworkParts:
        """What a clip depends on beside its script."""

    @abstractmethod
    def former_parts(self, job: Job, clip: int) -> Mapping[str, str]:
        """All parts of a clip's key as LongVie 0.1 wrote them."""

    @abstractmethod
    def texts(self, folder: Path) -> Texts:
        """The encoded prompts that are kept in this folder."""

    @abstractmethod
    def open(self, job: Job, clips: range) -> ClipBackend:
        """The networks, ready to render these clips of a job."""

    @abstractmethod
    def store(self) -> LatentStore | None:
        """Where encoded controls are kept; ``None`` = nowhere."""

    @abstractmethod
    def announce(self, pending: range, carry: Carry) -> None:
        """Called before sampling begins, also where nothing is pending: processes that sample along begin here."""


@dataclass(frozen=True)
class Rendered:
    """What became of a job.

    Args:
        video: the joined video.
        last_frame: the last frame of it, uint8 [H, W, 3].
        clips: how many it is made of.
        wanted: how many the job asks for; more than ``clips`` where it was paused.
        told: what was kept, what was rendered and why; lines that were told while it went on.
        closing: what there is to say in the end.
    """

    video: Path
    last_frame: np.ndarray
    clips: int
    wanted: int
    told: tuple[str, ...]
    closing: tuple[str, ...]

    @property
    def report(self) -> tuple[str, ...]:
        """All of it, a line each."""
        return self.told + self.closing

    @property
    def paused(self) -> bool:
        """Whether clips are left to be rendered."""
        return self.clips < self.wanted


def render(run: Run, job: Job, networks: Networks, tell: Callable[[str], None]) -> Rendered:
    """Render a run, or what is missing of it; each clip is on disk before the next one begins.

    Args:
        run: where it is kept.
        job: what is wanted.
        networks: what renders it.
        tell: takes the lines of the report that are known before the end, as soon as they are.

    Raises:
        ValueError: naming what is wrong, before anything is sampled; or, at any time, that the disk is full.
    """
    plan = job.script.plan
    wanted = clip_range(job.clips, plan.clips)
    check_history(plan, job.loop.history.frames)
    keys = [clip_key(job, clip, networks) for clip in range(wanted.stop)]
    report = _Report(tell)
    with run.locked():
        resume = run.resume(keys, fixed=wanted.start)
        pending = range(resume.kept, min(wanted.stop, resume.kept + (job.pause_after or wanted.stop)))
        # Before the long work: what is kept, and why it goes on where it does.
        report.add(*run.notes, *resume.reasons, f"kept {resume.kept} of {wanted.stop} clips")
        closing_lines = _render_clips(run, job, networks, keys, pending, report.add)
        done = max(pending.stop, resume.kept)
        video = run.assemble(done, job.metadata, job.sound, plan.fps)
        closing_lines.append(f"{run.frames(done)} frames in {video.name}")
        if done < wanted.stop:
            closing_lines.append(f"paused after clip {done} of {wanted.stop}: queue again to go on")
        last_frame = run.last_frame(done - 1, plan)
        return Rendered(video, last_frame, done, wanted.stop, tuple(report.lines), tuple(closing_lines))


def clip_key(job: Job, clip: int, networks: Networks) -> ClipKey:
    """What a clip of this job depends on, in today's words and in those of LongVie 0.1."""
    return ClipKey(clip_parts(job, clip, networks.parts), networks.former_parts(job, clip))


class _Report:
    """Lines that are told as soon as they are known."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        self.lines += lines
        self.tell("\n".join(lines))


def _render_clips(
    run: Run, job: Job, networks: Networks, keys: Sequence[ClipKey], pending: range, report: Callable[[str], None]
) -> list[str]:
    """Render the pending clips of a locked run; what is to be said at the end."""
    begun = time.monotonic()
    script = job.script
    texts = networks.texts(run.folder / "prompts")
    missing = texts.missing(script.prompts.distinct(pending))
    if pending:
        check_space(run.folder, run.estimate(script.plan, pending, len(missing)))
    texts.encode(missing)
    first = not pending or pending.start == 0
    carry = Carry.before_first(script.first_frame) if first else run.carry(pending.start, script.plan, job.loop.anchor)
    networks.announce(pending, carry)
    if not pending:
        return []
    backend, store = TimedBackend(networks.open(job, pending)), networks.store()
    clips = generate(script, pending, carry, backend, job.loop, texts.read, store)
    # Closed whatever happens: its thread must not go on reading frames for a run that has failed.
    with store or nullcontext(), closing(clips):
        started = time.monotonic()
        for result in clips:
            seconds = time.monotonic() - started
            run.save_clip(script.plan, keys[result.clip], result, seconds)
            report(f"clip {result.clip + 1} of {script.plan.clips} rendered in {seconds:.1f} s")
            started = time.monotonic()
    spent = time.monotonic() - begun
    share = f"{backend.seconds / spent:.1%} of {spent:.1f} s was sampler and VAE"
    return [*(store.report if store else []), share]
