"""Control clips of a procedural scene, with its exact depth and tracks: demo input, ground truth, training data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, repeat, tee
from pathlib import Path

import numpy as np

from ..control.clips_folder import ClipsFolder, write_clips_folder
from ..control.normalize import normalized_frames
from ..control.raw_depth import RawDepthWriter
from ..control.tracks.draw import reference_grid, render_tracks
from ..control.tracks.point_depth import depth_to_z, z_at
from ..plan import ClipPlan
from .render import render, render_frames
from .scene import Scene
from .track import track

NOWHERE = -1e6
"""Pixels: where a point behind the camera is put, so that it is never in the picture."""


@dataclass(frozen=True)
class TrackGrid:
    """Points that are followed through each clip, ``columns`` x ``rows`` of them at its first frame."""

    columns: int = 50
    rows: int = 50


def write_scene_clips(
    folder: Path, scene: Scene, plan: ClipPlan, grid: TrackGrid | None = None, time_scale: float = 1.0
) -> ClipsFolder:
    """Write a scene's control clips in the authors' layout, from exact depth and exact tracks.

    Args:
        folder: where ``cond.json`` and the videos go.
        scene: what to film.
        plan: size, length and rate; its ``output_frames`` frames are filmed.
        grid: points of the tracks.
        time_scale: seconds of the scene that pass in one second of video.

    Returns:
        The folder as :func:`~longvie_core.control.clips_folder.load_clips_folder` reads it.
    """
    grid = grid or TrackGrid()
    rate = plan.fps / time_scale
    with tempfile.TemporaryDirectory() as temporary:
        with RawDepthWriter(Path(temporary) / "disparity.npy", "disparity", plan.fps) as writer:
            for frame in render_frames(scene, plan.output_frames, rate, plan.width, plan.height, supersample=1):
                writer.write(frame.disparity)
        dense, windows = tee(clip_windows(plan, normalized_frames(writer.raw_depth(), plan.output_frames)))
        sparse = (scene_tracks(scene, plan, clip, window, grid, rate) for clip, window in enumerate(windows))
        first = render(scene, 0.0, plan.width, plan.height).rgb
        return write_clips_folder(folder, [""] * plan.clips, dense, sparse, first, fps=plan.fps)


def scene_tracks(
    scene: Scene, plan: ClipPlan, clip: int, dense: np.ndarray, grid: TrackGrid, rate: float | Fraction
) -> Iterator[np.ndarray]:
    """Drawn tracks of one clip, uint8 RGB [H, W, 3] a frame, by the reference's rule.

    Args:
        scene: what is filmed.
        plan, clip: size, and which frames.
        dense: the clip's dense control, uint8 [T, H, W, 3], near = black: the tracks' z comes from it, as the reference has it.
        grid: points at the clip's first frame.
        rate: frames per second of scene time.
    """
    size = (plan.width, plan.height)
    times = [float(min(frame, plan.output_frames - 1) / rate) for frame in plan.control_frames(clip)]
    tracks = track(scene, reference_grid(*size, grid.columns, grid.rows).astype(np.float64), times, *size)
    ahead = np.isfinite(tracks.xy).all(axis=-1)
    xy = np.where(ahead[..., None], tracks.xy, NOWHERE)
    points = np.concatenate([xy, z_at(xy, depth_to_z(dense, size))[..., None]], axis=-1)
    return render_tracks(points, tracks.visible, *size)


def clip_windows(plan: ClipPlan, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut a stream of grey frames [H, W] into the plan's clips, uint8 [T, H, W, 3]; neighbours share their overlap.

    Past the end the last frame repeats.
    """
    window: list[np.ndarray] = []
    for _ in range(plan.clips):
        window = window[plan.stride :]
        window.extend(islice(frames, plan.frames - len(window)))
        window.extend(repeat(window[-1], plan.frames - len(window)))
        yield np.repeat(np.stack(window)[..., None], 3, axis=-1)
