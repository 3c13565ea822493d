"""Clip-wise autoregression (P2 section 3.1 and the reference's outer loop): one clip after another, each from the last.

Readable next to the paper: :func:`generate` is the loop, :func:`clip_inputs` what a clip is conditioned on. What encodes,
samples and decodes is a :class:`ClipBackend`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from ..control.control import ControlWindow
from ..model.clip import TAIL_FRAMES, ClipBackend, ClipInputs, ControlEncoder, HistorySettings
from ..model.conditioning import control_condition, encoded_history_frames, frames_to_uint8
from ..plan import ClipPlan
from .colour_anchor import AnchorSettings
from .control_latents import ControlLatents, LatentStore, encode_control

NoiseSource = Callable[[int, tuple[int, ...]], Tensor]
"""``(clip, shape [1, 16, f, h, w]) -> noise``; called anew for every clip."""


@dataclass(frozen=True)
class Carry:
    """What the next clip needs of the video so far.

    Args:
        frames: uint8 [n, H, W, 3], the end of the previous clip, or the lone given first frame (n = 1).
        first: whether the frames are the given first frame.
        reference: statistics of the first clip that later ones are anchored to, where they are
            (:mod:`longvie_core.run.colour_anchor`).
    """

    frames: np.ndarray
    first: bool
    reference: np.ndarray | None = None

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
    def after(cls, plan: ClipPlan, frames: np.ndarray, reference: np.ndarray | None = None) -> Carry:
        """Carry of a finished clip of uint8 frames [T, H, W, 3]."""
        return cls(frames[-(TAIL_FRAMES + plan.overlap - 1) :].copy(), first=False, reference=reference)


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


@dataclass(frozen=True)
class ClipResult:
    """A finished clip: its latents (backend space), all its frames, uint8 [T, H, W, 3], and what the next clip needs."""

    clip: int
    latents: Tensor
    frames: np.ndarray
    carry: Carry


def control_latents(control: ControlWindow, plan: ClipPlan, clip: int, encoder: ControlEncoder) -> Tensor:
    """One modality's control latents [1, 36, f, h, w] of a clip."""
    return control_condition(*encode_control(list(control.window(plan, clip)), encoder))


def clip_inputs(
    plan: ClipPlan,
    clip: int,
    carry: Carry,
    dense: Tensor | None,
    sparse: Tensor | None,
    noise: Tensor,
    history: HistorySettings,
    backend: ClipBackend,
) -> ClipInputs:
    """Condition clip ``clip`` on the video so far and on its control latents (P2 section 3.2)."""
    start = carry.start_frame(plan)
    past = carry.history(plan, history.frames)
    return ClipInputs(
        clip=clip,
        start_frame=start,
        image=backend.encode_image(start, plan.frames),
        dense=dense,
        sparse=sparse,
        history=None if past is None else backend.encode(past[: encoded_history_frames(len(past))]),
        noise=noise,
    )


def generate(
    plan: ClipPlan,
    clips: Iterable[int],
    carry: Carry,
    dense: ControlWindow | None,
    sparse: ControlWindow | None,
    noise: NoiseSource,
    backend: ClipBackend,
    history: HistorySettings | None = None,
    store: LatentStore | None = None,
    anchor: AnchorSettings | None = None,
) -> Iterator[ClipResult]:
    """Generate clips one after another.

    Args:
        plan: how the video is cut.
        clips: consecutive clip numbers to generate.
        carry: the video before the first of them (the given first frame for clip 0).
        dense, sparse: control pictures; ``None`` leaves the modality out.
        noise: initial noise of every clip, such as :meth:`longvie_core.model.noise.UnifiedNoise.for_clip`.
        backend: the model.
        history: how much of the previous clip the next one sees.
        store: keeps the encoded controls from run to run.
        anchor: how strongly later clips are held to the first one's colours; not at all by default.

    Yields:
        Each clip as soon as it is decoded; memory does not grow with their number: besides the clip there are the control
        pictures of the next one, which are read on a thread while this one is sampled.
    """
    history, anchor = history or HistorySettings(), anchor or AnchorSettings()
    available = plan.frames - plan.overlap + 1
    if history.frames > available:
        raise ValueError(
            f"a history of {history.frames} frames is asked for, but clips of {plan.frames} frames with overlap {plan.overlap} "
            f"leave {available} up to the seam: shorten the history, or make the clips longer"
        )
    if anchor.active and not carry.first and carry.reference is None:
        raise ValueError("the first clip's colours are not known, so nothing can be anchored to them: start at the first clip")
    shape = (1, 16, plan.latent_frames, *plan.latent_size)
    clips = list(clips)
    with ControlLatents(plan, dense, sparse, backend, store) as controls:
        controls.hold(clips)
        for clip, following in itertools.zip_longest(clips, clips[1:]):
            inputs = clip_inputs(plan, clip, carry, *controls.of(clip), noise(clip, shape), history, backend)
            if following is not None:
                controls.read_ahead(following)
            # Before the truncation to 8 bit, so that history and start frame of the next clip are anchored as well.
            latents = anchor.latents(backend.sample(inputs), carry.reference)
            frames = frames_to_uint8(anchor.pixels(backend.decode(latents), carry.reference))
            reference = anchor.reference(latents, frames) if carry.first else carry.reference
            carry = Carry.after(plan, frames, reference)
            yield ClipResult(clip, latents, frames, carry)
