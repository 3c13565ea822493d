"""What trackers take and give: points of a clip, followed through its frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Tracks:
    """Where N points of a clip's first frame are in its T frames.

    Attributes:
        xy: float32 ``[T, N, 2]`` in pixels, always finite: where a point is hidden or lost, a guess.
        visible: bool ``[T, N]``: inside the picture and not hidden.
    """

    xy: np.ndarray
    visible: np.ndarray


class Tracker(Protocol):
    """What follows points through the pictures of one clip."""

    def track(self, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> Tracks:
        """Follow ``points`` (float32 ``[N, 2]``, x and y in pixels of frame 0) through ``frames`` (uint8 ``[T, H, W, 3]``)."""
        ...


class Video(Protocol):
    """What :func:`write_tracks` needs of a driving video (:class:`longvie_core.media.footage.Footage` is one)."""

    @property
    def frames(self) -> int: ...

    def read(self, numbers: range) -> Iterator[np.ndarray]: ...
