"""Points followed along the dense optical flow of any flow network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from .follow import Followed, follow
from .types import Tracks

FLOW_SHARE, FLOW_SLACK = 0.01, 0.5
"""Flow there and back may miss its start by this share of both flows' squared lengths, plus this, in squared pixels (Sundaram,
Brox and Keutzer 2010)."""

MOST_DRIFT = 6.0
"""Pixels between two accounts of a point's place, the flow from frame to frame and the one straight from the first frame, up
to which both mean the same point."""


# --- dense optical flow -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowTracker:
    """Dense optical flow, a network's for example, made into tracks; equal flow gives equal tracks.

    Each frame:

    1. Visible points move with the flow from the frame before, read bilinearly, and are let go where the flow back does not
       lead home.
    2. The flow straight from the clip's first frame adds up no errors. Where it leads home, and to about the same place, its
       place is taken. So few points drift, and what turns away from its first look is still followed.
    3. Lost points move as their neighbours do that once moved as they did (as in :class:`LucasKanade`), and are found again
       where the flow from the first frame leads home near there.

    Attributes:
        flow: from one uint8 RGB frame ``[H, W, 3]`` to another: float32 ``[H, W, 2]``, where each of its pixels has gone to, in
            pixels to the right and down. It is asked four times a frame.
        neighbours: how many the local motion is fitted to.
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
        return follow(frames, points, lambda checked: _FlowRun(self, frames, checked))


class _FlowRun(Followed):
    """One clip being tracked by flow; all motion counts from frame 0."""

    def __init__(self, settings: FlowTracker, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> None:
        super().__init__(len(frames), frames[0].shape[1::-1], points, settings.neighbours)
        self.flow, self.frames = settings.flow, frames

    def step(self, frame: int) -> None:
        """Find all points in ``frame``; the frames before are done."""
        place, visible = self._moved(frame - 1, frame)
        straight, home = self._moved(0, frame) if frame > 1 else (place, visible)
        self._take(frame, np.arange(len(place)), place, visible)
        self._take(frame, np.arange(len(place)), straight, home & visible & self._near(frame, straight))
        lost = np.flatnonzero(~visible)
        self.xy[frame, lost] = self._carried_motion(frame, lost, np.flatnonzero(visible)).place
        self._take(frame, lost, straight[lost], (home & self._near(frame, straight))[lost])
        self.seen[self.visible[frame]] = frame

    def _take(self, frame: int, which: np.ndarray, place: np.ndarray, holds: np.ndarray) -> None:
        """Put those of the points ``which`` that hold to their places [n, 2] in ``frame``."""
        self.xy[frame, which[holds]] = place[holds]
        self.visible[frame, which[holds]] = True

    def _near(self, frame: int, place: np.ndarray) -> np.ndarray:
        return np.linalg.norm(place - self.xy[frame], axis=1) < MOST_DRIFT

    def _moved(self, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [N, 2] in frame ``target`` by the flow from frame ``source``, and which were visible there and came home."""
        start = self.xy[source]
        there = _at_points(self._flow(source, target), start)
        back = _at_points(self._flow(target, source), start + there)
        missed = np.square(there + back).sum(axis=1)
        allowed = FLOW_SHARE * (np.square(there).sum(axis=1) + np.square(back).sum(axis=1)) + FLOW_SLACK
        return start + there, self.visible[source] & (missed < allowed) & self._inside(start + there)

    def _flow(self, source: int, target: int) -> np.ndarray:
        flow = self.flow(self.frames[source], self.frames[target])
        wanted = (*self.frames[source].shape[:2], 2)
        if flow.shape != wanted:
            raise ValueError(f"the flow from frame {source} to {target} is {list(flow.shape)}: it must be {list(wanted)}")
        if not np.isfinite(flow).all():
            raise ValueError(f"the flow from frame {source} to {target} has values that are not finite: its weights are broken")
        return flow


def _at_points(flow: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Flow [N, 2] at points, bilinear; outside the picture, that of its edge."""
    return np.stack([map_coordinates(part, xy.T[::-1], order=1, mode="nearest") for part in np.moveaxis(flow, -1, 0)], axis=1)
