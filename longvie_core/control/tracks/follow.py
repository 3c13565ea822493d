"""What every tracker does: take points through a clip frame by frame, and carry lost ones along with their neighbours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial import KDTree

from ...interrupt import checkpoint
from .motion import UNKNOWN_WEIGHT, Motion, fit_motion, inside_frame, stand_still
from .types import Tracks

OWN_WEIGHT = 6.0
"""Weight of a point's own motion among its neighbours', each of which weighs at most 1."""

LEAST_SHARE = 1e-3
"""A neighbour that should not count (hidden, or moved otherwise) keeps this share of its weight, in case there is no other."""

LEAST_DISTANCE = 0.01
"""Pixels: neighbours that lie closer together count as this far apart."""

HINDSIGHT = 2
"""Frames: what covers a point disturbs it before it is lost, so its own places in the last frames before are not trusted."""


class Follower(ABC):
    """The points of one clip, up to the frame that is reached. Subclasses say how they get to the next one.

    Args:
        frames: of the clip.
        size: (width, height) of the pictures.
        points: float32 ``[N, 2]`` in pixels of frame 0.
        neighbours: how many a local motion is fitted to.

    Attributes:
        xy, visible: as in :class:`Tracks`.
        base: ``[N]``, the frame that a point's motion counts from.
        last_seen: ``[N]``, the last frame in which it was visible.
        trust: ``[N]``, how much its own motion counts: 1 where its texture lasts, little where it is noise.
    """

    def __init__(self, frames: int, size: tuple[int, int], points: np.ndarray, neighbours: int) -> None:
        count = len(points)
        self.size, self.neighbours = np.array(size), neighbours
        self.xy, self.visible = np.zeros((frames, count, 2), np.float32), np.zeros((frames, count), bool)
        self.xy[0], self.visible[0] = points, self.inside(points)
        self.base, self.last_seen, self.trust = np.zeros(count, np.intp), np.zeros(count, np.intp), np.ones(count)

    @abstractmethod
    def step(self, frame: int) -> None:
        """Fill in ``xy`` and ``visible`` of ``frame``; all frames before it are done."""

    def inside(self, xy: np.ndarray) -> np.ndarray:
        """Whether points [..., 2] are inside the picture."""
        return inside_frame(xy, self.size)

    def neighbours_of(self, which: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each point of ``which`` [n] the nearest of the points ``anchors`` in frame 0, [n, K], and their weights."""
        near = min(self.neighbours + 1, len(anchors))
        distance, nearest = KDTree(self.xy[0, anchors]).query(self.xy[0, which], k=range(1, near + 1))
        nearest = anchors[nearest]
        closeness = 1 / (1 + (distance / np.maximum(distance.mean(axis=1, keepdims=True), LEAST_DISTANCE)) ** 2)
        known = self.visible[self.base[which, None], nearest]
        weight = closeness * self.trust[nearest] * np.maximum(known, LEAST_SHARE)
        return nearest, np.where(nearest == which[:, None], 0, weight)

    def carried_motion(self, frame: int, which: np.ndarray, anchors: np.ndarray) -> Motion:
        """Motions from their base frames to ``frame`` of the lost points ``which``, with the visible points ``anchors``."""
        last = self.xy[frame - 1, which]
        if not (len(which) and len(anchors)):
            return stand_still(last)
        nearest, weight = self.neighbours_of(which, anchors)
        base = self.base[which]
        origin, source = self.xy[base, which], self.xy[base[:, None], nearest]
        # The time up to which the point itself was followed shows which of the neighbours move as it does.
        known = np.maximum(self.last_seen[which] - HINDSIGHT, base)
        there = weight * self.visible[known[:, None], nearest]
        own = OWN_WEIGHT * self.trust[which]
        past = fit_motion(origin, source, self.xy[known[:, None], nearest], there, self.xy[known, which], own)
        alike = np.maximum(there * past.agreement**2, LEAST_SHARE * weight)
        return fit_motion(origin, source, self.xy[frame, nearest], alike, last, np.full(len(which), UNKNOWN_WEIGHT))


def follow(frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray, begin: Callable[[np.ndarray], Follower]) -> Tracks:
    """Take points through a clip.

    Args:
        frames: uint8 RGB ``[T, H, W, 3]``, T at least 1.
        points: ``[N, 2]``, x and y in pixels of frame 0.
        begin: makes the follower of the checked points, float32; not called where there are none.

    Raises:
        ValueError: frames or points of another shape or type, or points that are not finite.
    """
    _check_frames(frames)
    points = _checked_points(points)
    if len(points) == 0:
        return Tracks(np.empty((len(frames), 0, 2), np.float32), np.empty((len(frames), 0), bool))
    follower = begin(points)
    for frame in range(1, len(frames)):
        checkpoint()
        follower.step(frame)
    return Tracks(follower.xy, follower.visible)


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
