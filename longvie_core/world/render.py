"""Procedural worlds with exact depth and exact 3-D tracks: demo input, ground truth for measurements, training data.

A scene is a pure function of (seed, time): frame k depends on nothing but ``k / fps``, so videos of minutes cost the memory
of one frame. Depth is z-depth (along the optical axis, not along the ray) at pixel centres, ``inf`` for the sky. Pixel
centres lie at whole coordinates (OpenCV's convention): the picture spans -0.5 .. width-0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .paint import GROUND, SKY, paint, span
from .scene import Camera, Instant, Scene, camera_at, instant_at, make_scene, solid_poses

__all__ = [
    "Camera", "Frame", "Scene", "Tracks", "camera_at", "grid_points", "hit", "make_scene", "render", "render_frames",
    "solid_poses", "track",
]  # fmt: skip

STRIP_SAMPLES = 24_576
"""Samples rendered at once: the arrays in work fit a core's cache, whatever the picture's size."""

VISIBLE_TOLERANCE = 1e-6
"""A tracked point counts as hidden only if something lies nearer than this share of its own depth."""


@dataclass(frozen=True)
class Frame:
    """One picture: ``rgb`` uint8 ``[H, W, 3]``; ``depth`` float32 ``[H, W]``, z-depth in world units, inf for the sky."""

    rgb: np.ndarray
    depth: np.ndarray

    @property
    def disparity(self) -> np.ndarray:
        """1 / depth, float32 ``[H, W]``: larger = nearer, 0 for the sky."""
        return 1 / self.depth


@dataclass(frozen=True)
class Tracks:
    """Where N points of the first time are at T times.

    ``xy`` float64 ``[T, N, 2]`` in pixels, also where hidden or outside the picture, NaN where the point is not in front of the
    camera; ``depth`` float64 ``[T, N]``, z-depth (negative behind the camera, inf for points of the sky); ``visible`` bool
    ``[T, N]``: inside the picture, in front of the camera and hidden by nothing.
    """

    xy: np.ndarray
    depth: np.ndarray
    visible: np.ndarray


def _directions(rotation: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Components of ``forward + x*right + y*down``; on a grid (``x [1, W]``, ``y [H, 1]``) one full-size addition each.

    The ray's parameter is then the z-depth itself.
    """
    right, down, forward = rotation.astype(x.dtype)
    return [(forward[k] + y * down[k]) + x * right[k] for k in range(3)]


def _side_range(side: float, ahead: float, radius: float) -> tuple[float, float]:
    """Normalised image coordinates between which a sphere can appear, seen from above or from the side."""
    distance = math.hypot(side, ahead)
    if distance <= radius:
        return -math.inf, math.inf
    middle, spread = math.atan2(side, ahead), math.asin(radius / distance)
    low, high = middle - spread, middle + spread
    return (
        math.tan(low) if low > -math.pi / 2 else -math.inf,
        math.tan(high) if high < math.pi / 2 else math.inf,
    )


def _window(instant: Instant, number: int, x: np.ndarray, y: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of a grid of rays that can meet a solid; None if it lies behind the camera or outside the grid."""
    solid = instant.scene.solids[number]
    side, below, ahead = instant.camera.rotation @ (instant.centres[number] - instant.camera.position)
    if ahead <= -solid.bound:
        return None
    columns = slice(*np.searchsorted(x[0], _side_range(side, ahead, solid.bound)))
    rows = slice(*np.searchsorted(y[:, 0], _side_range(below, ahead, solid.bound)))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _cast(instant: Instant, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest surfaces of rays through normalised coordinates: a grid ``x [1, W]``, ``y [H, 1]``, or lists ``[N]`` both.

    Returns:
        z-depths in the dtype of ``x`` (inf = sky) and surface numbers int8 (SKY, GROUND, solid k + 1).
    """
    camera = instant.camera
    fall = -_directions(camera.rotation, x, y)[2]
    with np.errstate(divide="ignore"):
        depth = np.where(fall > 0, x.dtype.type(camera.position[2]) / fall, x.dtype.type(np.inf))
    surface = np.where(fall > 0, GROUND, SKY).astype(np.int8)
    for number, solid in enumerate(instant.scene.solids):
        window = _window(instant, number, x, y) if x.ndim == 2 else (slice(None),)
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


def hit(scene: Scene, time: float, xy: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """What the rays through pixel positions meet, exactly (float64, no raster).

    Args:
        xy: pixel positions ``[N, 2]``, which need not be whole.

    Returns:
        z-depths ``[N]`` (inf = sky) and surface numbers ``[N]``: -1 sky, 0 ground, k + 1 for solid k.
    """
    instant = instant_at(scene, time, width, height)
    return _cast(instant, *instant.camera.normalise(xy).T)


def _samples(camera: Camera, count: int, axis: int, supersample: int) -> np.ndarray:
    """Normalised coordinates (float64) of ``count * supersample`` sample centres along x (axis 0) or y (axis 1)."""
    pixels = (np.arange(count * supersample) + 0.5) / supersample - 0.5
    return (pixels - camera.centre[axis]) / camera.focal


def render(scene: Scene, time: float, width: int, height: int, supersample: int = 2) -> Frame:
    """The picture and its depth at ``time`` seconds.

    Args:
        width, height: any size from 1 pixel; the field of view follows the diagonal.
        supersample: colours average ``supersample**2`` rays a pixel; the depth is that of the pixel centre's ray alone.

    Raises:
        ValueError: for a size or supersample below 1, or a time that is not finite.
    """
    if min(width, height, supersample) < 1:
        raise ValueError(f"size {width}x{height} with supersample {supersample}: give at least 1 for each")
    if not math.isfinite(time):
        raise ValueError(f"time {time} is not finite: give seconds")
    instant = instant_at(scene, time, width, height)
    camera = instant.camera
    centre_x, centre_y = _samples(camera, width, 0, 1)[None], _samples(camera, height, 1, 1)[:, None]
    x = _samples(camera, width, 0, supersample)[None].astype(np.float32)
    y = _samples(camera, height, 1, supersample)[:, None].astype(np.float32)
    rgb, depth = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
    rows = max(1, STRIP_SAMPLES // (width * supersample**2))
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        depth[strip] = _cast(instant, centre_x, centre_y[strip])[0]
        below = y[top * supersample : strip.stop * supersample]
        fine = paint(instant, x, below, *_cast(instant, x, below))
        steps = range(supersample)
        mean = sum(fine[:, i::supersample, j::supersample] for i in steps for j in steps) * (255 / supersample**2)
        rgb[strip] = np.clip(np.rint(mean), 0, 255).transpose(1, 2, 0)
    return Frame(rgb, depth)


def render_frames(
    scene: Scene, frames: int | Iterable[int], fps: float, width: int, height: int, supersample: int = 2
) -> Iterator[Frame]:
    """Frames of a video one after the other; frame k is the picture at ``k / fps`` seconds, whichever are asked for.

    Args:
        frames: how many from frame 0 on, or the frame numbers themselves.
        fps: frames per second.

    Raises:
        ValueError: for fps that are not positive, and as :func:`render`.
    """
    if not fps > 0:
        raise ValueError(f"fps {fps} is not positive: give frames per second, for example 16")
    for number in range(frames) if isinstance(frames, int) else frames:
        yield render(scene, float(number / fps), width, height, supersample)


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


def _anchors(instant: Instant, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points ``[N, 3]`` under pixels, each in the frame of the surface that it is fixed to, and the surfaces ``[N]``.

    Points of the sky are directions.
    """
    camera = instant.camera
    depth, surface = _cast(instant, *camera.normalise(xy).T)
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
    size = np.array([instant.camera.width, instant.camera.height])
    seen = np.all((xy >= -0.5) & (xy < size - 0.5), axis=1)
    nearest, _ = _cast(instant, *instant.camera.normalise(xy[seen]).T)
    seen[seen] = np.where(surface[seen] == SKY, np.isinf(nearest), nearest >= depth[seen] * (1 - VISIBLE_TOLERANCE))
    return seen


def track(scene: Scene, xy: np.ndarray, times: Sequence[float], width: int, height: int) -> Tracks:
    """Exact tracks of the surface points that lie under pixels at the first time.

    Each point stays fixed on what it was found on: the ground, a solid with its motion and rotation, or the sky (a direction at
    infinity). Visibility is decided by casting the exact ray to the point, not by the rasterised depth map.

    Args:
        xy: pixel positions ``[N, 2]`` at ``times[0]``, for example :func:`grid_points`.
        times: T times in seconds; the first is where ``xy`` holds.

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
        rows.append((places, np.where(surface == SKY, np.inf, depth), visible))
    return Tracks(*(np.stack(column) for column in zip(*rows, strict=True)))
