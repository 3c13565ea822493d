"""The use case: a run is rendered, or what is missing of it. Read :func:`render` top to bottom.

Both ways to render call it, ComfyUI's Clip Loop and ``python -m longvie_core.generate``; they bring a :class:`Job` and
:class:`Networks` and add nothing to what happens to a run.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..disk.space import check_space
from ..interrupt import result_of
from ..model.clip import ClipBackend
from ..model.conditioning import frames_to_uint8
from .control_latents import LatentStore
from .decide import Decision, expected_seconds
from .job import Job
from .keys import ClipKey, NetworkParts, clip_parts
from .loop import Carry, ClipResult, TimedBackend, check_history, generate
from .manifest import UNKNOWN, Take
from .names import clip_range
from .store import Run
from .writer import ClipWriter


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
    def open(self, job: Job, clips: Sequence[int]) -> ClipBackend:
        """The networks, ready to render these clips of a job."""

    @abstractmethod
    def store(self) -> LatentStore | None:
        """Where encoded controls are kept; ``None`` = nowhere."""

    @abstractmethod
    def announce(self, pending: range, carry: Carry) -> None:
        """Called before neighbouring clips are sampled, and with none at the end: for processes that sample along."""


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
        decision = run.decide(keys, fixed=wanted.start)
        run.adopt(decision)
        # Before the long work: what is kept, why the rest is rendered, and how long that will take.
        kept = f"kept {decision.kept} of {wanted.stop} clips"
        report.add(*run.notes, *decision.reasons, kept, *_expected(run, job, decision))
        takes, closing_lines = _complete(run, job, networks, keys, decision, report.add)
        run.set_sequence(takes, plan)
        video = run.assemble(takes, plan.fps, job.metadata, job.sound)
        closing_lines.append(f"{sum(take.frames for take in takes)} frames in {video.name}")
        if len(takes) < wanted.stop:
            closing_lines.append(f"paused after clip {len(takes)} of {wanted.stop}: queue again to go on")
        if occupied := run.occupied():
            closing_lines.append(occupied)
        last_frame = run.last_frame(takes[-1], plan)
        return Rendered(video, last_frame, len(takes), wanted.stop, tuple(report.lines), tuple(closing_lines))


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


def _expected(run: Run, job: Job, decision: Decision) -> list[str]:
    """How long rendering will take, by the seconds of earlier takes."""
    count = len(decision.pending)
    count = min(count, job.pause_after) if job.pause_after else count
    seconds = expected_seconds(run.manifest, count)
    if seconds is None:
        return []
    return [f"about {in_time(seconds)} for {count} {'clip' if count == 1 else 'clips'}, by the seconds of earlier ones"]


def in_time(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _complete(
    run: Run, job: Job, networks: Networks, keys: Sequence[ClipKey], decision: Decision, tell: Callable[[str], None]
) -> tuple[list[Take], list[str]]:
    """Render what is missing of a locked run, clip by clip, up to the end or to where it is to pause.

    Returns:
        The takes from the first clip on, and what is to be said at the end.
    """
    fixed = clip_range(job.clips, job.script.plan.clips).start
    takes: list[Take] = []
    rendered, stands = 0, True
    with _Session(run, job, networks, decision) as session:
        while len(takes) < len(keys):
            clip = len(takes)
            take = decision.takes[clip]
            if take is not None and (clip < fixed or (stands and _follows(take, takes))):
                takes.append(session.with_video(take, takes))
                continue
            if take is not None:
                tell(f"clip {clip + 1} is rendered again: the clip before it is not bit by bit what it was")
            if job.pause_after and rendered == job.pause_after:
                break
            stop = next((later for later in range(clip + 1, len(keys)) if decision.takes[later] is not None), len(keys))
            if job.pause_after:
                stop = min(stop, clip + job.pause_after - rendered)
            for made in session.render(range(clip, stop), takes, keys, tell):
                takes.append(made)
                rendered += 1
            stands = stands and session.came_out_as_before
        return session.written(takes), session.end()


def _follows(take: Take, takes: Sequence[Take]) -> bool:
    """Whether a take starts on the tail that the take before it left, as far as that is known."""
    return not takes or UNKNOWN in (take.start, takes[-1].tail) or take.start == takes[-1].tail


class _Session:
    """The networks of a host at work for one job: opened when the first clip needs them, and asked to say what they did."""

    def __init__(self, run: Run, job: Job, networks: Networks, decision: Decision) -> None:
        self.run, self.job, self.networks = run, job, networks
        self.pending = decision.pending[: job.pause_after or None]
        self.came_out_as_before = True
        self._kept = [take for take in decision.takes if take is not None]
        self._begun = time.monotonic()
        self._backend: TimedBackend | None = None
        self._store: LatentStore | None = None
        self._texts = networks.texts(run.folder / "prompts")
        self._writer = ClipWriter()

    def __enter__(self) -> _Session:
        missing = self._texts.missing(self.job.script.prompts.distinct(self.pending))
        if self.pending:
            plan = self.job.script.plan
            check_space(self.run.folder, self.run.estimate(plan, len(self.pending), self._kept, len(missing)))
        # All texts before the first clip, so that text encoder and video model are not loaded in turn.
        self._texts.encode(missing)
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self._writer.__exit__(*exception)
        finally:
            if self._store is not None:
                self._store.__exit__(*exception)

    def open(self) -> TimedBackend:
        """The networks, loaded now at the latest."""
        if self._backend is None:
            self._backend = TimedBackend(self.networks.open(self.job, self.pending))
            self._store = self.networks.store()
            if self._store is not None:
                self._store.__enter__()
        return self._backend

    def render(
        self, clips: range, before: Sequence[Take], keys: Sequence[ClipKey], tell: Callable[[str], None]
    ) -> Iterator[Take]:
        """Render neighbouring clips after the takes before them; all are on disk at the end, each but the last before that."""
        job, run, plan = self.job, self.run, self.job.script.plan
        takes = list(before)
        anchor = job.loop.anchor
        carry = run.carry(takes[-1], plan, takes[0], anchor) if takes else Carry.before_first(job.script.first_frame)
        self._texts.encode(self._texts.missing(job.script.prompts.distinct(clips)))
        self.networks.announce(clips, carry)
        results = generate(job.script, clips, carry, self.open(), job.loop, self._texts.read, self._store)
        # Closed whatever happens: its thread must not go on reading frames for a run that has failed.
        with closing(results):
            started = time.monotonic()
            for result in results:
                seconds = time.monotonic() - started
                take = self._save(result, keys[result.clip], takes, seconds)
                tell(f"clip {result.clip + 1} of {plan.clips} rendered in {seconds:.1f} s")
                takes.append(take)
                yield take
                started = time.monotonic()
        self._writer.drain()

    def _save(self, result: ClipResult, key: ClipKey, before: Sequence[Take], seconds: float) -> Take:
        """Have a clip written; the take is known at once, its files are there when the writer has drained."""
        run, plan = self.run, self.job.script.plan
        prompt = self.job.script.prompts.of(result.clip)
        seed = self.job.loop.noise.seed + prompt.seed_offset
        take = run.new_take(plan, key, result, seconds, before, seed, prompt.text)
        lost = run.manifest.by_id.get(take.id)
        written = self._writer.write(partial(run.write, take, plan, result, list(before)))
        if lost is not None and lost.tail == UNKNOWN:
            # Version 1 did not write down tails: then the whole file says whether it came out as before.
            self.came_out_as_before = result_of(written).latents.sha256 == lost.latents.sha256
        else:
            self.came_out_as_before = lost is None or take.tail == lost.tail
        return take

    def written(self, takes: Sequence[Take]) -> list[Take]:
        """Takes with their files, when everything is on disk."""
        self._writer.drain()
        return [self.run.manifest.by_id[take.id] for take in takes]

    def with_video(self, take: Take, before: Sequence[Take]) -> Take:
        """A kept take; if its video is lost, it is decoded again from its latents."""
        if not self.run.damage(take.video):
            return take
        plan, anchor = self.job.script.plan, self.job.loop.anchor
        statistics = self.run.carry(before[-1], plan, before[0], anchor).anchor_statistics if before else None
        pixels = anchor.pixels(self.open().decode(self.run.latents(take)), statistics)
        return self.run.restore_video(take, plan, frames_to_uint8(pixels))

    def end(self) -> list[str]:
        """What there is to say when all is done."""
        self.networks.announce(range(0), Carry.before_first(self.job.script.first_frame))
        if self._backend is None:
            return []
        spent = time.monotonic() - self._begun
        share = f"{self._backend.seconds / spent:.1%} of {spent:.1f} s was sampler and VAE"
        return [*(self._store.report if self._store else []), share]
