"""Point tracks of a clip from its pictures and its depth: followed, lifted to 3-D and drawn as the sparse control.

P1 section 3.1 and P2 section 3.1 follow a regular grid of points per clip, from the clip's own first frame: over a whole minute
the first frame's content leaves the picture. Any :class:`Tracker` may follow them: :class:`LucasKanade` needs no weights,
:class:`FlowTracker` turns dense optical flow into tracks, and tracks that are there already need none (:func:`given_tracks`).

Pixel centres lie at whole coordinates: a picture spans -0.5 .. width-0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree

from ..clips import ClipPlan
from ..video import VideoWriter
from .render import depth_to_z, reference_grid, render_tracks
from .signal import Control

EPSILON = 0.01
"""Pixels: Lucas-Kanade iterations end when they move less."""

SLACK = 6
"""Pixels to each side in which a template is searched for."""

MOST_CORRECTION, MOST_FIND = 3.0, 12.0
"""Pixels that a template may move a point which was followed, and one that is looked for."""

COARSE = 2
"""Pixels between the samples of a template with which lost points are looked for first: a search twice as wide."""

NOISE = 4.0
"""Grey levels: patches that vary less look alike, whatever their pattern; what makes two flat patches match."""

BRIGHTNESS_SLACK, BRIGHTNESS_RANGE = 10.0, 60.0
"""Grey levels by which the mean may change freely, and by which it may change beyond that before nothing is alike."""

TEXTURE_WEIGHT = 8.0
"""Squared grey levels a pixel: with this slope, a patch's own match and its neighbours' motion count the same."""

ASTRAY = 2.0
"""Pixels between a match and its neighbours' motion at which that motion counts half."""

LEAST_TEXTURE = 1.0
"""Squared grey levels a pixel: with less slope in all directions, a patch has nothing to match."""

OWN_WEIGHT = 6.0
"""Weight of a point's own motion among its neighbours', each of them at most 1."""

LEAST_WEIGHT, HOLD_WEIGHT = 1e-3, 1e-9
"""Least factor of a neighbour's weight, and the weight of a point's last place where it has no neighbours to speak of."""

ROUNDING = 0.5
"""Grey levels: variation that 8 bits cannot show."""

LEAST_TRUST = 0.01
"""Weight of a point whose patch is nothing but noise, where 1 is that of one that stays the same from frame to frame."""

CAUCHY = 0.7
"""Pixels off the common motion at which a neighbour counts half."""

GRADIENT = 0.15
"""Pixels a pixel by which motion may vary across a surface before the first fit takes a neighbour for part of another one."""

FIT_ROUNDS = 4
RIDGE = 0.005
"""Pull of a local motion towards pure translation, as a share of its evidence."""

HINDSIGHT = 2
"""Frames: what covers a point disturbs it before it is lost, so its motion up to that long before is trusted, and a new
template is taken from that long ago."""

RENEW_BELOW, RENEW_ABOVE = 0.85, 0.8
"""A template is replaced when its similarity falls below the first, by a picture where it was still above the second."""

RENEW_AGREEMENT = 0.7
"""Pixels between a point and its neighbours' motion, up to which its place is sure enough for a new template."""

PIECE = 512
"""Points whose patches are searched for at once: the arrays in work fit a core's cache, however many points there are."""

FLOW_SHARE, FLOW_SLACK = 0.01, 0.5
"""Flow there and back may miss its start by this share of both flows' squared lengths, plus this, in squared pixels (Sundaram,
Brox and Keutzer 2010)."""

MOST_DRIFT = 6.0
"""Pixels between two accounts of a point's place, the flow from frame to frame and the one straight from the first frame, up
to which both mean the same point."""

FEWEST_POINTS = 2
"""What drawing needs: the rectangles' size is the points' distance."""

NEARER = 0.05
"""Rise of z (0 = far, 1 = near) from one frame to the next that says that something came in front."""

NEARER_A_FRAME = 0.01
"""Rise of z in a frame that a point's own course may have while it is not seen."""


@dataclass(frozen=True)
class Tracks:
    """Where N points of a clip's first frame are in its T frames.

    Attributes:
        xy: float32 ``[T, N, 2]`` in pixels, always finite: where a point is hidden or lost, a guess.
        visible: bool ``[T, N]``: inside the picture and not hidden.
    """

    xy: np.ndarray
    visible: np.ndarray


class Tracker(Protocol):
    """What follows points through the pictures of one clip."""

    def track(self, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> Tracks:
        """Follow ``points`` (float32 ``[N, 2]``, x and y in pixels of frame 0) through ``frames`` (uint8 ``[T, H, W, 3]``)."""
        ...


class Video(Protocol):
    """What :func:`write_tracks` needs of a driving video (:class:`longvie_core.framing.Footage` is one)."""

    @property
    def frames(self) -> int: ...

    def read(self, numbers: range) -> Iterator[np.ndarray]: ...


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
    visible = tracks.visible[frames] & _within(tracks.xy[frames], (plan.width, plan.height))
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


# --- Lucas-Kanade -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2000, OpenCV's) made to last a clip, without weights; equal input gives equal tracks.

    Each frame:

    1. Visible points move from the frame before by pyramidal Lucas-Kanade, and are let go where the way back does not end where
       it started.
    2. Every point gets a local affine motion from the template's frame to this one: a robust fit to its nearest neighbours that
       could be followed, in which those count that moved as the point did while it was seen. It tells where lost points are.
    3. The point's template, warped by that motion, is searched for around the place so found, which takes out the drift that
       step 1 adds up; and lost points are found again. Where the picture has no texture, in one direction or in both, the
       neighbours' motion stands in.
    4. A point is visible if it is inside the picture and the template matches (normalised cross-correlation).

    Templates come from the clip's first frame, and are replaced when the view of a surface has changed too much.

    Attributes:
        window: side of the compared patches in pixels, odd.
        levels: pyramid levels above the picture itself; each doubles the motion that can be followed.
        iterations: most steps a level.
        forward_backward: pixels that the way forward and back may miss its start by.
        neighbours: how many the local motion is fitted to.
        keep, find: least similarity (1 = same) of a point that was visible in the frame before, and of a lost one.
    """

    window: int = 13
    levels: int = 4
    iterations: int = 30
    forward_backward: float = 1.0
    neighbours: int = 12
    keep: float = 0.6
    find: float = 0.8

    def __post_init__(self) -> None:
        if self.window < 5 or self.window % 2 == 0:
            raise ValueError(f"window {self.window}: give an odd number of pixels, at least 5 (13 suits 640x352)")
        for name, least in (("levels", 0), ("iterations", 1), ("neighbours", 3)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: give at least {least}")
        if not self.forward_backward > 0:
            raise ValueError(f"forward_backward {self.forward_backward}: give pixels, more than 0")

    def track(self, frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray) -> Tracks:
        """Follow points through a clip.

        Args:
            frames: uint8 RGB ``[T, H, W, 3]``, T at least 1, any size.
            points: ``[N, 2]``, x and y in pixels of frame 0; N may be 0. Points outside the picture have nothing to be known
                by: they are carried along with the others, and never visible.

        Raises:
            ValueError: frames or points of another shape or type, or points that are not finite.
        """
        return _follow(frames, points, lambda checked: _Run(self, _greys(frames), checked))


def _follow(
    frames: Sequence[np.ndarray] | np.ndarray, points: np.ndarray, begin: Callable[[np.ndarray], _Run | _FlowRun]
) -> Tracks:
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


def _greys(frames: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    import cv2

    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]


class _Followed:
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
        return _within(xy, self.size)

    def _neighbours(self, which: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each point of ``which`` the nearest of ``anchors`` in frame 0, [n, K], and their weights."""
        near = min(self.neighbours + 1, len(anchors))
        distance, nearest = KDTree(self.xy[0, anchors]).query(self.xy[0, which], k=range(1, near + 1))
        nearest = anchors[nearest]
        closeness = 1 / (1 + (distance / np.maximum(distance.mean(axis=1, keepdims=True), EPSILON)) ** 2)
        known = self.visible[self.base[which, None], nearest]
        weight = closeness * self.trust[nearest] * np.maximum(known, LEAST_WEIGHT)
        return nearest, np.where(nearest == which[:, None], 0, weight)

    def _carried_motion(self, frame: int, which: np.ndarray, anchors: np.ndarray) -> _Motion:
        """Motions from their base frames to ``frame`` of lost points, with the visible ``anchors``."""
        last = self.xy[frame - 1, which]
        if not (len(which) and len(anchors)):
            return _still(last)
        nearest, weight = self._neighbours(which, anchors)
        base = self.base[which]
        origin, source = self.xy[base, which], self.xy[base[:, None], nearest]
        # First up to the frame in which the point itself was last there: it shows which neighbours move as it does.
        known = np.maximum(self.seen[which] - HINDSIGHT, base)
        there = weight * self.visible[known[:, None], nearest]
        own = OWN_WEIGHT * self.trust[which]
        past = _fit_motion(origin, source, self.xy[known[:, None], nearest], there, self.xy[known, which], own)
        alike = np.maximum(there * past.agreement**2, LEAST_WEIGHT * weight)
        return _fit_motion(origin, source, self.xy[frame, nearest], alike, last, np.full(len(which), HOLD_WEIGHT))


class _Run(_Followed):
    """One clip being tracked by templates: ``base`` is the frame that each point's template comes from; ``sure`` ``[T, N]``
    whether its place agrees with its neighbours' motion.
    """

    def __init__(self, settings: LucasKanade, greys: list[np.ndarray], points: np.ndarray) -> None:
        super().__init__(len(greys), greys[0].shape[::-1], points, settings.neighbours)
        self.settings, self.greys = settings, greys
        self.sure, self.similarity = np.zeros(self.visible.shape, bool), np.zeros(self.visible.shape, np.float32)
        self.sure[0], self.similarity[0] = self.visible[0], 1
        self.templates = _Templates(greys[0], points, settings.window)

    def step(self, frame: int) -> None:
        """Find all points in ``frame``; the frames before are done."""
        place, followed = self._flow(frame)
        motion = self._steady_motion(frame, followed, place)
        match = self._search(frame, followed, place[followed], motion, 1)
        matched = self._take(frame, followed, place[followed], motion, match, self.settings.keep, MOST_CORRECTION)
        off = np.linalg.norm(self.xy[frame, followed] - motion.place, axis=1)
        self.sure[frame, followed] = matched & (off < RENEW_AGREEMENT)

        lost = np.flatnonzero(~self.visible[frame])
        motion = self._carried_motion(frame, lost, np.flatnonzero(self.visible[frame]))
        self.xy[frame, lost] = motion.place
        within = self._inside(motion.place)
        lost, motion = lost[within], motion.of(within)
        match = self._found_again(frame, lost, motion)
        self._take(frame, lost, motion.place, motion, match, self.settings.find, MOST_FIND)
        self.seen[self.visible[frame]] = frame
        self._renew_templates(frame)

    def _flow(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [N, 2] by optical flow from the frame before, and the numbers of the visible points that it could follow."""
        place = self.xy[frame - 1].copy()
        active = np.flatnonzero(self.visible[frame - 1])
        if not len(active):
            return place, active
        before, now = self.greys[frame - 1 : frame + 1]
        there, arrived = _optical_flow(before, now, place[active], self.settings, self.settings.levels)
        back, returned = _optical_flow(now, before, there, self.settings, self.settings.levels)
        missed = np.linalg.norm(back - place[active], axis=1)
        holds = arrived & returned & (missed < self.settings.forward_backward) & self._inside(there)
        place[active[holds]] = there[holds]
        return place, active[holds]

    def _steady_motion(self, frame: int, which: np.ndarray, place: np.ndarray) -> _Motion:
        """Motions from the templates' frames to ``place`` [N, 2] of points that could be followed."""
        if not len(which):
            return _still(place[which])
        nearest, weight = self._neighbours(which, which)
        base = self.base[which]
        own = OWN_WEIGHT * self.trust[which]
        return _fit_motion(self.xy[base, which], self.xy[base[:, None], nearest], place[nearest], weight, place[which], own)

    def _found_again(self, frame: int, which: np.ndarray, motion: _Motion) -> _Match:
        """Search for lost templates, also wider than for others."""
        match = self._search(frame, which, motion.place, motion, 1)
        wide = self._search(frame, which, motion.place, motion, COARSE)
        again = self._search(frame, which, wide.xy, motion, 1)
        better = again.found & (again.similarity > match.similarity)
        for part, new in zip(match, again, strict=True):
            part[better] = new[better]
        return match

    def _take(
        self, frame: int, which: np.ndarray, start: np.ndarray, motion: _Motion, match: _Match, least: float, most: float
    ) -> np.ndarray:
        """Put the points ``which`` into ``frame``: where they match, or at ``start`` [n, 2]. Returns which of them match.

        Args:
            least: similarity of a match.
            most: pixels between it and ``start``.
        """
        flat = np.trace(match.structure, axis1=1, axis2=2) < LEAST_TEXTURE
        near = match.found & (np.linalg.norm(match.xy - start, axis=1) < most)
        place = np.where((flat | ~match.found)[:, None], start, match.xy)
        place = _weighed(place, motion.place, match.structure * match.trust[:, None, None])
        matched = (flat | near) & (match.similarity >= least) & self._inside(place)
        matched &= self.visible[self.base[which], which]
        self.xy[frame, which] = np.where(matched[:, None], place, start)
        self.visible[frame, which] = matched
        self.similarity[frame, which] = match.similarity
        self.trust[which[matched]] = match.trust[matched]
        return matched

    def _search(self, frame: int, which: np.ndarray, start: np.ndarray, motion: _Motion, step: int) -> _Match:
        """Search for the templates of the points ``which`` around ``start`` [n, 2], with a sample every ``step`` pixels."""
        pieces = [slice(first, first + PIECE) for first in range(0, max(len(which), 1), PIECE)]
        matches = [self._search_piece(frame, which[piece], start[piece], motion.linear[piece], step) for piece in pieces]
        return _Match(*(np.concatenate(parts) for parts in zip(*matches, strict=True)))

    def _search_piece(self, frame: int, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int) -> _Match:
        now, side = self.greys[frame], self.settings.window
        shift = self._kept_inside(which, start, linear, step)
        template = self.templates.sample(which, shift, linear, side + 2 * SLACK, step)
        centre = start + shift
        window = _sample(now, _spread(centre, np.eye(2), side + 2 * SLACK, step))
        inner = (slice(None), *[slice(SLACK, -SLACK)] * 2)
        lit = _as_bright_as(template, window, inner)
        offset, found = _offsets(lit, window, self.settings)
        match = _sample(now, _spread(centre + step * offset, np.eye(2), side, step))
        similarity = _similarity(template[inner], match)
        trust = np.maximum(np.maximum(_correlation(template[inner], match, ROUNDING), 0) ** 2, LEAST_TRUST)
        return _Match(start + step * offset, found, similarity, trust, _structure(template[inner]))

    def _kept_inside(self, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int) -> np.ndarray:
        """Offsets [n, 2] from the points to the centres of windows that stay inside both pictures, as far as that goes.

        What lies beyond an edge is not known; the point's surface goes on at the other side of it.
        """
        half = (self.settings.window // 2 + 1) * step
        low, high = np.full(2, half), np.maximum(self.size - 1 - half, half)
        base = self.xy[self.base[which], which]
        shift = _turned(linear, np.clip(base, low, high) - base)
        shift = np.clip(start + shift, low, high) - start
        return np.clip(shift, -self.settings.window * step, self.settings.window * step)

    def _renew_templates(self, frame: int) -> None:
        earlier = frame - HINDSIGHT
        if earlier < 1:
            return
        worn = (self.similarity[frame] < RENEW_BELOW) & (self.similarity[earlier] >= RENEW_ABOVE)
        worn &= self.sure[frame] & self.sure[earlier] & (earlier > self.base)
        self.base[worn] = earlier
        self.templates.put(np.flatnonzero(worn), self.greys[earlier], self.xy[earlier, worn])


class _Motion(NamedTuple):
    """Affine motions: where they bring the points, float64 [N, 2], linear parts [N, 2, 2], neighbours' agreement [N, K]."""

    place: np.ndarray
    linear: np.ndarray
    agreement: np.ndarray

    def of(self, which: np.ndarray) -> _Motion:
        """The motions of some of the points."""
        return _Motion(*(part[which] for part in self))


class _Match(NamedTuple):
    """What a search for templates gave: places [n, 2], whether it ended, similarity, trust, and the templates' structure
    tensors."""

    xy: np.ndarray
    found: np.ndarray
    similarity: np.ndarray
    trust: np.ndarray
    structure: np.ndarray


def _within(xy: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] are inside a picture of this width and height."""
    return np.all((xy >= -0.5) & (xy < np.asarray(size) - 0.5), axis=-1)


def _still(place: np.ndarray) -> _Motion:
    """No motion to be known: points stay at their places [n, 2]."""
    return _Motion(place, np.tile(np.eye(2), (len(place), 1, 1)), np.zeros((len(place), 0)))


def _fit_motion(
    origin: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray, own: np.ndarray, own_weight: np.ndarray
) -> _Motion:
    """Affine motions ``target - place = linear @ (source - origin)``, each fitted to K neighbours and the point itself.

    Least squares with Cauchy weights, repeated; the linear part is drawn towards the identity. Where a point's own motion is
    known, those neighbours come first that moved much as it did: near the edge of a surface the others may be the majority. A
    neighbour's agreement is its last Cauchy weight, 0 .. 1.

    Args:
        origin, own: the points before and after, [N, 2].
        source, target: their neighbours before and after, [N, K, 2].
        weight, own_weight: of the neighbours [N, K] and of the points themselves [N].
    """
    before = np.concatenate([source - origin[:, None], np.zeros_like(origin)[:, None]], axis=1).astype(np.float64)
    moved = np.concatenate([target, own[:, None]], axis=1) - origin[:, None] - before
    weight = np.concatenate([weight, own_weight[:, None]], axis=1)
    design = np.concatenate([np.ones_like(before[..., :1]), before], axis=-1)
    spread = np.square(before).sum(axis=-1).mean(axis=1)
    apart = np.linalg.norm(moved - moved[:, -1:], axis=-1) / (CAUCHY + GRADIENT * np.linalg.norm(before, axis=-1))
    agreement = np.where(own_weight[:, None] > HOLD_WEIGHT, 1 / (1 + apart**2), 1)
    for _ in range(FIT_ROUNDS):
        effective = weight * agreement
        weighted = (design * effective[..., None]).transpose(0, 2, 1)
        normal = weighted @ design
        normal[:, [1, 2], [1, 2]] += (RIDGE * effective.sum(axis=1) * spread)[:, None] + 1e-15
        motion = np.linalg.solve(normal, weighted @ moved)
        residual = np.linalg.norm(design @ motion - moved, axis=-1)
        agreement = 1 / (1 + (residual / CAUCHY) ** 2)
    return _Motion(origin + motion[:, 0], _tamed(np.eye(2) + motion[:, 1:].transpose(0, 2, 1)), agreement[:, :-1])


def _tamed(linear: np.ndarray) -> np.ndarray:
    """Linear maps [N, 2, 2], the identity in place of what folds a surface over or changes its area tenfold."""
    area = np.linalg.det(linear)
    return np.where(((area > 0.1) & (area < 10))[:, None, None], linear, np.eye(2))


def _turned(linear: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``linear @ vector`` for [N, 2, 2] and [N, 2]."""
    return (linear @ vectors[..., None])[..., 0]


def _weighed(match: np.ndarray, motion: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Places [N, 2] between neighbours' motion and own match: the more texture along a direction, the nearer to the match.

    The farther the match, the less the neighbours' motion counts: it belongs to something else then.
    """
    off = match - motion
    doubt = 1 + np.square(off / ASTRAY).sum(axis=1)
    prior = (TEXTURE_WEIGHT / doubt)[:, None, None] * np.eye(2)
    return motion + _turned(np.linalg.solve(structure + prior, structure), off)


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
        return _follow(frames, points, lambda checked: _FlowRun(self, frames, checked))


class _FlowRun(_Followed):
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


# --- patches ----------------------------------------------------------------------------------------------------


class _Templates:
    """A patch of each point from the frame in which it was last taken, with room to warp and shift it.

    The patches lie side by side in one picture, so that one call samples them all.
    """

    def __init__(self, picture: np.ndarray, xy: np.ndarray, window: int) -> None:
        self.radius = 2 * window + 2
        self.side = 2 * self.radius + 1
        self.columns = math.ceil(math.sqrt(len(xy)))
        rows = math.ceil(len(xy) / self.columns)
        self.sheet = np.zeros((rows * self.side, self.columns * self.side), np.uint8)
        self.fraction = np.zeros((len(xy), 2))
        self.put(np.arange(len(xy)), picture, xy)

    def put(self, which: np.ndarray, picture: np.ndarray, xy: np.ndarray) -> None:
        """Take new templates of the points ``which`` at ``xy`` [n, 2] in ``picture``."""
        height, width = picture.shape
        centre = np.clip(np.rint(xy), 0, (width - 1, height - 1)).astype(np.intp)
        self.fraction[which] = xy - centre
        padded = np.pad(picture, self.radius, mode="edge")
        patches = np.lib.stride_tricks.sliding_window_view(padded, (self.side, self.side))
        cells = self.sheet.reshape(-1, self.side, self.columns, self.side).transpose(0, 2, 1, 3)
        cells[which // self.columns, which % self.columns] = patches[centre[:, 1], centre[:, 0]]

    def sample(self, which: np.ndarray, shift: np.ndarray, linear: np.ndarray, side: int, step: int) -> np.ndarray:
        """Templates as ``linear`` [n, 2, 2] shows them, uint8 [n, side, side], centred ``shift`` [n, 2] beside the points."""
        back = np.linalg.inv(linear)
        centre = _turned(back, shift) + self.fraction[which] + self.radius
        local = _spread(centre, back, side, step)
        np.clip(local, 0, self.side - 1, out=local)
        local += np.stack([which % self.columns, which // self.columns], axis=1)[..., None] * np.float32(self.side)
        return _sample(self.sheet, local)


def _spread(centre: np.ndarray, linear: np.ndarray, side: int, step: int) -> np.ndarray:
    """Positions of patches around their centres [n, 2], float32 [n, 2, side * side], turned by ``linear`` [.., 2, 2]."""
    steps = (np.arange(side) - (side - 1) / 2) * step
    square = np.stack(np.meshgrid(steps, steps)).reshape(2, -1)
    return linear.astype(np.float32) @ square.astype(np.float32) + centre.astype(np.float32)[..., None]


def _sample(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Square patches uint8 [n, side, side] at positions [n, 2, side * side], bilinear, edges repeated."""
    side = math.isqrt(xy.shape[2])
    if len(xy) == 0:
        return np.zeros((0, side, side), np.uint8)
    x, y = xy.transpose(1, 0, 2)
    # Not cv2.remap: before OpenCV 5 it rounds positions to 1/32 pixel, which adds up over the frames.
    patches = map_coordinates(picture, [y, x], order=1, mode="nearest", output=np.float32)
    return np.rint(patches).astype(np.uint8).reshape(-1, side, side)


def _optical_flow(
    first: np.ndarray, second: np.ndarray, xy: np.ndarray, settings: LucasKanade, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where Lucas-Kanade finds the points [n, 2] of ``first`` in ``second``, and whether it ended."""
    import cv2

    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, settings.iterations, EPSILON)
    window = (settings.window, settings.window)
    points = np.ascontiguousarray(xy[:, None], np.float32)
    found, status, _ = cv2.calcOpticalFlowPyrLK(first, second, points, None, winSize=window, maxLevel=levels, criteria=criteria)
    return found[:, 0], (status[:, 0] > 0) & np.isfinite(found[:, 0]).all(axis=1)


def _offsets(templates: np.ndarray, windows: np.ndarray, settings: LucasKanade) -> tuple[np.ndarray, np.ndarray]:
    """Shifts [n, 2] that bring templates [n, side, side] onto windows of the same size, and whether they were found."""
    count, side = templates.shape[:2]
    if count == 0:
        return np.zeros((0, 2)), np.zeros(0, bool)
    columns = math.ceil(math.sqrt(count))
    number = np.arange(count)
    centre = np.stack([number % columns, number // columns], axis=1) * side + (side - 1) / 2
    found, ended = _optical_flow(_side_by_side(templates, columns), _side_by_side(windows, columns), centre, settings, 0)
    offset = found - centre
    ended &= np.abs(offset).max(axis=1) < SLACK
    return np.where(ended[:, None], offset, 0), ended


def _side_by_side(patches: np.ndarray, columns: int) -> np.ndarray:
    """One picture of square patches [n, side, side], row by row."""
    count, side = patches.shape[:2]
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, side, side), np.uint8)
    cells[:count] = patches
    return np.ascontiguousarray(cells.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, -1))


def _as_bright_as(templates: np.ndarray, windows: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    """Templates with the brightness and, up to a factor of 2, the contrast of their windows, measured in the inner part."""
    mean, wanted_mean = (part[inner].mean(axis=(1, 2), keepdims=True) for part in (templates, windows))
    contrast, wanted = (part[inner].std(axis=(1, 2), keepdims=True) + NOISE for part in (templates, windows))
    lit = (templates - mean) * np.clip(wanted / contrast, 0.5, 2) + wanted_mean
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def _correlation(first: np.ndarray, second: np.ndarray, noise: float) -> np.ndarray:
    """Normalised cross-correlation [n] of patches [n, side, side], where variation below ``noise`` counts as common to both:
    two flat patches are alike, a flat and a textured one are not."""
    inside = (1, 2)
    one, other = first.astype(np.float32), second.astype(np.float32)
    one -= one.mean(inside, keepdims=True)
    other -= other.mean(inside, keepdims=True)
    floor = np.float32(noise**2)
    spread = (np.square(one).mean(inside) + floor) * (np.square(other).mean(inside) + floor)
    return ((one * other).mean(inside) + floor) / np.sqrt(spread)


def _similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How alike patches [n, side, side] are, 1 = same: their correlation, less where the brightness differs much."""
    brightness = np.abs(second.mean(axis=(1, 2)) - first.mean(axis=(1, 2)))
    excess = np.maximum(brightness - BRIGHTNESS_SLACK, 0) / BRIGHTNESS_RANGE
    return _correlation(first, second, NOISE) * np.maximum(1 - excess**2, 0)


def _structure(patches: np.ndarray) -> np.ndarray:
    """Structure tensors [n, 2, 2]: means of the products of the slopes along x and y, in squared grey levels a pixel."""
    down, right = np.gradient(patches.astype(np.float32), axis=(1, 2))
    across, mixed, along = ((a * b).mean(axis=(1, 2)) for a, b in ((right, right), (right, down), (down, down)))
    return np.stack([across, mixed, mixed, along], axis=-1).reshape(-1, 2, 2).astype(np.float64)
