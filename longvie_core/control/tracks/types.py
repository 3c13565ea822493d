"""What trackers take and give: points of a clip, followed through its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Tracks:
    """Where N points of a clip's first frame are in its T frames.

    Attributes:
        xy: float ``[T, N, 2]`` in pixels. Trackers give float32 that is always finite: a guess where a point is hidden or lost.
        visible: bool ``[T, N]``: inside the picture and not hidden.
    """

    xy: np.ndarray
    visible: np.ndarray


class Tracker(Protocol):
    """What follows points through the pictures of one clip."""

    def track(self, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> Tracks:
        """Follow ``points`` (float32 ``[N, 2]``, x and y in pixels of frame 0) through ``frames`` (uint8 ``[T, H, W, 3]``)."""
        ...


def external_tracks(path: np.ndarray, visibility: np.ndarray | None) -> Tracks:
    """Another tracker's result, checked.

    Args:
        path: ``[T, N, 2]``, x and y in pixels.
        visibility: ``[T, N]``, or one column or row for all; more than 0.5 (or true) is visible. None = always visible.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    if path.ndim != 3 or path.shape[2] != 2:
        raise ValueError(f"track_path has the shape {list(path.shape)}: give [frames, tracks, 2], x and y in pixels")
    if path.size == 0:
        raise ValueError(f"track_path has {path.shape[1]} tracks of {path.shape[0]} frames: there is nothing to draw")
    broken = np.argwhere(~np.isfinite(path).all(axis=2))
    if len(broken):
        frame, track = broken[0]
        raise ValueError(
            f"track {track} is {path[frame, track].tolist()} in frame {frame}: give finite x and y, and mark in "
            "track_visibility where a point is not seen"
        )
    if np.abs(path).max() <= 1:
        raise ValueError(
            "all of track_path lies between -1 and 1, as shares of the picture do: give x and y in pixels of the plan's size"
        )
    if visibility is None:
        return Tracks(path.astype(np.float32), np.ones(path.shape[:2], bool))
    frames, tracks = path.shape[:2]
    if visibility.ndim != 2 or visibility.shape[0] not in (1, frames) or visibility.shape[1] not in (1, tracks):
        raise ValueError(
            f"track_visibility has the shape {list(visibility.shape)}, but track_path {list(path.shape)}: give "
            f"[{frames}, {tracks}], frames and tracks"
        )
    return Tracks(path.astype(np.float32), np.array(np.broadcast_to(visibility > 0.5, (frames, tracks))))
