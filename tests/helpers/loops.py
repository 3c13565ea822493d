"""The clip loop with its conditions given one by one, for tests that vary one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from longvie_core.model.clip import ClipBackend, HistorySettings
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.control_latents import ControlWindow, LatentStore
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.keys import ClipKey
from longvie_core.run.loop import Carry, ClipResult, generate
from longvie_core.run.manifest import Take
from longvie_core.run.store import Run


@dataclass(frozen=True)
class CalledNoise:
    """Noise of a function of clip and shape."""

    call: Callable[[int, tuple[int, ...]], Tensor]
    seed: int = 0
    description: str = "a function"

    def for_clip(self, clip: int, shape: tuple[int, ...], seed_offset: int = 0) -> Tensor:
        return self.call(clip, shape)


def generated(
    plan: ClipPlan,
    clips: Sequence[int],
    carry: Carry,
    dense: ControlWindow | None,
    sparse: ControlWindow | None,
    noise: Callable[[int, tuple[int, ...]], Tensor],
    backend: ClipBackend,
    history: HistorySettings | None = None,
    store: LatentStore | None = None,
    anchor: AnchorSettings | None = None,
) -> Iterator[ClipResult]:
    """:func:`longvie_core.run.loop.generate` of a video without prompts."""
    script = Script(plan, dense, sparse, np.zeros((plan.height, plan.width, 3), np.uint8))
    settings = LoopSettings(CalledNoise(noise), history or HistorySettings(), anchor or AnchorSettings())
    return generate(script, clips, carry, backend, settings, store=store)


def finished_clip(plan: ClipPlan, clip: int, latents: Tensor, frames: np.ndarray) -> ClipResult:
    """What the loop gives for a clip of these latents and uint8 frames [T, H, W, 3]."""
    return ClipResult(clip, latents, frames, Carry.after(plan, frames))


def save_clip(
    run: Run,
    plan: ClipPlan,
    key: ClipKey,
    result: ClipResult,
    seconds: float,
    before: Sequence[Take] = (),
    seed: int | None = None,
    prompt: str = "",
) -> Take:
    """A take of a run, made and written at once."""
    return run.write(run.new_take(plan, key, result, seconds, before, seed, prompt), plan, result, before)
