"""What is wanted of a run: the video's script, how clips follow from one another, and which of them to render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..model.clip import HistorySettings
from ..model.noise import UnifiedNoise
from ..plan import ClipPlan
from .colour_anchor import AnchorSettings
from .control_latents import ControlWindow
from .prompts import PromptSchedule


class NoiseSource(Protocol):
    """Initial noise of every clip, such as :class:`longvie_core.model.noise.UnifiedNoise`."""

    @property
    def seed(self) -> int:
        """What stochastic samplers are seeded with."""

    @property
    def description(self) -> str:
        """Text that is equal only where the noise of every clip is."""

    def for_clip(self, clip: int, shape: tuple[int, ...], seed_offset: int = 0) -> Tensor:
        """Noise of ``shape`` [1, 16, f, h, w]; equal calls give equal bits."""


@dataclass(frozen=True)
class Script:
    """What the video shows.

    Args:
        plan: how it is cut into clips.
        dense, sparse: controls; ``None`` leaves the modality out.
        first_frame: uint8 [height, width, 3].
        prompts: one a clip, the last repeats.
    """

    plan: ClipPlan
    dense: ControlWindow | None
    sparse: ControlWindow | None
    first_frame: np.ndarray
    prompts: PromptSchedule = field(default_factory=PromptSchedule)


@dataclass(frozen=True)
class LoopSettings:
    """How one clip follows from another.

    Args:
        noise: what every clip starts from.
        history: how much of the previous clip the next one sees.
        anchor: how strongly later clips are held to the first one's colours; not at all by default.
    """

    noise: NoiseSource = field(default_factory=UnifiedNoise)
    history: HistorySettings = field(default_factory=HistorySettings)
    anchor: AnchorSettings = field(default_factory=AnchorSettings)


@dataclass(frozen=True)
class Job:
    """A video that is wanted, and how far it is to be rendered now.

    Args:
        script, loop: the whole video.
        clips: which clips, such as ``3-5`` (:func:`longvie_core.run.names.clip_range`); empty = all.
        pause_after: render at most so many clips, then stop; 0 = do not pause.
        sound: file whose sound is laid under the video; ``None`` = silent.
        metadata: tags of the video file.
    """

    script: Script
    loop: LoopSettings = field(default_factory=LoopSettings)
    clips: str = ""
    pause_after: int = 0
    sound: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
