"""Exact tracks of a procedural world's surface points: ground truth for trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..control.tracks.motion import inside_frame
from ..control.tracks.types import Tracks
from .camera import Instant, instant_at
from .cast import SKY, cast
from .scene import Scene

VISIBLE_TOLERANCE = 1e-6
"""A tracked point counts as hidden only if something lies nearer than this share of its own depth."""


@dataclass(frozen=True)
class TrueTracks(Tracks):
    """Where N points of the first time are at T times, exactly.

    ``xy`` is float64, also where a point is hidden or outside the picture; NaN where it is not in front of the camera.

    Attributes:
        depth: float64 ``[T, N]``, z-depth in world units; negative behind the camera, inf for points of the sky.
    """

    depth: np.ndarray


def grid_points(columns: int, rows: int, width: int, height: int, margin: float = 0.0) -> np.ndarray:
    """A regular grid of pixel positions ``[rows * columns, 2]`` (x, y), row by row, at the centres of equal cells.

    Args:
        margin: pixels left free at each border of the picture.

    Raises:
        ValueError: for a count below 1 or a margin that leaves nothing.
    """
    if min(columns, rows) < 1:
        raise ValueError(f"grid {columns}x{rows}: give at least 1 point each way")
    if margin < 0 or 2 * margin >= min(width, height):
        raise ValueError(f"margin {margin} leaves nothing of {width}x{height}: give 0 .. {min(width, height) / 2}")
    x = margin + (np.arange(columns) + 0.5) * ((width - 2 * margin) / columns) - 0.5
    y = margin + (np.arange(rows) + 0.5) * ((height - 2 * margin) / rows) - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def track(scene: Scene, xy: np.ndarray, times: Sequence[float], width: int, height: int) -> TrueTracks:
    """Exact tracks of the surface points that lie under pixels at the first time.

    Each point stays fixed on what it was found on: the ground, a solid with its motion and rotation, or the sky (a direction at
    infinity). Visibility is decided by casting the exact ray to the point, not by the rasterised depth map.

    Args:
        xy: pixel positions ``[N, 2]`` at ``times[0]``, for example :func:`grid_points`.
        times: T times in seconds; the first is where ``xy`` holds.
        width, height: size of the picture in pixels.

    Raises:
        ValueError: for an ``xy`` of another shape or no times.
    """
    xy = np.asarray(xy, np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"xy has the shape {list(xy.shape)}: give pixel positions as [N, 2]")
    if len(times) == 0:
        raise ValueError("times is empty: give at least the time at which xy holds")
    anchors, surface = _anchors(instant_at(scene, times[0], width, height), xy)
    rows = []
    for time in times:
        instant = instant_at(scene, time, width, height)
        places, depth = instant.camera.project(_offsets(instant, anchors, surface))
        visible = _visible(instant, places, depth, surface)
        rows.append((places, visible, np.where(surface == SKY, np.inf, depth)))
    return TrueTracks(*(np.stack(column) for column in zip(*rows, strict=True)))


def _anchors(instant: Instant, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points ``[N, 3]`` under pixels, each in the frame of the surface that it is fixed to, and the surfaces ``[N]``.

    Points of the sky are directions.
    """
    camera = instant.camera
    depth, surface = cast(instant, *camera.normalize(xy).T)
    points = camera.unproject(xy, np.where(surface == SKY, 1.0, depth))
    points[surface == SKY] -= camera.position
    for number in range(len(instant.scene.solids)):
        mine = surface == number + 1
        points[mine] = (points[mine] - instant.centres[number]) @ instant.rotations[number]
    return points, surface


def _offsets(instant: Instant, anchors: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Anchors brought to this instant: world points less the camera's position ``[N, 3]``, directions for the sky."""
    world = anchors.copy()
    for number, (centre, rotation) in enumerate(zip(instant.centres, instant.rotations, strict=True)):
        mine = surface == number + 1
        world[mine] = anchors[mine] @ rotation.T + centre
    world[surface != SKY] -= instant.camera.position
    return world


def _visible(instant: Instant, xy: np.ndarray, depth: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Whether projected points ``[N]`` are inside the picture and the first thing that their own rays meet."""
    visible = inside_frame(xy, (instant.camera.width, instant.camera.height))
    nearest, _ = cast(instant, *instant.camera.normalize(xy[visible]).T)
    unhidden = nearest >= depth[visible] * (1 - VISIBLE_TOLERANCE)
    visible[visible] = np.where(surface[visible] == SKY, np.isinf(nearest), unhidden)
    return visible
