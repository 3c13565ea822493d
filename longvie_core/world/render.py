"""Pictures of a procedural world with their exact depth.

A scene is a pure function of (seed, time): frame k depends on nothing but ``k / fps``, so videos of minutes cost the memory
of one frame. Depth is z-depth (along the optical axis, not along the ray) at pixel centres, ``inf`` for the sky.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .camera import Camera, instant_at
from .cast import cast
from .paint import paint
from .scene import Scene

STRIP_SAMPLES = 24_576
"""Samples rendered at once: the arrays in work fit a core's cache, whatever the picture's size."""


@dataclass(frozen=True)
class Frame:
    """One picture: ``rgb`` uint8 ``[H, W, 3]``; ``depth`` float32 ``[H, W]``, z-depth in world units, inf for the sky."""

    rgb: np.ndarray
    depth: np.ndarray

    @property
    def disparity(self) -> np.ndarray:
        """1 / depth, float32 ``[H, W]``: larger = nearer, 0 for the sky."""
        return 1 / self.depth


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
        depth[strip] = cast(instant, centre_x, centre_y[strip])[0]
        below = y[top * supersample : strip.stop * supersample]
        fine = paint(instant, x, below, *cast(instant, x, below))
        steps = range(supersample)
        mean = sum(fine[:, i::supersample, j::supersample] for i in steps for j in steps) * (255 / supersample**2)
        rgb[strip] = np.clip(np.rint(mean), 0, 255).transpose(1, 2, 0)
    return Frame(rgb, depth)


def render_frames(
    scene: Scene, frames: int | Iterable[int], fps: float | Fraction, width: int, height: int, supersample: int = 2
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


def _samples(camera: Camera, count: int, axis: int, supersample: int) -> np.ndarray:
    """Normalized coordinates (float64) of ``count * supersample`` sample centres along x (axis 0) or y (axis 1)."""
    pixels = (np.arange(count * supersample) + 0.5) / supersample - 0.5
    return (pixels - camera.centre[axis]) / camera.focal
