"""What every tracker does from frame to frame: predict, correct, judge, remember."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial import KDTree

from .motion import HOLD_WEIGHT, LEAST_WEIGHT, OWN_WEIGHT, Motion, fit_motion, inside_frame, stand_still
from .types import Tracks

EPSILON = 0.01
"""Pixels: Lucas-Kanade iterations end when they move less."""

HINDSIGHT = 2
"""Frames: what covers a point disturbs it before it is lost, so its motion up to that long before is trusted, and a new
template is taken from that long ago."""


def follow(frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray, begin: Callable[[np.ndarray], Followed]) -> Tracks:
    """Check frames and points, and take what ``begin`` makes of the checked points through the clip."""
    _check_frames(frames)
    points = _checked_points(points)
    if len(points) == 0:
        return Tracks(np.empty((len(frames), 0, 2), np.float32), np.empty((len(frames), 0), bool))
    run = begin(points)
    for frame in range(1, len(frames)):
        run.step(frame)
    return Tracks(run.xy, run.visible)


def _check_frames(frames: Sequence[np.ndarray] | np.ndarray) -> None:
    if len(frames) == 0:
        raise ValueError("there are no frames to track points in: give at least 1")
    for number, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
            raise ValueError(f"frame {number} is {frame.dtype} {list(frame.shape)}: give uint8 RGB [height, width, 3]")
        if frame.shape != frames[0].shape:
            raise ValueError(f"frame {number} is {list(frame.shape)}, but frame 0 is {list(frames[0].shape)}: give one size")


def _checked_points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points have the shape {list(points.shape)}: give [N, 2], x and y in pixels of frame 0")
    broken = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(broken):
        raise ValueError(f"point {broken[0]} is {points[broken[0]].tolist()}: give finite x and y")
    return points


class Followed:
    """What is known of a clip's points up to the frame reached, and where their neighbours say that lost ones are.

    ``base`` ``[N]`` is the frame that a point's motion counts from; ``seen`` ``[N]`` the frame in which it was last visible;
    ``trust`` ``[N]`` how much its own motion counts, 1 if its texture lasts, little if it is noise.
    """

    def __init__(self, frames: int, size: tuple[int, int], points: np.ndarray, neighbours: int) -> None:
        count = len(points)
        self.size, self.neighbours = np.array(size), neighbours
        self.xy, self.visible = np.zeros((frames, count, 2), np.float32), np.zeros((frames, count), bool)
        self.xy[0], self.visible[0] = points, self._inside(points)
        self.base, self.seen, self.trust = np.zeros(count, np.intp), np.zeros(count, np.intp), np.ones(count)

    def _inside(self, xy: np.ndarray) -> np.ndarray:
        return inside_frame(xy, self.size)

    def _neighbours(self, which: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each point of ``which`` the nearest of ``anchors`` in frame 0, [n, K], and their weights."""
        near = min(self.neighbours + 1, len(anchors))
        distance, nearest = KDTree(self.xy[0, anchors]).query(self.xy[0, which], k=range(1, near + 1))
        nearest = anchors[nearest]
        closeness = 1 / (1 + (distance / np.maximum(distance.mean(axis=1, keepdims=True), EPSILON)) ** 2)
        known = self.visible[self.base[which, None], nearest]
        weight = closeness * self.trust[nearest] * np.maximum(known, LEAST_WEIGHT)
        return nearest, np.where(nearest == which[:, None], 0, weight)

    def _carried_motion(self, frame: int, which: np.ndarray, anchors: np.ndarray) -> Motion:
        """Motions from their base frames to ``frame`` of lost points, with the visible ``anchors``."""
        last = self.xy[frame - 1, which]
        if not (len(which) and len(anchors)):
            return stand_still(last)
        nearest, weight = self._neighbours(which, anchors)
        base = self.base[which]
        origin, source = self.xy[base, which], self.xy[base[:, None], nearest]
        # First up to the frame in which the point itself was last there: it shows which neighbours move as it does.
        known = np.maximum(self.seen[which] - HINDSIGHT, base)
        there = weight * self.visible[known[:, None], nearest]
        own = OWN_WEIGHT * self.trust[which]
        past = fit_motion(origin, source, self.xy[known[:, None], nearest], there, self.xy[known, which], own)
        alike = np.maximum(there * past.agreement**2, LEAST_WEIGHT * weight)
        return fit_motion(origin, source, self.xy[frame, nearest], alike, last, np.full(len(which), HOLD_WEIGHT))
