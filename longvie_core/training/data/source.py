"""What a training clip is, and what a source of them offers; their latents are kept by :mod:`.latents`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

PAST_FRAMES = 16
"""Frames before a clip that a sample holds; with the clip's first one they make the longest history, 17 frames."""


@dataclass(frozen=True)
class Clip:
    """One training sample; all pictures are uint8 [.., H, W, 3].

    Args:
        frames: the clip itself [F, H, W, 3].
        dense, sparse: its controls [F, H, W, 3].
        past: up to :data:`PAST_FRAMES` frames before it [n, H, W, 3]; none where it begins its video.
        text: its caption.
    """

    frames: np.ndarray
    dense: np.ndarray
    sparse: np.ndarray
    past: np.ndarray
    text: str = ""

    @property
    def first(self) -> bool:
        """Whether it begins its video."""
        return len(self.past) == 0

    def mirrored(self) -> Clip:
        """The same with left and right swapped; a caption that names sides would be wrong."""
        frames, dense, sparse, past = (
            np.ascontiguousarray(pictures[:, :, ::-1]) for pictures in (self.frames, self.dense, self.sparse, self.past)
        )
        return Clip(frames, dense, sparse, past, self.text)

    def history(self, frames: int) -> np.ndarray:
        """The last ``frames`` frames up to the clip's first one, that one included, as generation hands them on.

        Raises:
            ValueError: so many frames are not there.
        """
        if not 0 < frames <= len(self.past) + 1:
            raise ValueError(
                f"a history of {frames} frames is asked for: give 1 .. {len(self.past) + 1}, as many as the clip has"
            )
        return np.concatenate([self.past, self.frames[:1]])[-frames:]


class ClipSource(Protocol):
    """Training clips by number; those of a video follow one another, each from where the last one ended.

    Attributes:
        width, height, frames: of each clip.
        identity: changes where the clips change.
        capacity: how many clips there may be one day; as many rows are set aside for latents.
    """

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def capacity(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Clip: ...

    def past(self, number: int) -> int:
        """How many frames the clip's ``past`` has, without reading them; 0 for a video's first clip, and for no other."""

    def text(self, number: int) -> str:
        """The clip's caption."""


def past_of(start: int) -> range:
    """Numbers of the frames before a clip that starts at frame ``start`` of its video."""
    return range(max(0, start - PAST_FRAMES), start)
