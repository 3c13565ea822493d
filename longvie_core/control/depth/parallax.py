"""A depth engine without weights: what optical flow tells of a picture's layout, and a stated prior for the rest.

The picture is taken for a ground that comes nearer towards its lower edge, under a horizon beyond which everything is far, with
things standing in front of it. Three steps:

1. The flow of a rigid scene is a rotation, which says nothing of depth, plus a translation times disparity (Longuet-Higgins and
   Prazdny 1980, here with small angles). It is linear in the camera's motion where the disparity is given, so that grounds with
   horizons at several heights can be tried: the one that explains the flow best is kept. Where none explains it better
   (a still camera, a pure rotation), the ground fills the picture: lower is nearer.
2. Pixels that do not move as that background does, and are not explained by it either, are things in front of it.
3. A thing is at least as near as the ground at its lower edge. Where it moves as something rigid and fixed would that is nearer
   still, it is as near as its parallax says.

So the limits are: a thing that stands still before a still camera is not seen at all; a thing that moves by itself gets the
disparity of the ground below it, which is too far for what hangs in the air; and a scene without a ground (a view from above, a
ceiling) is given one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

WORK_PIXELS = 288 * 162
"""Pictures are worked on at about this many pixels: flow costs as much as there are pixels."""

LEAST_SIDE = 16
"""Pictures with a shorter side, in pixels as worked on, have no flow to speak of."""

FOCAL_PER_DIAGONAL = 0.75
"""Assumed focal length in picture diagonals: about 60 degrees across. It only weighs the small second-order terms of rotation
against each other."""

NEAR_FRAMES, FAR_FRAMES = 4, 12
"""Frames from a picture to those that it is compared with. Close ones show outlines well; distant ones show slow motion."""

FLOW_NOISE = 0.4
"""Standard error of the flow, pixels as worked on."""

TEXTURE = 5.0
"""Slope, in levels a pixel, from which on a neighbourhood can be followed."""

HORIZONS = np.arange(0, 0.75, 0.05)
"""Heights of the horizon that are tried, as shares of the picture from its upper edge."""

HORIZON_COST = 0.1
"""Share of flow that a horizon at the lower edge must explain more than one at the upper edge, to be preferred."""

FIT_STEP = 4
"""The camera's motion is fitted to every so many rows and columns."""

THING_MOTION = 1.0
"""Flow beside the background's, in pixels over ``NEAR_FRAMES``, that makes a thing."""

THING_LEVELS = 4.0
"""Mean difference, in levels, between a picture and what the background's motion makes of others, that makes a thing."""

THING_PIXELS = 25
"""Things smaller than this are noise."""

NEAREST = 2.0
"""Disparities end here; 1 is the ground at the picture's lower edge."""

SAME_PICTURE = 0.6
"""Least correlation between the thumbnails of two neighbouring pictures; below it there was a cut."""


@dataclass(frozen=True)
class ParallaxDepth:
    """Relative disparity of a video by optical flow; see the module for what it knows and what it assumes.

    A :class:`.depth.DepthEngine`. Its disparity is 0 at the horizon, 1 at the lower edge of the ground, at most ``NEAREST``.
    """

    name: str = "parallax (no weights)"
    kind: str = "disparity"
    window: int = 17
    overlap: int = 5

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Disparity float32 [T, H, W], 0 or more, of pictures uint8 RGB [T, H, W, 3]; T from 1, of any size.

        Raises:
            ValueError: for another shape or dtype.
        """
        import cv2

        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(f"{self.name} got {frames.dtype} {list(frames.shape)}: give pictures as uint8 RGB [T, H, W, 3]")
        height, width = frames.shape[1:3]
        shrink = min(1.0, math.sqrt(WORK_PIXELS / (height * width)))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        grey = np.stack(
            [cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for frame in frames]
        )
        small = [depth for shot in _shots(grey) for depth in _shot_disparity(grey[shot])]
        return np.stack([cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR) for depth in small])


def _shots(grey: np.ndarray) -> list[slice]:
    """Pictures [T, h, w] divided at cuts."""
    import cv2

    flat = np.stack([cv2.resize(frame, (16, 9), interpolation=cv2.INTER_AREA).ravel() for frame in grey]).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(flat, axis=1)
    product = spread[1:] * spread[:-1]
    cuts = np.flatnonzero((product > 0) & ((flat[1:] * flat[:-1]).sum(axis=1) < SAME_PICTURE * product)) + 1
    edges = [0, *cuts.tolist(), len(grey)]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def ground(height: int, width: int, horizon: float) -> np.ndarray:
    """Disparity float32 [height, width] of a level ground: 0 down to ``horizon`` (share of the height), 1 at the lower edge."""
    rows = np.maximum(0, (np.arange(height) + 0.5) / height - horizon) / (1 - horizon)
    return np.repeat(rows.astype(np.float32)[:, None], width, axis=1)


# --- the camera's motion ----------------------------------------------------------------------------------------------


class Rays(NamedTuple):
    """Flow in pixels for each unit of translation (at disparity 1) and of rotation, float32 [h, w, 2, 3] each."""

    translation: np.ndarray
    rotation: np.ndarray

    def coarse(self) -> Rays:
        return Rays(_coarse(self.translation), _coarse(self.rotation))


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


def _coarse(values: np.ndarray) -> np.ndarray:
    """Every ``FIT_STEP``-th row and column."""
    return values[FIT_STEP // 2 :: FIT_STEP, FIT_STEP // 2 :: FIT_STEP]


@dataclass(frozen=True)
class _Pair:
    """How a picture moves to another one.

    Attributes:
        flow: float32 [h, w, 2], pixels.
        trust: float32 [h, w], 0 .. 1: textured, within the other picture, and the same there and back.
        other: index of the other picture.
    """

    flow: np.ndarray
    trust: np.ndarray
    other: int


def _fit_motion(terms: Rays, disparity: np.ndarray, pair: _Pair) -> tuple[np.ndarray, float]:
    """The camera's translation and rotation [6] for a given disparity: least squares, reweighted (Geman-McClure).

    Args:
        terms, disparity: coarse.

    Returns:
        the motion, and the share 0 .. 1 of trusted flow that it does not explain.
    """
    matrix = np.concatenate([terms.translation * disparity[..., None, None], terms.rotation], axis=-1)
    matrix = matrix.reshape(-1, 6).astype(np.float64)
    scale = np.sqrt(np.square(matrix).mean(axis=0)) + 1e-6
    matrix /= scale
    flow = _coarse(pair.flow).reshape(-1).astype(np.float64)
    trust = _coarse(pair.trust).reshape(-1).astype(np.float64)
    weight = trust
    for _ in range(5):
        weighted = matrix.T * np.repeat(weight, 2)
        # The ridge keeps the motion at rest where flow cannot tell translation from rotation.
        motion = np.linalg.solve(weighted @ matrix + 1e-4 * 2 * weight.sum() * np.eye(6), weighted @ flow)
        error = np.square(flow - matrix @ motion).reshape(-1, 2).sum(axis=1)
        weight = trust / np.square(1 + error / max(1.5**2 * float(np.median(error)), FLOW_NOISE**2))
    return motion / scale, float(np.average(error / (error + (2 * FLOW_NOISE) ** 2), weights=trust))


class _Shot:
    """Pictures uint8 [T, h, w] of one shot, and the flow between them."""

    def __init__(self, grey: np.ndarray) -> None:
        import cv2

        self.grey = grey
        self.height, self.width = grey.shape[1:]
        self.rays = rays(self.height, self.width)
        self.coarse_rays = self.rays.coarse()
        self._y, self._x = np.mgrid[: self.height, : self.width].astype(np.float32)
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._flows: dict[tuple[int, int], np.ndarray] = {}
        self._texture = [self._textured(frame) for frame in grey]

    def pairs(self, frame: int, distance: int) -> list[_Pair]:
        """How a picture moves to those ``distance`` before and after it; where the shot has neither, to its farther end."""
        others = [other for other in (frame - distance, frame + distance) if 0 <= other < len(self.grey)]
        farther_end = 0 if 2 * frame >= len(self.grey) else len(self.grey) - 1
        return [self._pair(frame, other) for other in others or [farther_end]]

    def warped(self, values: np.ndarray, flow: np.ndarray) -> np.ndarray:
        """Values where the flow leads to."""
        import cv2

        place = self._x + flow[..., 0], self._y + flow[..., 1]
        return cv2.remap(values, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _pair(self, frame: int, other: int) -> _Pair:
        flow = self._flow(frame, other)
        back = np.linalg.norm(flow + self.warped(self._flow(other, frame), flow), axis=-1)
        same = 1 / (1 + np.square(back / (FLOW_NOISE + 0.05 * np.linalg.norm(flow, axis=-1))))
        x, y = self._x + flow[..., 0], self._y + flow[..., 1]
        inside = (x >= 0) & (x <= self.width - 1) & (y >= 0) & (y <= self.height - 1)
        return _Pair(flow, self._texture[frame] * same * inside + np.float32(1e-4), other)

    def _flow(self, frame: int, other: int) -> np.ndarray:
        if (frame, other) not in self._flows:
            self._flows[frame, other] = self._search.calc(self.grey[frame], self.grey[other], None)
        return self._flows[frame, other]

    @staticmethod
    def _textured(frame: np.ndarray) -> np.ndarray:
        import cv2

        slope = np.square(cv2.Sobel(frame, cv2.CV_32F, 1, 0) / 8) + np.square(cv2.Sobel(frame, cv2.CV_32F, 0, 1) / 8)
        energy = _box(slope, 2)
        return energy / (energy + TEXTURE**2)


def _horizon(shot: _Shot) -> float:
    """The horizon whose ground explains the flow of a shot best."""
    frames = sorted({0, (len(shot.grey) - 1) // 2, len(shot.grey) - 1})
    pairs = [pair for frame in frames for pair in shot.pairs(frame, FAR_FRAMES)]
    cost = HORIZON_COST * HORIZONS
    for number, horizon in enumerate(HORIZONS):
        disparity = _coarse(ground(shot.height, shot.width, horizon))
        cost[number] += np.mean([_fit_motion(shot.coarse_rays, disparity, pair)[1] for pair in pairs])
    return float(HORIZONS[np.argmin(cost)])


# --- things in front of the background --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Motion:
    """What a pair's flow is beside the camera's rotation (``rest``), and what translation makes of disparity 1 (``pull``);
    float32 [h, w, 2] each."""

    pair: _Pair
    rest: np.ndarray
    pull: np.ndarray

    def beside(self, disparity: np.ndarray) -> np.ndarray:
        """Flow [h, w, 2] that a fixed scene of this disparity would not have."""
        return self.rest - disparity[..., None] * self.pull


def _motion(shot: _Shot, disparity: np.ndarray, pair: _Pair) -> _Motion:
    motion, _ = _fit_motion(shot.coarse_rays, _coarse(disparity), pair)
    motion = motion.astype(np.float32)
    return _Motion(pair, pair.flow - shot.rays.rotation @ motion[3:], shot.rays.translation @ motion[:3])


def _things(shot: _Shot, frame: int, background: np.ndarray, motions: list[_Motion]) -> np.ndarray:
    """Where something moves otherwise than the background, bool [h, w].

    The flow alone is no witness: near outlines, and where there is no texture, it follows the things. So the picture must
    also not be what the background's motion would make of the one before, nor of the one after; what one of them hides,
    the other shows.
    """
    squares, trust, by_background, by_flow = 0.0, 0.0, [], []
    picture = shot.grey[frame].astype(np.float32)
    for motion in motions:
        other = shot.grey[motion.pair.other].astype(np.float32)
        beside = motion.beside(background)
        squares = squares + motion.pair.trust * np.square(beside).sum(axis=-1)
        trust = trust + motion.pair.trust
        by_background.append(_box(np.abs(shot.warped(other, motion.pair.flow - beside) - picture), 2))
        by_flow.append(_box(np.abs(shot.warped(other, motion.pair.flow) - picture), 2))
    moves = _box(squares, 2) > THING_MOTION**2 * _box(trust, 2)
    found = moves & (np.min(by_background, axis=0) > THING_LEVELS + 0.7 * np.min(by_flow, axis=0))
    found = ndimage.binary_closing(found, iterations=4)
    return ndimage.binary_fill_holes(ndimage.binary_opening(found, iterations=2))


def _parallax(motions: list[_Motion]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Disparity by parallax, what it leaves unexplained, and how much there is of it (both in square pixels); [h, w] each."""
    trust = sum(motion.pair.trust for motion in motions)
    along = sum(motion.pair.trust * (motion.pull * motion.rest).sum(axis=-1) for motion in motions)
    pull = sum(motion.pair.trust * np.square(motion.pull).sum(axis=-1) for motion in motions)
    disparity = along / (pull + 1e-6 * trust)
    left = sum(motion.pair.trust * np.square(motion.beside(disparity)).sum(axis=-1) for motion in motions)
    return disparity, left / trust, pull / trust


def _thing_disparity(background: np.ndarray, things: np.ndarray, motions: list[_Motion]) -> np.ndarray:
    """Disparity [h, w] of the things, as near as the ground below them or nearer; 0 elsewhere."""
    disparity, left, pull = _parallax(motions)
    beside = np.mean([np.square(motion.beside(background)).sum(axis=-1) for motion in motions], axis=0)
    result = np.zeros_like(background)
    labels, _ = ndimage.label(things)
    reach = 2 * (background.shape[1] // 16) + 1
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        thing = labels[place] == number
        if thing.sum() < THING_PIXELS:
            continue
        lowest = place[0].stop - 1 - np.argmax(thing[::-1], axis=0)
        feet = ndimage.grey_dilation(background[lowest, 0], size=reach, mode="nearest")
        near = np.broadcast_to(feet, thing.shape)[thing]
        rigid = np.median(left[place][thing]) < 0.25 * np.median(beside[place][thing]) and np.median(pull[place][thing]) > 1
        if rigid:
            near = np.maximum(near, min(float(np.median(disparity[place][thing])), NEAREST))
        result[place][thing] = near
    return result


def _shot_disparity(grey: np.ndarray) -> list[np.ndarray]:
    """Disparity float32 [h, w] of each picture uint8 [T, h, w] of a shot."""
    frames, height, width = grey.shape
    if frames == 1 or min(height, width) < LEAST_SIDE:
        return [ground(height, width, 0.0)] * frames
    shot = _Shot(grey)
    background = ground(height, width, _horizon(shot))
    return [_frame_disparity(shot, frame, background) for frame in range(frames)]


def _frame_disparity(shot: _Shot, frame: int, background: np.ndarray) -> np.ndarray:
    close = [_motion(shot, background, pair) for pair in shot.pairs(frame, NEAR_FRAMES)]
    things = _things(shot, frame, background, close)
    if not things.any():
        return background
    distant = [_motion(shot, background, pair) for pair in shot.pairs(frame, FAR_FRAMES)]
    return _placed(shot.grey[frame], background, things, _thing_disparity(background, things, distant))


def _placed(picture: np.ndarray, background: np.ndarray, things: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """Things put before the background, with the outlines that the picture has (guided filter, He et al. 2010)."""
    share = things.astype(np.float32)
    around = _box(disparity * share, 6) / np.maximum(_box(share, 6), 1e-6)
    nearer = np.maximum(np.where(things, disparity, around) - background, 0)
    return background + nearer * np.clip(_guided(picture.astype(np.float32) / 255, share, 4, 1e-3), 0, 1)


def _guided(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Values smoothed within the outlines of ``guide`` [h, w]: locally a straight function of it."""
    mean_guide, mean = _box(guide, radius), _box(values, radius)
    variance = np.maximum(_box(guide * guide, radius) - mean_guide**2, 0)
    slope = (_box(guide * values, radius) - mean_guide * mean) / (variance + epsilon)
    return _box(slope, radius) * guide + _box(mean - slope * mean_guide, radius)


def _box(values: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares."""
    import cv2

    return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)
