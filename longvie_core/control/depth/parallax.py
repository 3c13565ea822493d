"""A depth engine without weights: what optical flow tells of a picture's layout, and assumptions for the rest.

A picture is taken for a ground that comes nearer towards its lower edge, under a horizon beyond which everything is far, with
things standing in front of it. Three steps:

1. The horizon: that of the ground which explains the flow best (:mod:`.camera_motion`). Where none explains it better (a still
   camera, a pure rotation), the ground fills the picture: lower is nearer.
2. Things in front of the ground: pixels that move otherwise than the ground there would.
3. A thing's disparity: that of the ground at its lower edge, or what its parallax says, where it moves as something rigid and
   fixed would and that is nearer still.

So the limits are: a thing that stands still before a still camera is not seen at all; a thing that moves by itself gets the
disparity of the ground below it, which is too far for what hangs in the air; and a scene without a ground (a view from above, a
ceiling) is given one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ...interrupt import checkpoint
from .camera_motion import FAR_FRAMES, Pair, Shot, coarse, find_horizon, fit_motion, ground
from .filters import box_mean, guided_filter

WORK_PIXELS = 288 * 162
"""Pictures are shrunk to about this many pixels first: flow costs as much as there are pixels."""

LEAST_SIDE = 16
"""Shrunk pictures with a shorter side, in pixels, are too small for flow: the ground fills them."""

NEAREST = 2.0
"""The largest disparity; 1 is the ground at the picture's lower edge."""


@dataclass(frozen=True)
class ParallaxDepth:
    """Relative disparity of a video by optical flow; see the module for how, and for what it assumes.

    A :class:`.engine.DepthEngine`. Its disparity is 0 at the horizon, 1 at the lower edge of the ground, at most ``NEAREST``.
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


# --- shots ------------------------------------------------------------------------------------------------------------

SAME_SHOT = 0.6
"""Least correlation between the thumbnails of two neighbouring pictures; below it there was a cut."""


def _shots(grey: np.ndarray) -> list[slice]:
    """Pictures [T, h, w] divided at cuts."""
    import cv2

    flat = np.stack([cv2.resize(frame, (16, 9), interpolation=cv2.INTER_AREA).ravel() for frame in grey]).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    spread = np.linalg.norm(flat, axis=1)
    product = spread[1:] * spread[:-1]
    cuts = np.flatnonzero((product > 0) & ((flat[1:] * flat[:-1]).sum(axis=1) < SAME_SHOT * product)) + 1
    edges = [0, *cuts.tolist(), len(grey)]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def _shot_disparity(grey: np.ndarray) -> list[np.ndarray]:
    """Disparity float32 [h, w] of each picture uint8 [T, h, w] of a shot."""
    frames, height, width = grey.shape
    if frames == 1 or min(height, width) < LEAST_SIDE:
        return [ground(height, width, 0.0)] * frames
    shot = Shot(grey)
    background = ground(height, width, find_horizon(shot))
    return [_frame_disparity(shot, frame, background) for frame in range(frames)]


def _frame_disparity(shot: Shot, frame: int, background: np.ndarray) -> np.ndarray:
    """Disparity float32 [h, w] of one picture of a shot, before a background of known disparity."""
    checkpoint()
    near = [_flow_parts(shot, background, pair) for pair in shot.pairs(frame, NEAR_FRAMES)]
    things = _things(shot, frame, background, near)
    if not things.any():
        return background
    far = [_flow_parts(shot, background, pair) for pair in shot.pairs(frame, FAR_FRAMES)]
    return _placed(shot.grey[frame], background, things, _thing_disparity(background, things, far))


# --- things in front of the ground ------------------------------------------------------------------------------------

NEAR_FRAMES = 4
"""Frames from a picture to those whose flow shows the outlines of things."""

THING_MOTION = 1.0
"""Pixels over ``NEAR_FRAMES`` by which a thing's flow differs from the ground's."""

THING_LEVELS = 4.0
"""Mean difference, in grey levels, between a picture of a thing and what the ground's motion makes of the pictures around."""

THING_PIXELS = 25
"""Things smaller than this are noise."""


@dataclass(frozen=True)
class _FlowParts:
    """The flow of a pair, taken apart by the camera's motion.

    Attributes:
        pair: the flow.
        unrotated: float32 [h, w, 2], the flow less that of the camera's rotation.
        parallax: float32 [h, w, 2], the flow that the camera's translation gives to disparity 1.
    """

    pair: Pair
    unrotated: np.ndarray
    parallax: np.ndarray

    def residual(self, disparity: np.ndarray) -> np.ndarray:
        """Flow [h, w, 2] that a fixed scene of this disparity [h, w] does not explain."""
        return self.unrotated - disparity[..., None] * self.parallax


def _flow_parts(shot: Shot, disparity: np.ndarray, pair: Pair) -> _FlowParts:
    """A pair's flow, taken apart by the camera's motion that fits it best where the scene has this disparity [h, w]."""
    motion, _ = fit_motion(shot.coarse_rays, coarse(disparity), pair)
    motion = motion.astype(np.float32)
    return _FlowParts(pair, pair.flow - shot.rays.rotation @ motion[3:], shot.rays.translation @ motion[:3])


def _things(shot: Shot, frame: int, background: np.ndarray, flows: list[_FlowParts]) -> np.ndarray:
    """Where something moves otherwise than the background, bool [h, w].

    The flow alone does not tell: near the outlines of things, and where there is no texture, the background's follows theirs.
    So the picture itself must also differ from what the background's motion makes of the picture before, and of the one
    after: what a thing covers in one of them, the other shows.
    """
    squares, trust = np.zeros_like(background), np.zeros_like(background)
    by_background, by_flow = [], []
    picture = shot.grey[frame].astype(np.float32)
    for parts in flows:
        pair = parts.pair
        other = shot.grey[pair.other].astype(np.float32)
        residual = parts.residual(background)
        squares = squares + pair.trust * np.square(residual).sum(axis=-1)
        trust = trust + pair.trust
        by_background.append(box_mean(np.abs(shot.warped(other, pair.flow - residual) - picture), 2))
        by_flow.append(box_mean(np.abs(shot.warped(other, pair.flow) - picture), 2))
    moves = box_mean(squares, 2) > THING_MOTION**2 * box_mean(trust, 2)
    things = moves & (np.min(by_background, axis=0) > THING_LEVELS + 0.7 * np.min(by_flow, axis=0))
    things = ndimage.binary_closing(things, iterations=4)
    return ndimage.binary_fill_holes(ndimage.binary_opening(things, iterations=2))


def _disparity_by_parallax(flows: list[_FlowParts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares at each pixel.

    Returns:
        [h, w] each: disparity, the flow that it leaves unexplained, and the parallax of disparity 1, both in square pixels.
    """
    trust = sum(parts.pair.trust for parts in flows)
    along = sum(parts.pair.trust * (parts.parallax * parts.unrotated).sum(axis=-1) for parts in flows)
    parallax = sum(parts.pair.trust * np.square(parts.parallax).sum(axis=-1) for parts in flows)
    disparity = along / (parallax + 1e-6 * trust)
    residual = sum(parts.pair.trust * np.square(parts.residual(disparity)).sum(axis=-1) for parts in flows)
    return disparity, residual / trust, parallax / trust


def _thing_disparity(background: np.ndarray, things: np.ndarray, flows: list[_FlowParts]) -> np.ndarray:
    """Disparity [h, w] of the things, as near as the ground below them or nearer; 0 elsewhere."""
    disparity, residual, parallax = _disparity_by_parallax(flows)
    background_residual = np.mean([np.square(parts.residual(background)).sum(axis=-1) for parts in flows], axis=0)
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
        explained = np.median(residual[place][thing]) < 0.25 * np.median(background_residual[place][thing])
        if explained and np.median(parallax[place][thing]) > 1:  # it is rigid and fixed, and there is parallax to measure
            near = np.maximum(near, min(float(np.median(disparity[place][thing])), NEAREST))
        result[place][thing] = near
    return result


def _placed(picture: np.ndarray, background: np.ndarray, things: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """Disparity [h, w] of things before the background, with the outlines of the picture."""
    share = things.astype(np.float32)
    around = box_mean(disparity * share, 6) / np.maximum(box_mean(share, 6), 1e-6)
    nearer = np.maximum(np.where(things, disparity, around) - background, 0)
    return background + nearer * np.clip(guided_filter(picture.astype(np.float32) / 255, share, 4, 1e-3), 0, 1)
