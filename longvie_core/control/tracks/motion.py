"""Local affine motion of a neighbourhood of points, fitted robustly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

UNKNOWN_WEIGHT = 1e-9
"""Weight of a point's own motion where it is not known: enough to hold the point in place where no neighbour counts."""

CAUCHY = 0.7
"""Pixels off the common motion at which a neighbour counts half (Cauchy weights)."""

GRADIENT = 0.15
"""Pixels a pixel by which motion may vary across a surface; a neighbour that differs more counts less in the first fit."""

FIT_ROUNDS = 4
"""Fits, each weighted by the residuals of the one before."""

RIDGE = 0.005
"""Pull of a local motion towards pure translation, as a share of its evidence."""

AREA_CHANGE = 10
"""An affine map that makes areas larger or smaller than this many times is taken for a wrong fit."""


class Motion(NamedTuple):
    """Affine motions of N points, each fitted to K neighbours.

    Attributes:
        place: float64 [N, 2], where they bring the points, in pixels.
        linear: [N, 2, 2], their linear parts.
        agreement: [N, K], how much each neighbour moves so, 0 .. 1.
    """

    place: np.ndarray
    linear: np.ndarray
    agreement: np.ndarray

    def of(self, which: np.ndarray) -> Motion:
        """The motions of some of the points, given by number or by mask."""
        return Motion(*(part[which] for part in self))


def fit_motion(
    origin: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray, own: np.ndarray, own_weight: np.ndarray
) -> Motion:
    """Affine motions ``target - place = linear @ (source - origin)``, each fitted to K neighbours and the point itself.

    Least squares with Cauchy weights, repeated; the linear part is drawn towards the identity. Where a point's own motion is
    known, the first fit prefers neighbours that moved much as it did: near the edge of a surface, those on another one may be
    the majority. A neighbour's agreement is its last Cauchy weight.

    Args:
        origin, own: the points before and after, [N, 2].
        source, target: their neighbours before and after, [N, K, 2].
        weight, own_weight: of the neighbours [N, K] and of the points themselves [N]; see ``UNKNOWN_WEIGHT``.
    """
    before = np.concatenate([source - origin[:, None], np.zeros_like(origin)[:, None]], axis=1).astype(np.float64)
    moved = np.concatenate([target, own[:, None]], axis=1) - origin[:, None] - before
    weight = np.concatenate([weight, own_weight[:, None]], axis=1)
    design = np.concatenate([np.ones_like(before[..., :1]), before], axis=-1)
    spread = np.square(before).sum(axis=-1).mean(axis=1)
    apart = np.linalg.norm(moved - moved[:, -1:], axis=-1) / (CAUCHY + GRADIENT * np.linalg.norm(before, axis=-1))
    agreement = np.where(own_weight[:, None] > UNKNOWN_WEIGHT, 1 / (1 + apart**2), 1)
    for _ in range(FIT_ROUNDS):
        effective = weight * agreement
        weighted = (design * effective[..., None]).transpose(0, 2, 1)
        normal = weighted @ design
        normal[:, [1, 2], [1, 2]] += (RIDGE * effective.sum(axis=1) * spread)[:, None] + 1e-15
        motion = np.linalg.solve(normal, weighted @ moved)
        residual = np.linalg.norm(design @ motion - moved, axis=-1)
        agreement = 1 / (1 + (residual / CAUCHY) ** 2)
    return Motion(origin + motion[:, 0], _plausible(np.eye(2) + motion[:, 1:].transpose(0, 2, 1)), agreement[:, :-1])


def stand_still(place: np.ndarray) -> Motion:
    """No motion: points stay at their places [n, 2]."""
    return Motion(place, np.tile(np.eye(2), (len(place), 1, 1)), np.zeros((len(place), 0)))


def turn_vectors(linear: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``linear @ vector`` for [N, 2, 2] and [N, 2]."""
    return (linear @ vectors[..., None])[..., 0]


def inside_frame(xy: np.ndarray, size: np.ndarray | tuple[int, int]) -> np.ndarray:
    """Whether points [..., 2] are inside a picture of this (width, height)."""
    return np.all((xy >= -0.5) & (xy < np.asarray(size) - 0.5), axis=-1)


def _plausible(linear: np.ndarray) -> np.ndarray:
    """Linear maps [N, 2, 2], the identity in place of those that mirror a surface or change its area by ``AREA_CHANGE``."""
    area = np.linalg.det(linear)
    return np.where(((area > 1 / AREA_CHANGE) & (area < AREA_CHANGE))[:, None, None], linear, np.eye(2))
