"""Points followed along the dense optical flow of any flow network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from .follow import Follower, follow
from .types import Tracks

FLOW_SHARE, FLOW_SLACK = 0.01, 0.5
"""A point is lost whose flow there and back ends farther from its start, in squared pixels, than this share of both flows'
squared lengths plus this many (Sundaram, Brox and Keutzer 2010)."""

MOST_DRIFT = 6.0
"""Pixels up to which two estimates of a point's place mean the same point: by the flow from frame to frame, and by the one
straight from the first frame."""


@dataclass(frozen=True)
class FlowTracker:
    """Dense optical flow, a network's for example, made into tracks; equal flow gives equal tracks. A :class:`.types.Tracker`.

    Each frame:

    1. Visible points move with the flow from the frame before, read bilinearly. They are lost where the flow back does not lead
       to where they came from.
    2. The flow straight from the clip's first frame adds up no errors. Where it too leads there and back, and to about the same
       place, that place is taken. So few points drift, and yet a surface is followed that turns and looks different.
    3. Lost points are carried along with those neighbours that moved as they did, and are found again where the flow from the
       first frame leads near there and back.

    Attributes:
        flow: from one uint8 RGB frame ``[H, W, 3]`` to another: float32 ``[H, W, 2]``, where each of its pixels has gone to, in
            pixels to the right and down. It is asked four times a frame.
        neighbours: how many a local motion is fitted to.
    """

    flow: Callable[[np.ndarray, np.ndarray], np.ndarray]
    neighbours: int = 12

    def track(self, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> Tracks:
        """Follow points through a clip.

        Args:
            frames: uint8 RGB ``[T, H, W, 3]``, T at least 1.
            points: ``[N, 2]``, x and y in pixels of frame 0; those outside the picture go along and are never visible.

        Raises:
            ValueError: frames or points of another shape or type or not finite, or flow of another shape or not finite.
        """
        return follow(frames, points, lambda checked: FlowFollower(self, frames, checked))


class FlowFollower(Follower):
    """Points of one clip, followed by flow; all motion counts from frame 0."""

    def __init__(self, settings: FlowTracker, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> None:
        super().__init__(len(frames), frames[0].shape[1::-1], points, settings.neighbours)
        self.flow, self.frames = settings.flow, frames

    def step(self, frame: int) -> None:
        everyone = np.arange(self.xy.shape[1])
        place, visible = self._moved(frame - 1, frame)
        straight, consistent = self._moved(0, frame) if frame > 1 else (place, visible)
        self._put(frame, everyone, place, visible)
        self._put(frame, everyone, straight, consistent & visible & self._near(frame, straight))
        lost = np.flatnonzero(~visible)
        self.xy[frame, lost] = self.carried_motion(frame, lost, np.flatnonzero(visible)).place
        self._put(frame, lost, straight[lost], (consistent & self._near(frame, straight))[lost])
        self.last_seen[self.visible[frame]] = frame

    def _put(self, frame: int, which: np.ndarray, place: np.ndarray, mask: np.ndarray) -> None:
        """Put those of the points ``which`` that ``mask`` [n] names to their places [n, 2] in ``frame``, visible."""
        self.xy[frame, which[mask]] = place[mask]
        self.visible[frame, which[mask]] = True

    def _near(self, frame: int, place: np.ndarray) -> np.ndarray:
        return np.linalg.norm(place - self.xy[frame], axis=1) < MOST_DRIFT

    def _moved(self, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [N, 2] in frame ``target`` by the flow from frame ``source``, and which points were visible there, are still
        inside, and whose flow there and back agrees."""
        start = self.xy[source]
        there = _at_points(self._checked_flow(source, target), start)
        back = _at_points(self._checked_flow(target, source), start + there)
        missed = np.square(there + back).sum(axis=1)
        allowed = FLOW_SHARE * (np.square(there).sum(axis=1) + np.square(back).sum(axis=1)) + FLOW_SLACK
        return start + there, self.visible[source] & (missed < allowed) & self.inside(start + there)

    def _checked_flow(self, source: int, target: int) -> np.ndarray:
        flow = self.flow(self.frames[source], self.frames[target])
        shape = (*self.frames[source].shape[:2], 2)
        if flow.shape != shape:
            raise ValueError(f"the flow from frame {source} to {target} is {list(flow.shape)}: it must be {list(shape)}")
        if not np.isfinite(flow).all():
            raise ValueError(f"the flow from frame {source} to {target} has values that are not finite: its weights are broken")
        return flow


def _at_points(flow: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Flow [N, 2] at points, bilinear; outside the picture, that of its edge."""
    return np.stack([map_coordinates(part, xy.T[::-1], order=1, mode="nearest") for part in np.moveaxis(flow, -1, 0)], axis=1)
