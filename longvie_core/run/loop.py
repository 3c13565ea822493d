"""Clip-wise autoregression (P2 section 3.1 and the reference's outer loop): one clip after another, each from the last.

Readable next to the paper: :func:`generate` is the loop, :func:`clip_inputs` what a clip is conditioned on. What encodes,
samples and decodes is a :class:`longvie_core.model.clip.ClipBackend`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..model.clip import TAIL_FRAMES, ClipBackend, ClipInputs
from ..model.conditioning import encoded_history_frames, frames_to_uint8
from ..plan import ClipPlan
from .broken_clips import check_pictures, check_pixels, checked_latents
from .control_latents import ControlLatents, LatentStore
from .job import LoopSettings, Script


@dataclass(frozen=True)
class Carry:
    """What the next clip needs of the video so far.

    Args:
        frames: uint8 [n, H, W, 3], the end of the previous clip, or the lone given first frame (n = 1).
        first: whether the frames are the given first frame.
        anchor_statistics: of the first clip, which later ones are held to (:mod:`longvie_core.run.colour_anchor`); ``None``
            where nothing is anchored.
    """

    frames: np.ndarray
    first: bool
    anchor_statistics: np.ndarray | None = None

    def start_frame(self, plan: ClipPlan) -> np.ndarray:
        """The picture that the next clip starts from: the first of the shared frames."""
        return self.frames[0] if self.first else self.frames[-plan.overlap]

    def history(self, plan: ClipPlan, frames: int) -> np.ndarray | None:
        """The last ``frames`` frames up to the start frame, uint8 [n, H, W, 3]; ``None`` for the first clip."""
        if self.first or frames == 0:
            return None
        end = len(self.frames) - plan.overlap + 1
        if end < frames:
            raise ValueError(f"the previous clip left {end} frames up to the seam, but a history of {frames} was asked for")
        return self.frames[end - frames : end]

    @classmethod
    def before_first(cls, first_frame: np.ndarray) -> Carry:
        """Carry of a video of which there is nothing but its first frame, uint8 [H, W, 3]."""
        return cls(first_frame[None], first=True)

    @classmethod
    def after(cls, plan: ClipPlan, frames: np.ndarray, anchor_statistics: np.ndarray | None = None) -> Carry:
        """Carry of a finished clip of uint8 frames [T, H, W, 3]."""
        return cls(frames[-(TAIL_FRAMES + plan.overlap - 1) :].copy(), False, anchor_statistics)


@dataclass(frozen=True)
class ClipResult:
    """A finished clip: its latents (backend space), all its frames, uint8 [T, H, W, 3], and what the next clip needs."""

    clip: int
    latents: Tensor
    frames: np.ndarray
    carry: Carry


def generate(
    script: Script,
    clips: Sequence[int],
    carry: Carry,
    backend: ClipBackend,
    settings: LoopSettings | None = None,
    read_text: Callable[[str], Any] = str,
    store: LatentStore | None = None,
) -> Generator[ClipResult, None, None]:
    """Generate clips one after another.

    Args:
        script: what the video shows.
        clips: consecutive clip numbers to generate.
        carry: the video before the first of them (:meth:`Carry.before_first` for clip 0).
        backend: the model.
        settings: noise, history and anchor; the reference's by default.
        read_text: gives a prompt as the backend wants it; by default the text itself.
        store: keeps the encoded controls from run to run.

    Yields:
        Each clip as soon as it is decoded; memory does not grow with their number: besides the clip there are the control
        pictures of the next one, which are read on a thread while this one is sampled.

    Raises:
        ValueError: the clips are too short for the history, or the colours to anchor to are not known; or, before a clip is
            yielded, its numbers broke (:mod:`longvie_core.run.broken_clips`).
    """
    settings = settings or LoopSettings()
    plan, anchor = script.plan, settings.anchor
    check_history(plan, settings.history.frames)
    if anchor.active and not carry.first and carry.anchor_statistics is None:
        raise ValueError("the first clip's colours are not known, so nothing can be anchored to them: start at the first clip")
    with ControlLatents(plan, script.dense, script.sparse, backend, store) as controls:
        controls.pin(clips)
        for clip, following in itertools.zip_longest(clips, clips[1:]):
            dense, sparse = controls.of(clip)
            inputs = clip_inputs(script, clip, carry, dense, sparse, settings, backend, read_text)
            if following is not None:
                controls.read_ahead(following)
            # Before the truncation to 8 bit, so that history and start frame of the next clip are anchored as well.
            sampled = checked_latents(backend.sample(inputs), clip, "sampling", causes="sampling")
            latents = anchor.latents(sampled, carry.anchor_statistics)
            pixels = backend.decode(latents)
            check_pixels(pixels, clip)
            frames = frames_to_uint8(anchor.pixels(pixels, carry.anchor_statistics))
            check_pictures(frames, inputs.start_frame, clip)
            statistics = anchor.statistics(latents, frames) if carry.first else carry.anchor_statistics
            carry = Carry.after(plan, frames, statistics)
            yield ClipResult(clip, latents, frames, carry)


def check_history(plan: ClipPlan, frames: int) -> None:
    """Refuse a history that is longer than what a clip leaves.

    Raises:
        ValueError: naming both numbers and the mend.
    """
    available = plan.frames - plan.overlap + 1
    if frames > available:
        raise ValueError(
            f"a history of {frames} frames is asked for, but clips of {plan.frames} frames with overlap {plan.overlap} "
            f"leave {available} up to the seam: shorten the history, or make the clips longer"
        )


def clip_inputs(
    script: Script,
    clip: int,
    carry: Carry,
    dense: Tensor | None,
    sparse: Tensor | None,
    settings: LoopSettings,
    backend: ClipBackend,
    read_text: Callable[[str], Any] = str,
) -> ClipInputs:
    """Condition a clip on the video so far, on its control latents [1, 36, f, h, w] and on its prompt (P2 section 3.2)."""
    plan, prompt = script.plan, script.prompts.of(clip)
    start = carry.start_frame(plan)
    past = carry.history(plan, settings.history.frames)
    shape = (1, 16, plan.latent_frames, *plan.latent_size)
    positive, negative = script.prompts.texts(clip)
    return ClipInputs(
        clip=clip,
        start_frame=start,
        image=checked_latents(backend.encode_image(start, plan.frames), clip, "encoding its start frame"),
        dense=dense,
        sparse=sparse,
        history=None if past is None else _history_latents(past, clip, backend),
        noise=settings.noise.for_clip(clip, shape, prompt.seed_offset),
        text=(read_text(positive), read_text(negative)),
        # The first clip's is the noise seed, as the host's KSampler has it.
        seed=(settings.noise.seed + prompt.seed_offset + clip) % 2**64,
        strengths=prompt.strengths,
    )


def _history_latents(past: np.ndarray, clip: int, backend: ClipBackend) -> Tensor:
    return checked_latents(backend.encode(past[: encoded_history_frames(len(past))]), clip, "encoding its history")


Value = TypeVar("Value")


class TimedBackend:
    """A backend that adds up the seconds spent in the model: what the rest of the wall time was spent on is overhead."""

    def __init__(self, backend: ClipBackend) -> None:
        self.backend = backend
        self.seconds = 0.0

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        return self._timed(self.backend.encode, frames)

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return self._timed(self.backend.encode_first_frame, frame, frames)

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        return self._timed(self.backend.encode_image, frame, frames)

    def sample(self, inputs: ClipInputs) -> Tensor:
        return self._timed(self.backend.sample, inputs)

    def decode(self, latents: Tensor) -> np.ndarray:
        return self._timed(self.backend.decode, latents)

    def _timed(self, call: Callable[..., Value], *arguments: object) -> Value:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - started
