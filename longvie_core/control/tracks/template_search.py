"""Searching for points' templates in a picture."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .motion import Motion, turn_vectors
from .sparse_flow import sparse_flow
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

REACH = 6
"""Samples to each side in which a template is searched for."""

COARSE_STEP = 2
"""Pixels between samples in the first, wider search for a lost point."""

ROUNDING = 0.5
"""Grey levels: variation that 8 bits cannot show."""

LEAST_TRUST = 0.01
"""Weight of a point whose patch is nothing but noise, where 1 is that of one that stays the same from frame to frame."""

BLOCK = 512
"""Points whose patches are searched for at once: the arrays in work fit a core's cache, however many points there are."""


class Match(NamedTuple):
    """What a search for n templates gave.

    Attributes:
        xy: [n, 2], places in pixels.
        ended: [n], whether the search ended, so that its place means something.
        similarity: [n], 1 = same.
        trust: [n], ``LEAST_TRUST`` .. 1, how much of the patch is more than noise.
        structure: [n, 2, 2], the templates' structure tensors.
    """

    xy: np.ndarray
    ended: np.ndarray
    similarity: np.ndarray
    trust: np.ndarray
    structure: np.ndarray


class TemplateSearch:
    """Searches for templates, warped by their points' motion, around places in a picture.

    Args:
        templates: of the points.
        iterations: most steps of a search.
    """

    def __init__(self, templates: Templates, iterations: int) -> None:
        self.templates = templates
        self.iterations = iterations

    def near(self, picture: np.ndarray, which: np.ndarray, start: np.ndarray, motion: Motion, step: int = 1) -> Match:
        """Search for the templates of the points ``which`` [n] within ``REACH`` samples around ``start`` [n, 2].

        Args:
            picture: uint8 [H, W].
            motion: of the points, from the frames of their templates to this picture.
            step: pixels between two samples.
        """
        blocks = [slice(first, first + BLOCK) for first in range(0, max(len(which), 1), BLOCK)]
        matches = [self._search(picture, which[block], start[block], motion.linear[block], step) for block in blocks]
        return Match(*(np.concatenate(parts) for parts in zip(*matches, strict=True)))

    def wide(self, picture: np.ndarray, which: np.ndarray, motion: Motion) -> Match:
        """Search around the places that ``motion`` says, both near and over twice the width; the better match counts."""
        match = self.near(picture, which, motion.place, motion)
        coarse = self.near(picture, which, motion.place, motion, COARSE_STEP)
        refined = self.near(picture, which, coarse.xy, motion)
        better = refined.ended & (refined.similarity > match.similarity)
        for part, new in zip(match, refined, strict=True):
            part[better] = new[better]
        return match

    def _search(self, picture: np.ndarray, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int) -> Match:
        side = self.templates.window
        shift = self._shift_inside(picture, which, start, linear, step)
        template = self.templates.sample(which, shift, linear, side + 2 * REACH, step)
        centre = start + shift
        window = sample_at(picture, patch_grid(centre, np.eye(2), side + 2 * REACH, step))
        inner = (slice(None), *[slice(REACH, -REACH)] * 2)
        offset, ended = self._offsets(match_brightness(template, window, inner), window)
        match = sample_at(picture, patch_grid(centre + step * offset, np.eye(2), side, step))
        similarity = patch_similarity(template[inner], match)
        trust = np.maximum(np.maximum(patch_correlation(template[inner], match, ROUNDING), 0) ** 2, LEAST_TRUST)
        return Match(start + step * offset, ended, similarity, trust, patch_structure(template[inner]))

    def _shift_inside(
        self, picture: np.ndarray, which: np.ndarray, start: np.ndarray, linear: np.ndarray, step: int
    ) -> np.ndarray:
        """Offsets [n, 2] from points near an edge to windows beside them that lie inside both pictures, as far as that goes.

        Nothing is known beyond an edge, but the surface that the point is on goes on at its inner side.
        """
        side = self.templates.window
        half = (side // 2 + 1) * step
        low, high = np.full(2, half), np.maximum(np.array(picture.shape[::-1]) - 1 - half, half)
        base = self.templates.xy[which]
        shift = turn_vectors(linear, np.clip(base, low, high) - base)
        shift = np.clip(start + shift, low, high) - start
        return np.clip(shift, -side * step, side * step)

    def _offsets(self, templates: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shifts [n, 2] in samples that bring templates [n, side, side] onto windows of the same size, and which ended."""
        count, side = templates.shape[:2]
        if count == 0:
            return np.zeros((0, 2)), np.zeros(0, bool)
        columns = math.ceil(math.sqrt(count))
        number = np.arange(count)
        centre = np.stack([number % columns, number // columns], axis=1) * side + (side - 1) / 2
        place, ended = sparse_flow(
            tile_patches(templates, columns),
            tile_patches(windows, columns),
            centre,
            window=self.templates.window,
            levels=0,
            iterations=self.iterations,
        )
        offset = place - centre
        ended &= np.abs(offset).max(axis=1) < REACH
        return np.where(ended[:, None], offset, 0), ended
