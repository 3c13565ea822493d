"""How a camera moved, by the optical flow between pictures of one shot, and where the horizon of its ground is.

The flow of a rigid scene is a rotation, which says nothing of depth, plus a translation times disparity (Longuet-Higgins and
Prazdny 1980, here with small angles). Where the disparity is known, the flow is linear in the camera's motion. So a ground
can be tried with its horizon at several heights: the one that explains the flow best is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...interrupt import checkpoint
from .filters import box_mean

FAR_FRAMES = 12
"""Frames from a picture to those whose flow shows slow motion."""

FLOW_NOISE = 0.4
"""Standard error of the flow, in pixels."""


def ground(height: int, width: int, horizon: float) -> np.ndarray:
    """Disparity float32 [height, width] of a level ground: 0 down to ``horizon`` (share of the height), 1 at the lower edge."""
    rows = np.maximum(0, (np.arange(height) + 0.5) / height - horizon) / (1 - horizon)
    return np.repeat(rows.astype(np.float32)[:, None], width, axis=1)


# --- the camera's motion ----------------------------------------------------------------------------------------------

FOCAL_PER_DIAGONAL = 0.75
"""Assumed focal length in picture diagonals: about 60 degrees across. Only second-order terms of rotation depend on it."""

FIT_STEP = 4
"""The camera's motion is fitted to every so many rows and columns."""


class Rays(NamedTuple):
    """Flow in pixels for each unit of the camera's translation (at disparity 1) and rotation, float32 [h, w, 2, 3] each."""

    translation: np.ndarray
    rotation: np.ndarray

    def coarse(self) -> Rays:
        """Those of every ``FIT_STEP``-th row and column."""
        return Rays(coarse(self.translation), coarse(self.rotation))


def rays(height: int, width: int) -> Rays:
    """Longuet-Higgins and Prazdny's equations for a camera of the assumed focal length.

    The motion is the camera's own: x is right, y down, z ahead; rotations follow the right-hand rule.
    """
    focal = FOCAL_PER_DIAGONAL * math.hypot(width, height)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = (x - (width - 1) / 2) / focal, (y - (height - 1) / 2) / focal
    none, one = np.zeros_like(x), np.ones_like(x)
    translation = [[-one, none, x], [none, -one, y]]
    rotation = [[x * y, -1 - x * x, y], [1 + y * y, -x * y, -x]]
    return Rays(*(np.float32(focal) * np.moveaxis(np.array(terms), (0, 1), (-2, -1)) for terms in (translation, rotation)))


def coarse(values: np.ndarray) -> np.ndarray:
    """Every ``FIT_STEP``-th row and column of [h, w, ...]."""
    return values[FIT_STEP // 2 :: FIT_STEP, FIT_STEP // 2 :: FIT_STEP]


@dataclass(frozen=True)
class Pair:
    """How a picture moves to another one.

    Attributes:
        flow: float32 [h, w, 2], pixels.
        trust: float32 [h, w], 0 .. 1: textured, within the other picture, and the same there and back.
        other: index of the other picture.
    """

    flow: np.ndarray
    trust: np.ndarray
    other: int


def fit_motion(terms: Rays, disparity: np.ndarray, pair: Pair) -> tuple[np.ndarray, float]:
    """The camera's translation and rotation [6] for a given disparity: least squares, reweighted (Geman-McClure).

    Args:
        terms: :meth:`Rays.coarse`.
        disparity: [h, w], :func:`coarse` as well.
        pair: of the picture that has this disparity.

    Returns:
        The motion, and the share 0 .. 1 of trusted flow that it does not explain.
    """
    matrix = np.concatenate([terms.translation * disparity[..., None, None], terms.rotation], axis=-1)
    matrix = matrix.reshape(-1, 6).astype(np.float64)
    scale = np.sqrt(np.square(matrix).mean(axis=0)) + 1e-6
    matrix /= scale
    flow = coarse(pair.flow).reshape(-1).astype(np.float64)
    trust = coarse(pair.trust).reshape(-1).astype(np.float64)
    weight = trust
    for _ in range(5):
        weighted = matrix.T * np.repeat(weight, 2)
        # The ridge keeps the motion at rest where flow cannot tell translation from rotation.
        motion = np.linalg.solve(weighted @ matrix + 1e-4 * 2 * weight.sum() * np.eye(6), weighted @ flow)
        error = np.square(flow - matrix @ motion).reshape(-1, 2).sum(axis=1)
        weight = trust / np.square(1 + error / max(1.5**2 * float(np.median(error)), FLOW_NOISE**2))
    return motion / scale, float(np.average(error / (error + (2 * FLOW_NOISE) ** 2), weights=trust))


# --- the flow of a shot -----------------------------------------------------------------------------------------------

TEXTURE = 5.0
"""Slope, in grey levels a pixel, at which a neighbourhood is trusted half: less can hardly be followed."""


class Shot:
    """Pictures uint8 [T, h, w] of one shot, and the dense flow (DIS, Kroeger et al. 2016) between them, each computed once."""

    def __init__(self, grey: np.ndarray) -> None:
        import cv2

        self.grey = grey
        self.height, self.width = grey.shape[1:]
        self.rays = rays(self.height, self.width)
        self.coarse_rays = self.rays.coarse()
        self._y, self._x = np.mgrid[: self.height, : self.width].astype(np.float32)
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._flows: dict[tuple[int, int], np.ndarray] = {}
        self._texture = [self._textured(frame) for frame in grey]

    def pairs(self, frame: int, distance: int) -> list[Pair]:
        """How a picture moves to those ``distance`` frames before and after it; without either, to the shot's farther end."""
        others = [other for other in (frame - distance, frame + distance) if 0 <= other < len(self.grey)]
        farther_end = 0 if 2 * frame >= len(self.grey) else len(self.grey) - 1
        return [self._pair(frame, other) for other in others or [farther_end]]

    def warped(self, values: np.ndarray, flow: np.ndarray) -> np.ndarray:
        """``values`` [h, w] of another picture, at the places to which ``flow`` [h, w, 2] leads; bilinear."""
        import cv2

        place = self._x + flow[..., 0], self._y + flow[..., 1]
        return cv2.remap(values, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _pair(self, frame: int, other: int) -> Pair:
        flow = self._flow(frame, other)
        back = np.linalg.norm(flow + self.warped(self._flow(other, frame), flow), axis=-1)
        consistency = 1 / (1 + np.square(back / (FLOW_NOISE + 0.05 * np.linalg.norm(flow, axis=-1))))
        x, y = self._x + flow[..., 0], self._y + flow[..., 1]
        inside = (x >= 0) & (x <= self.width - 1) & (y >= 0) & (y <= self.height - 1)
        return Pair(flow, self._texture[frame] * consistency * inside + np.float32(1e-4), other)

    def _flow(self, frame: int, other: int) -> np.ndarray:
        if (frame, other) not in self._flows:
            checkpoint()
            self._flows[frame, other] = self._dis.calc(self.grey[frame], self.grey[other], None)
        return self._flows[frame, other]

    @staticmethod
    def _textured(frame: np.ndarray) -> np.ndarray:
        """How much texture there is to follow, 0 .. 1."""
        import cv2

        slope = np.square(cv2.Sobel(frame, cv2.CV_32F, 1, 0) / 8) + np.square(cv2.Sobel(frame, cv2.CV_32F, 0, 1) / 8)
        energy = box_mean(slope, 2)
        return energy / (energy + TEXTURE**2)


# --- the horizon ------------------------------------------------------------------------------------------------------

HORIZONS = np.arange(0, 0.75, 0.05)
"""Heights of the horizon that are tried, as shares of the picture from its upper edge."""

HORIZON_COST = 0.1
"""What a horizon at the lower edge must explain more than one at the upper edge to be preferred, as a share of the flow."""


def find_horizon(shot: Shot) -> float:
    """Height of the horizon whose ground explains the flow of a shot best, as a share of the picture from its upper edge."""
    frames = sorted({0, (len(shot.grey) - 1) // 2, len(shot.grey) - 1})
    pairs = [pair for frame in frames for pair in shot.pairs(frame, FAR_FRAMES)]
    cost = HORIZON_COST * HORIZONS
    for number, horizon in enumerate(HORIZONS):
        checkpoint()
        disparity = coarse(ground(shot.height, shot.width, horizon))
        cost[number] += np.mean([fit_motion(shot.coarse_rays, disparity, pair)[1] for pair in pairs])
    return float(HORIZONS[np.argmin(cost)])
