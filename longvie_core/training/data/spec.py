"""Which latents a training reads of each clip, and how its degraded variants are drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ...model.conditioning import encoded_history_frames
from ..degradation.dense import DepthDegradation, DepthOperator, draw_depth_operators
from ..degradation.frames import FrameDegradation, FrameOperator, draw_frame_operators
from ..draws import generator_for

Variant = int | None
"""Number of a degraded variant, or ``None`` for the clip as it is."""


@dataclass(frozen=True)
class LatentSpec:
    """Which latents a training reads of each clip.

    Args:
        histories: lengths of histories in frames; 0 needs nothing.
        variants: degraded variants a clip.
        first_frame: how start frame and history are degraded in them; ``None`` = not.
        depth: how depth is degraded in them; ``None`` = not.
        vision: whether CLIP vision features are read.
    """

    histories: tuple[int, ...] = ()
    variants: int = 1
    first_frame: FrameDegradation | None = None
    depth: DepthDegradation | None = None
    vision: bool = False

    def frame_operators(self, row: int, variant: int) -> tuple[FrameOperator, ...]:
        """What happens to the start frame and the history of clip ``row`` in one of its variants."""
        if self.first_frame is None:
            return ()
        return draw_frame_operators(replace(self.first_frame, probability=1.0), generator_for(1, row, variant))

    def depth_operators(self, row: int, variant: int) -> tuple[DepthOperator, ...]:
        """What happens to the depth of clip ``row`` in one of its variants."""
        if self.depth is None:
            return ()
        return draw_depth_operators(replace(self.depth, probability=1.0, start=0.0), 0, 1, generator_for(2, row, variant))

    def histories_of(self, past: int) -> list[int]:
        """Those lengths that a clip with ``past`` frames before it can have."""
        return [length for length in self.histories if 0 < length <= past + 1]

    def degraded_key(self, regenerator: str) -> str:
        """Name of everything that the variants depend on, apart from the clip and the VAE.

        How often a variant is shown does not count: that is up to the training.
        """
        drawn = (None if part is None else {**asdict(part), "probability": 1} for part in (self.first_frame, self.depth))
        return short_hash([*drawn, self.histories, regenerator])


def window_of(past: int, histories: Sequence[int]) -> int:
    """Frames up to the start frame that are degraded together: 4n + 1, enough for the longest history that is there."""
    longest = max([1, *(length for length in histories if length <= past + 1)])
    return encoded_history_frames(longest + 3)


def short_hash(value: object) -> str:
    """Name of 16 hexadecimal digits for a value that JSON can write."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
