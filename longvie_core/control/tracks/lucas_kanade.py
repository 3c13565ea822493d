"""Points followed by pyramidal Lucas-Kanade, checked against templates of their first frame; no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .follow import EPSILON, HINDSIGHT, Followed, follow
from .motion import OWN_WEIGHT, Motion, fit_motion, stand_still, turn_vectors
from .templates import (
    Templates,
    match_brightness,
    patch_correlation,
    patch_grid,
    patch_similarity,
    patch_structure,
    sample_at,
    tile_patches,
)
from .types import Tracks

SLACK = 6
"""Pixels to each side in which a template is searched for."""

MOST_CORRECTION, MOST_FIND = 3.0, 12.0
"""Pixels that a template may move a point which was followed, and one that is looked for."""

COARSE = 2
"""Pixels between the samples of a template with which lost points are looked for first: a search twice as wide."""

TEXTURE_WEIGHT = 8.0
"""Squared grey levels a pixel: with this slope, a patch's own match and its neighbours' motion count the same."""

ASTRAY = 2.0
"""Pixels between a match and its neighbours' motion at which that motion counts half."""

LEAST_TEXTURE = 1.0
"""Squared grey levels a pixel: with less slope in all directions, a patch has nothing to match."""

ROUNDING = 0.5
"""Grey levels: variation that 8 bits cannot show."""

LEAST_TRUST = 0.01
"""Weight of a point whose patch is nothing but noise, where 1 is that of one that stays the same from frame to frame."""

RENEW_BELOW, RENEW_ABOVE = 0.85, 0.8
"""A template is replaced when its similarity falls below the first, by a picture where it was still above the second."""

RENEW_AGREEMENT = 0.7
"""Pixels between a point and its neighbours' motion, up to which its place is sure enough for a new template."""

PIECE = 512
"""Points whose patches are searched for at once: the arrays in work fit a core's cache, however many points there are."""


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
        return follow(frames, points, lambda checked: _Run(self, _greys(frames), checked))


def _greys(frames: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    import cv2

    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]


class _Run(Followed):
    """One clip being tracked by templates: ``base`` is the frame that each point's template comes from; ``sure`` ``[T, N]``
    whether its place agrees with its neighbours' motion.
    """

    def __init__(self, settings: LucasKanade, greys: list[np.ndarray], points: np.ndarray) -> None:
        super().__init__(len(greys), greys[0].shape[::-1], points, settings.neighbours)
        self.settings, self.greys = settings, greys
        self.sure, self.similarity = np.zeros(self.visible.shape, bool), np.zeros(self.visible.shape, np.float32)
        self.sure[0], self.similarity[0] = self.visible[0], 1
        self.templates = Templates(greys[0], points, settings.window)

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

    def _steady_motion(self, frame: int, which: np.ndarray, place: np.ndarray) -> Motion:
        """Motions from the templates' frames to ``place`` [N, 2] of points that could be followed."""
        if not len(which):
            return stand_still(place[which])
        nearest, weight = self._neighbours(which, which)
        base = self.base[which]
        own = OWN_WEIGHT * self.trust[which]
        return fit_motion(self.xy[base, which], self.xy[base[:, None], nearest], place[nearest], weight, place[which], own)

    def _found_again(self, frame: int, which: np.ndarray, motion: Motion) -> _Match:
        """Search for lost templates, also wider than for others."""
        match = self._search(frame, which, motion.place, motion, 1)
        wide = self._search(frame, which, motion.place, motion, COARSE)
        again = self._search(frame, which, wide.xy, motion, 1)
        better = again.found & (again.similarity > match.similarity)
        for part, new in zip(match, again, strict=True):
            part[better] = new[better]
        return match

    def _take(
        self, frame: int, which: np.ndarray, start: np.ndarray, motion: Motion, match: _Match, least: float, most: float
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

    def _search(self, frame: int, which: np.ndarray, start: np.ndarray, motion: Motion, step: int) -> _Match:
        """Search for the templates of the points ``which`` around ``start`` [n, 2], with a sample every ``step`` pixels."""
        pieces = [slice(first, first + PIECE) for first in range(0, max(len(which), 1), PIECE)]
        matches = [self._search_piece(frame, which[piece], start[piece], motion.linear[piece], step) for piece in pieces]
        return _Match(*(np.concatenate(parts) for parts in zip(*matches, strict=True)))

    def _search_piece(self, frame: int, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int) -> _Match:
        now, side = self.greys[frame], self.settings.window
        shift = self._kept_inside(which, start, linear, step)
        template = self.templates.sample(which, shift, linear, side + 2 * SLACK, step)
        centre = start + shift
        window = sample_at(now, patch_grid(centre, np.eye(2), side + 2 * SLACK, step))
        inner = (slice(None), *[slice(SLACK, -SLACK)] * 2)
        lit = match_brightness(template, window, inner)
        offset, found = _offsets(lit, window, self.settings)
        match = sample_at(now, patch_grid(centre + step * offset, np.eye(2), side, step))
        similarity = patch_similarity(template[inner], match)
        trust = np.maximum(np.maximum(patch_correlation(template[inner], match, ROUNDING), 0) ** 2, LEAST_TRUST)
        return _Match(start + step * offset, found, similarity, trust, patch_structure(template[inner]))

    def _kept_inside(self, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int) -> np.ndarray:
        """Offsets [n, 2] from the points to the centres of windows that stay inside both pictures, as far as that goes.

        What lies beyond an edge is not known; the point's surface goes on at the other side of it.
        """
        half = (self.settings.window // 2 + 1) * step
        low, high = np.full(2, half), np.maximum(self.size - 1 - half, half)
        base = self.xy[self.base[which], which]
        shift = turn_vectors(linear, np.clip(base, low, high) - base)
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


class _Match(NamedTuple):
    """What a search for templates gave: places [n, 2], whether it ended, similarity, trust, and the templates' structure
    tensors."""

    xy: np.ndarray
    found: np.ndarray
    similarity: np.ndarray
    trust: np.ndarray
    structure: np.ndarray


def _weighed(match: np.ndarray, motion: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Places [N, 2] between neighbours' motion and own match: the more texture along a direction, the nearer to the match.

    The farther the match, the less the neighbours' motion counts: it belongs to something else then.
    """
    off = match - motion
    doubt = 1 + np.square(off / ASTRAY).sum(axis=1)
    prior = (TEXTURE_WEIGHT / doubt)[:, None, None] * np.eye(2)
    return motion + turn_vectors(np.linalg.solve(structure + prior, structure), off)


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
    found, ended = _optical_flow(tile_patches(templates, columns), tile_patches(windows, columns), centre, settings, 0)
    offset = found - centre
    ended &= np.abs(offset).max(axis=1) < SLACK
    return np.where(ended[:, None], offset, 0), ended
