"""The sparse control of a whole driving video: points followed clip by clip, drawn, written (P1 section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...interrupt import checkpoint
from ...media.footage import DrivingVideo
from ...media.write import VideoWriter
from ...plan import ClipPlan
from ..control import Control
from .draw import draw_clip, reference_grid
from .motion import inside_frame
from .point_depth import depth_to_z, hide_occluded
from .types import Tracker, Tracks

FEWEST_POINTS = 2
"""Drawing needs the distance between points: it is the rectangles' size."""


def write_tracks(
    footage: DrivingVideo,
    dense: Control,
    plan: ClipPlan,
    tracker: Tracker,
    folder: Path,
    *,
    grid: int = 50,
    style: str = "reference",
    progress: Callable[[int, int], object] | None = None,
) -> Control:
    """Track and draw every clip of a plan: one lossless video a clip, ``track_000.mkv`` and so on.

    Each clip has its own grid (:func:`.draw.reference_grid`), laid out in its first frame. One clip is in memory at
    a time. A file that is there already is kept, so that work that was interrupted goes on: the folder must belong to these
    inputs and settings alone.

    Args:
        footage: the driving video at the plan's rate and size.
        dense: its dense control, where the points' z comes from.
        plan: clips; where it does not know its source length, it takes the footage's.
        grid: points a side (reference 50; P1 and P2 name 4,900 points, which is 70).
        style: see :func:`.draw.render_tracks`.
        progress: called with (clips done, clips) after each clip; what it raises ends the work.

    Raises:
        ValueError: footage or dense control too short or of another size than the plan; a setting out of range; a tracker that
            breaks its contract.
    """
    if footage.frames < plan.source_frames:
        raise ValueError(
            f"the driving video has {footage.frames} frames at {plan.fps} a second, but the plan and its depth have "
            f"{plan.source_frames}: give the video that the depth comes from, or correct the plan's source length"
        )
    plan = plan.resolved(footage.frames)
    points = reference_grid(plan.width, plan.height, grid)
    return _write_clips(
        lambda clip: _tracks_of(tracker, _pictures(footage, plan, clip), points), dense, plan, folder, style, progress
    )


def write_external_tracks(
    tracks: Tracks,
    dense: Control,
    plan: ClipPlan,
    folder: Path,
    *,
    style: str = "reference",
    progress: Callable[[int, int], object] | None = None,
) -> Control:
    """Draw another tracker's tracks of the whole video, as :func:`write_tracks` draws its own.

    Each clip has those points that are visible inside the picture in its first frame.

    Args:
        tracks: of the whole video at the plan's rate and size, see :func:`.types.external_tracks`; frames beyond the plan's are
            not read.

    Raises:
        ValueError: too few frames, or a clip in whose first frame fewer than 2 points are to be seen; and as
            :func:`write_tracks`.
    """
    frames = len(tracks.xy)
    plan = plan if plan.source_frames else plan.resolved(frames)
    if frames < plan.output_frames:
        raise ValueError(
            f"the tracks have {frames} frames, but the plan's {plan.clips} clips need {plan.output_frames}: track the whole "
            f"video at {plan.fps} frames per second, or shorten the plan's source length"
        )
    clips = [_cut(tracks, plan, clip) for clip in range(plan.clips)]
    return _write_clips(clips.__getitem__, dense, plan, folder, style, progress)


def clip_file(folder: Path, clip: int) -> Path:
    """Where a clip's drawn tracks are written."""
    return folder / f"track_{clip:03d}.mkv"


def _write_clips(
    tracks_of: Callable[[int], Tracks],
    dense: Control,
    plan: ClipPlan,
    folder: Path,
    style: str,
    progress: Callable[[int, int], object] | None,
) -> Control:
    """Draw each clip's tracks, with z from the dense control, unless its file is there."""
    if dense.modality != "dense":
        raise ValueError(f"{dense.paths[0]} is a {dense.modality} control: points take their z from a dense one (depth)")
    dense.window(plan, plan.clips - 1)  # too short a control is an error now, not after the clips before it
    folder.mkdir(parents=True, exist_ok=True)
    paths = [clip_file(folder, clip) for clip in range(plan.clips)]
    for clip, path in enumerate(paths):
        if not path.is_file():
            z = depth_to_z(np.stack(list(dense.window(plan, clip))), (plan.width, plan.height))
            tracks = tracks_of(clip)
            checkpoint()
            with VideoWriter(path, plan.width, plan.height, plan.fps, codec="lossless") as writer:
                for picture in draw_clip(hide_occluded(tracks, z), z, style):
                    writer.write(picture)
        if progress is not None:
            progress(clip + 1, plan.clips)
    return Control.from_clips(paths, "sparse")


def _cut(tracks: Tracks, plan: ClipPlan, clip: int) -> Tracks:
    """A clip's part of tracks of the whole video: the points that are there in its first frame."""
    frames = np.minimum(plan.control_frames(clip), plan.source_frames - 1)
    visible = tracks.visible[frames] & inside_frame(tracks.xy[frames], (plan.width, plan.height))
    points = np.flatnonzero(visible[0])
    if len(points) < FEWEST_POINTS:
        raise ValueError(
            f"{len(points)} of the {tracks.xy.shape[1]} tracks are visible inside {plan.width}x{plan.height} in frame "
            f"{frames[0]}, where clip {clip + 1} starts: give at least {FEWEST_POINTS} there, better some thousand; let the "
            "tracker start new points in that frame, or check that its pixels are those of the plan's size"
        )
    return Tracks(tracks.xy[frames][:, points], visible[:, points])


def _pictures(footage: DrivingVideo, plan: ClipPlan, clip: int) -> np.ndarray:
    """A clip's pictures uint8 [T, H, W, 3]; those past the plan's end (tail rule ``"pad"``) repeat the last one."""
    numbers = plan.control_frames(clip)
    pictures = list(footage.read(range(numbers.start, min(numbers.stop, plan.source_frames))))
    pictures.extend(pictures[-1:] * (plan.frames - len(pictures)))
    if pictures[0].shape != (plan.height, plan.width, 3):
        raise ValueError(
            f"the footage's pictures are {list(pictures[0].shape)}, but the plan wants {plan.width}x{plan.height}: open the "
            "video at the plan's size"
        )
    return np.stack(pictures)


def _tracks_of(tracker: Tracker, pictures: np.ndarray, points: np.ndarray) -> Tracks:
    """What a tracker gives, checked."""
    tracks = tracker.track(pictures, points)
    shape = (len(pictures), len(points))
    if tracks.xy.shape != (*shape, 2) or tracks.visible.shape != shape:
        raise ValueError(
            f"the tracker gave positions {list(tracks.xy.shape)} and visibility {list(tracks.visible.shape)} for {shape[1]} "
            f"points in {shape[0]} frames: they must be [{shape[0]}, {shape[1]}, 2] and [{shape[0]}, {shape[1]}]"
        )
    return tracks
