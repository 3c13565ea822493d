"""Track control of a whole driving video: followed clip by clip, drawn, written (P1 section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...media.write import VideoWriter
from ...plan import ClipPlan
from ..control import Control
from .draw import depth_to_z, reference_grid, render_tracks
from .motion import inside_frame
from .types import Tracker, Tracks, Video

FEWEST_POINTS = 2
"""What drawing needs: the rectangles' size is the points' distance."""

NEARER = 0.05
"""Rise of z (0 = far, 1 = near) from one frame to the next that says that something came in front."""

NEARER_A_FRAME = 0.01
"""Rise of z in a frame that a point's own course may have while it is not seen."""


# --- from a video to drawn tracks -------------------------------------------------------------------------------


def write_tracks(
    footage: Video,
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

    Each clip has its own grid (:func:`.render.reference_grid`), laid out in its first frame. One clip is held at a time. A file
    that is there already is kept, so that a run that was cut short goes on: the folder must belong to these inputs and settings
    alone.

    Args:
        footage: the driving video at the plan's rate and size.
        dense: its dense control, where the points' z comes from.
        plan: clips; where it does not know its source length, it takes the footage's.
        grid: points a side (reference 50; P1 and P2 name 4,900 points, which is 70).
        style: see :func:`.render.render_tracks`.
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
        lambda clip: _followed(tracker, _pictures(footage, plan, clip), points), dense, plan, folder, style, progress
    )


def write_given_tracks(
    tracks: Tracks,
    dense: Control,
    plan: ClipPlan,
    folder: Path,
    *,
    style: str = "reference",
    progress: Callable[[int, int], object] | None = None,
) -> Control:
    """Draw tracks of the whole video, whoever followed them, as :func:`write_tracks` draws its own.

    Each clip has those points that are visible inside the picture in the clip's own first frame.

    Args:
        tracks: of the whole video at the plan's rate and size, see :func:`given_tracks`; frames beyond the plan's are not read.

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


def given_tracks(path: np.ndarray, visibility: np.ndarray | None) -> Tracks:
    """Another tracker's result, checked.

    Args:
        path: ``[T, N, 2]``, x and y in pixels.
        visibility: ``[T, N]``, or one column or row for all; more than 0.5 (or true) is visible. None = always visible.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    if path.ndim != 3 or path.shape[2] != 2:
        raise ValueError(f"track_path has the shape {list(path.shape)}: give [frames, tracks, 2], x and y in pixels")
    if path.size == 0:
        raise ValueError(f"track_path has {path.shape[1]} tracks of {path.shape[0]} frames: there is nothing to draw")
    broken = np.argwhere(~np.isfinite(path).all(axis=2))
    if len(broken):
        frame, track = broken[0]
        raise ValueError(
            f"track {track} is {path[frame, track].tolist()} in frame {frame}: give finite x and y, and mark in "
            "track_visibility where a point is not seen"
        )
    if np.abs(path).max() <= 1:
        raise ValueError(
            "all of track_path lies between -1 and 1, as shares of the picture do: give x and y in pixels of the plan's size"
        )
    if visibility is None:
        return Tracks(path.astype(np.float32), np.ones(path.shape[:2], bool))
    frames, tracks = path.shape[:2]
    if visibility.ndim != 2 or visibility.shape[0] not in (1, frames) or visibility.shape[1] not in (1, tracks):
        raise ValueError(
            f"track_visibility has the shape {list(visibility.shape)}, but track_path {list(path.shape)}: give "
            f"[{frames}, {tracks}], frames and tracks"
        )
    return Tracks(path.astype(np.float32), np.array(np.broadcast_to(visibility > 0.5, (frames, tracks))))


def draw_clip(tracks: Tracks, z: np.ndarray, style: str = "reference") -> Iterator[np.ndarray]:
    """Draw a clip's tracks in the size of its depth ``z`` (float ``[T, H, W]``, near = 1): uint8 RGB ``[H, W, 3]`` a frame."""
    return render_tracks(clip_points(tracks, z), tracks.visible, z.shape[2], z.shape[1], style)


def clip_points(tracks: Tracks, z: np.ndarray) -> np.ndarray:
    """Tracks in 3-D, as :func:`.render.render_tracks` wants them.

    A visible point's z is the depth map's at the nearest pixel: between two pixels on an edge, a mean would be a depth at which
    nothing is. A hidden point's own z shows nowhere: it runs straight from where it was last seen to where it is next seen.

    Args:
        tracks: T frames, N points.
        z: float ``[T, H, W]``, near = 1, far = 0, see :func:`.render.depth_to_z`.

    Returns:
        float32 ``[T, N, 3]``: x, y in pixels and z.
    """
    at_points = _z_at(tracks.xy, z)
    frame = np.arange(len(z))[:, None]
    before = np.maximum.accumulate(np.where(tracks.visible, frame, -1))
    after = np.minimum.accumulate(np.where(tracks.visible, frame, len(z))[::-1])[::-1]
    never = (before < 0) & (after == len(z))
    first, last = np.where(before < 0, after, before), np.where(after == len(z), before, after)
    first, last = np.where(never, frame, first), np.where(never, frame, last)
    share = (frame - first) / np.maximum(last - first, 1)
    own = (1 - share) * np.take_along_axis(at_points, first, 0) + share * np.take_along_axis(at_points, last, 0)
    return np.concatenate([tracks.xy, own[..., None]], axis=-1).astype(np.float32)


def hide_occluded(tracks: Tracks, z: np.ndarray) -> Tracks:
    """Tracks without those visible points at which the depth is suddenly much nearer than on the point's own course.

    The course is the z at which the point was last seen; the longer ago that was, the more it may have come nearer itself. Any
    tracker profits: what drifts onto something that passes in front looks steady in the picture.

    Args:
        tracks: T frames, N points.
        z: float ``[T, H, W]``, near = 1, far = 0.
    """
    at_points = _z_at(tracks.xy, z)
    visible = tracks.visible.copy()
    course, unseen = at_points[0].copy(), np.zeros(visible.shape[1])
    for now, seen in zip(at_points[1:], visible[1:], strict=True):
        seen &= now - course <= NEARER + NEARER_A_FRAME * unseen
        course[seen] = now[seen]
        unseen = np.where(seen, 0, unseen + 1)
    return Tracks(tracks.xy, visible)


def _z_at(xy: np.ndarray, z: np.ndarray) -> np.ndarray:
    """z ``[T, N]`` at the pixels nearest to points ``[T, N, 2]``; outside the picture, at its edge."""
    if len(xy) != len(z):
        raise ValueError(f"the tracks have {len(xy)} frames, but the depth has {len(z)}: give both of the same clip")
    column, row = (np.clip(np.rint(xy[..., axis]), 0, z.shape[2 - axis] - 1).astype(np.intp) for axis in (0, 1))
    return z[np.arange(len(z))[:, None], row, column]


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
    paths = [folder / f"track_{clip:03d}.mkv" for clip in range(plan.clips)]
    for clip, path in enumerate(paths):
        if not path.is_file():
            z = depth_to_z(np.stack(list(dense.window(plan, clip))), (plan.width, plan.height))
            tracks = tracks_of(clip)
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
    there = np.flatnonzero(visible[0])
    if len(there) < FEWEST_POINTS:
        raise ValueError(
            f"{len(there)} of the {tracks.xy.shape[1]} tracks are visible inside {plan.width}x{plan.height} in frame "
            f"{frames[0]}, where clip {clip + 1} starts: give at least {FEWEST_POINTS} there, better some thousand; let the "
            "tracker start new points in that frame, or check that its pixels are those of the plan's size"
        )
    return Tracks(tracks.xy[frames][:, there], visible[:, there])


def _pictures(footage: Video, plan: ClipPlan, clip: int) -> np.ndarray:
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


def _followed(tracker: Tracker, pictures: np.ndarray, points: np.ndarray) -> Tracks:
    tracks = tracker.track(pictures, points)
    shape = (len(pictures), len(points))
    if tracks.xy.shape != (*shape, 2) or tracks.visible.shape != shape:
        raise ValueError(
            f"the tracker gave positions {list(tracks.xy.shape)} and visibility {list(tracks.visible.shape)} for {shape[1]} "
            f"points in {shape[0]} frames: they must be [{shape[0]}, {shape[1]}, 2] and [{shape[0]}, {shape[1]}]"
        )
    return tracks
