"""Local affine motion of a neighbourhood of points, fitted robustly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

OWN_WEIGHT = 6.0
"""Weight of a point's own motion among its neighbours', each of them at most 1."""

LEAST_WEIGHT, HOLD_WEIGHT = 1e-3, 1e-9
"""Least factor of a neighbour's weight, and the weight of a point's last place where it has no neighbours to speak of."""

CAUCHY = 0.7
"""Pixels off the common motion at which a neighbour counts half."""

GRADIENT = 0.15
"""Pixels a pixel by which motion may vary across a surface before the first fit takes a neighbour for part of another one."""

FIT_ROUNDS = 4
RIDGE = 0.005
"""Pull of a local motion towards pure translation, as a share of its evidence."""


class Motion(NamedTuple):
    """Affine motions: where they bring the points, float64 [N, 2], linear parts [N, 2, 2], neighbours' agreement [N, K]."""

    place: np.ndarray
    linear: np.ndarray
    agreement: np.ndarray

    def of(self, which: np.ndarray) -> Motion:
        """The motions of some of the points."""
        return Motion(*(part[which] for part in self))


def inside_frame(xy: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] are inside a picture of this width and height."""
    return np.all((xy >= -0.5) & (xy < np.asarray(size) - 0.5), axis=-1)


def stand_still(place: np.ndarray) -> Motion:
    """No motion to be known: points stay at their places [n, 2]."""
    return Motion(place, np.tile(np.eye(2), (len(place), 1, 1)), np.zeros((len(place), 0)))


def fit_motion(
    origin: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray, own: np.ndarray, own_weight: np.ndarray
) -> Motion:
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
    return Motion(origin + motion[:, 0], _tamed(np.eye(2) + motion[:, 1:].transpose(0, 2, 1)), agreement[:, :-1])


def _tamed(linear: np.ndarray) -> np.ndarray:
    """Linear maps [N, 2, 2], the identity in place of what folds a surface over or changes its area tenfold."""
    area = np.linalg.det(linear)
    return np.where(((area > 0.1) & (area < 10))[:, None, None], linear, np.eye(2))


def turn_vectors(linear: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``linear @ vector`` for [N, 2, 2] and [N, 2]."""
    return (linear @ vectors[..., None])[..., 0]
