"""Points followed by pyramidal Lucas-Kanade, checked against templates of their first frame; no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .follow import HINDSIGHT, OWN_WEIGHT, Follower, follow
from .motion import Motion, fit_motion, stand_still, turn_vectors
from .sparse_flow import sparse_flow
from .template_search import Match, TemplateSearch
from .templates import Templates
from .types import Tracks


@dataclass(frozen=True)
class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2000, OpenCV's) made to last a clip; equal input gives equal tracks.

    A :class:`.types.Tracker` without weights. Each frame:

    1. Visible points move from the frame before by pyramidal Lucas-Kanade. They are lost where the way back does not end at the
       start.
    2. Every point gets a local affine motion from its template's frame to this one: a robust fit to its nearest neighbours that
       could be followed, above all to those that moved as the point did while it was seen. It tells where lost points are.
    3. The point's template, warped by that motion, is searched for around that place. This takes out the drift that step 1 adds
       up, and finds lost points again. Where the picture has no texture, in one direction or in both, the neighbours' motion
       counts instead of the match.
    4. A point is visible if it is inside the picture and the template matches (normalized cross-correlation).

    Templates come from the clip's first frame, and are replaced when the view of a surface has changed too much.

    Attributes:
        window: side of the compared patches in pixels, odd.
        levels: pyramid levels above the picture itself; each doubles the motion that can be followed.
        iterations: most steps a level.
        forward_backward: pixels that the way forward and back may miss its start by.
        neighbours: how many the local motion is fitted to.
        keep, find: least similarity (1 = same) of a point that was visible in the frame before, and of a lost one.

    Raises:
        ValueError: a setting out of range.
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
            points: ``[N, 2]``, x and y in pixels of frame 0; N may be 0. Points outside the picture show nothing to recognize
                them by: they are carried along with the others, and never visible.

        Raises:
            ValueError: frames or points of another shape or type, or points that are not finite.
        """
        return follow(frames, points, lambda checked: LucasKanadeFollower(self, _greys(frames), checked))


# --- one clip ---------------------------------------------------------------------------------------------------------

MOST_CORRECTION, MOST_FIND = 3.0, 12.0
"""Pixels from where a point is expected to its template's match: the most for a point that was followed, and for a lost one."""

LEAST_TEXTURE = 1.0
"""Squared grey levels a pixel: a patch with less slope has nothing to match; its point follows its neighbours."""

RENEW_BELOW, RENEW_ABOVE = 0.85, 0.8
"""A template that matches less than ``RENEW_BELOW`` is replaced by the frame ``HINDSIGHT`` ago, if it matched at least
``RENEW_ABOVE`` there."""

RENEW_AGREEMENT = 0.7
"""Pixels between a point and its neighbours' motion, up to which its place is sure enough for a new template."""


class LucasKanadeFollower(Follower):
    """Points of one clip, followed by templates; ``base`` is the frame that each point's template comes from.

    Attributes:
        sure: bool ``[T, N]``, whether a point's place agrees with its neighbours' motion.
        similarity: float32 ``[T, N]``, of its match with its template.
    """

    def __init__(self, settings: LucasKanade, greys: list[np.ndarray], points: np.ndarray) -> None:
        super().__init__(len(greys), greys[0].shape[::-1], points, settings.neighbours)
        self.settings, self.greys = settings, greys
        self.sure, self.similarity = np.zeros(self.visible.shape, bool), np.zeros(self.visible.shape, np.float32)
        self.sure[0], self.similarity[0] = self.visible[0], 1
        self.templates = Templates(greys[0], points, settings.window)
        self.search = TemplateSearch(self.templates, settings.iterations)

    def step(self, frame: int) -> None:
        picture = self.greys[frame]
        place, followed = self._flow(frame)
        motion = self._followed_motion(followed, place)
        match = self.search.near(picture, followed, place[followed], motion)
        matched = self._put(frame, followed, place[followed], motion, match, self.settings.keep, MOST_CORRECTION)
        off = np.linalg.norm(self.xy[frame, followed] - motion.place, axis=1)
        self.sure[frame, followed] = matched & (off < RENEW_AGREEMENT)

        lost = np.flatnonzero(~self.visible[frame])
        motion = self.carried_motion(frame, lost, np.flatnonzero(self.visible[frame]))
        self.xy[frame, lost] = motion.place
        within = self.inside(motion.place)
        lost, motion = lost[within], motion.of(within)
        match = self.search.wide(picture, lost, motion)
        self._put(frame, lost, motion.place, motion, match, self.settings.find, MOST_FIND)
        self.last_seen[self.visible[frame]] = frame
        self._renew_templates(frame)

    def _flow(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [N, 2] by optical flow from the frame before, and the numbers of the visible points that it could follow."""
        place = self.xy[frame - 1].copy()
        active = np.flatnonzero(self.visible[frame - 1])
        if not len(active):
            return place, active
        before, now = self.greys[frame - 1 : frame + 1]
        settings = self.settings
        options = {"window": settings.window, "levels": settings.levels, "iterations": settings.iterations}
        there, arrived = sparse_flow(before, now, place[active], **options)
        back, returned = sparse_flow(now, before, there, **options)
        missed = np.linalg.norm(back - place[active], axis=1)
        good = arrived & returned & (missed < settings.forward_backward) & self.inside(there)
        place[active[good]] = there[good]
        return place, active[good]

    def _followed_motion(self, which: np.ndarray, place: np.ndarray) -> Motion:
        """Motions from the templates' frames to ``place`` [N, 2] of points that could be followed."""
        if not len(which):
            return stand_still(place[which])
        nearest, weight = self.neighbours_of(which, which)
        base = self.base[which]
        own = OWN_WEIGHT * self.trust[which]
        return fit_motion(self.xy[base, which], self.xy[base[:, None], nearest], place[nearest], weight, place[which], own)

    def _put(
        self, frame: int, which: np.ndarray, start: np.ndarray, motion: Motion, match: Match, least: float, most: float
    ) -> np.ndarray:
        """Put the points ``which`` into ``frame``: where they match, or at ``start`` [n, 2]. Returns which of them match.

        Args:
            least: similarity of a match.
            most: pixels between it and ``start``.
        """
        flat = np.trace(match.structure, axis1=1, axis2=2) < LEAST_TEXTURE
        near = match.ended & (np.linalg.norm(match.xy - start, axis=1) < most)
        place = np.where((flat | ~match.ended)[:, None], start, match.xy)
        place = _balanced(place, motion.place, match.structure * match.trust[:, None, None])
        matched = (flat | near) & (match.similarity >= least) & self.inside(place)
        matched &= self.visible[self.base[which], which]
        self.xy[frame, which] = np.where(matched[:, None], place, start)
        self.visible[frame, which] = matched
        self.similarity[frame, which] = match.similarity
        self.trust[which[matched]] = match.trust[matched]
        return matched

    def _renew_templates(self, frame: int) -> None:
        earlier = frame - HINDSIGHT
        if earlier < 1:
            return
        outdated = (self.similarity[frame] < RENEW_BELOW) & (self.similarity[earlier] >= RENEW_ABOVE)
        outdated &= self.sure[frame] & self.sure[earlier] & (earlier > self.base)
        self.base[outdated] = earlier
        self.templates.put(np.flatnonzero(outdated), self.greys[earlier], self.xy[earlier, outdated])


def _greys(frames: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    import cv2

    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]


# --- between a match and the neighbours' motion -----------------------------------------------------------------------

TEXTURE_WEIGHT = 8.0
"""Squared grey levels a pixel: with this slope, a patch's own match and its neighbours' motion count the same."""

MISTRUST = 2.0
"""Pixels between a match and its neighbours' motion at which that motion counts half."""


def _balanced(match: np.ndarray, motion: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Places [N, 2] between neighbours' motion and own match: the more texture along a direction, the nearer to the match.

    The farther the two are apart, the less the neighbours' motion counts: they probably belong to something else.
    """
    off = match - motion
    doubt = 1 + np.square(off / MISTRUST).sum(axis=1)
    prior = (TEXTURE_WEIGHT / doubt)[:, None, None] * np.eye(2)
    return motion + turn_vectors(np.linalg.solve(structure + prior, structure), off)
