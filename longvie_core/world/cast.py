"""Rays cast into a procedural world: what they meet first, and how far away."""

from __future__ import annotations

import functools
import math

import numpy as np

from .camera import Instant, instant_at
from .scene import Scene, Solid

SKY, GROUND = -1, 0
"""Surface numbers; solid ``k`` of a scene is surface ``k + 1``."""

Components = list[np.ndarray]
"""Points or directions: an array for each of their coordinates."""


def hit(scene: Scene, time: float, xy: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """What the rays through pixel positions meet, exactly (float64, no raster).

    Args:
        time: seconds.
        xy: pixel positions ``[N, 2]``, which need not be whole.
        width, height: size of the picture in pixels.

    Returns:
        z-depths ``[N]`` (inf = sky) and surface numbers ``[N]``: -1 sky, 0 ground, k + 1 for solid k.
    """
    instant = instant_at(scene, time, width, height)
    return cast(instant, *instant.camera.normalize(xy).T)


def cast(instant: Instant, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest surfaces of rays through normalized coordinates.

    Args:
        x, y: a grid, ``[1, W]`` and ``[H, 1]``, or points, ``[N]`` both; see :meth:`.Camera.normalize`.

    Returns:
        z-depths in the dtype of ``x`` (inf = sky) and surface numbers int8 (SKY, GROUND, solid k + 1).
    """
    camera = instant.camera
    fall = -_directions(camera.rotation, x, y)[2]
    with np.errstate(divide="ignore"):
        depth = np.where(fall > 0, x.dtype.type(camera.position[2]) / fall, x.dtype.type(np.inf))
    surface = np.where(fall > 0, GROUND, SKY).astype(np.int8)
    for number, solid in enumerate(instant.scene.solids):
        window: tuple[slice, ...] | None = _window(instant, number, x, y) if x.ndim == 2 else (slice(None),)
        if window is None:
            continue
        rotation = instant.rotations[number]
        origin = list(((camera.position - instant.centres[number]) @ rotation).astype(x.dtype))
        rows, columns = (y[window[0]], x[:, window[1]]) if x.ndim == 2 else (y, x)
        entry, leave = span(solid, origin, _directions(camera.rotation @ rotation, columns, rows))
        near = (entry <= leave) & (entry > 0) & (entry < depth[window])
        depth[window][near] = entry[near]
        surface[window][near] = number + 1
    return depth, surface


def span(solid: Solid, origin: Components, direction: Components) -> tuple[np.ndarray, np.ndarray]:
    """Where lines ``origin + s * direction`` in the solid's own frame enter and leave it.

    Args:
        origin, direction: three arrays each, which broadcast together.

    Returns:
        The two values of s; entry > exit where the line misses.
    """
    if solid.shape == "sphere":
        square = sum(value * value for value in direction)
        half = sum(a * b for a, b in zip(origin, direction, strict=True))
        rest = sum(value * value for value in origin) - solid.half[0] ** 2
        inside = half * half - square * rest
        root = np.sqrt(np.maximum(inside, 0))
        return np.where(inside < 0, np.inf, (-half - root) / square), np.where(inside < 0, -np.inf, (root - half) / square)
    near, far = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        for edge, start, step in zip(solid.half, origin, direction, strict=True):
            inverse = np.reciprocal(step)
            low, high = (-edge - start) * inverse, (edge - start) * inverse
            near.append(np.minimum(low, high))
            far.append(np.maximum(low, high))
    return functools.reduce(np.maximum, near), functools.reduce(np.minimum, far)


def _directions(rotation: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Components of ``forward + x*right + y*down``; on a grid (``x [1, W]``, ``y [H, 1]``) one full-size addition each.

    The ray's parameter is then the z-depth itself.
    """
    right, down, forward = rotation.astype(x.dtype)
    return [(forward[k] + y * down[k]) + x * right[k] for k in range(3)]


def _window(instant: Instant, number: int, x: np.ndarray, y: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of a grid of rays that can meet a solid; None if it lies behind the camera or outside the grid."""
    solid = instant.scene.solids[number]
    side, below, ahead = instant.camera.rotation @ (instant.centres[number] - instant.camera.position)
    if ahead <= -solid.bound:
        return None
    columns = slice(*np.searchsorted(x[0], _side_range(side, ahead, solid.bound)))
    rows = slice(*np.searchsorted(y[:, 0], _side_range(below, ahead, solid.bound)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _side_range(side: float, ahead: float, radius: float) -> tuple[float, float]:
    """Normalized image coordinates between which a sphere can appear, seen from above or from the side."""
    distance = math.hypot(side, ahead)
    if distance <= radius:
        return -math.inf, math.inf
    middle, spread = math.atan2(side, ahead), math.asin(radius / distance)
    low, high = middle - spread, middle + spread
    return (
        math.tan(low) if low > -math.pi / 2 else -math.inf,
        math.tan(high) if high < math.pi / 2 else math.inf,
    )
