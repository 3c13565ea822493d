"""Templates: patches of pictures around points, by which the points are known; cut out, warped, compared."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import map_coordinates

from .motion import turn_vectors

# --- the points' templates --------------------------------------------------------------------------------------------


class Templates:
    """A patch of each point, from the frame in which it was last taken, with room to warp and shift it.

    The patches lie side by side in one picture, so that one call samples them all.

    Args:
        picture: uint8 [H, W], grey.
        xy: float32 [N, 2], the points in it, in pixels.
        window: side of a template in pixels.

    Attributes:
        xy: where each point was in the frame that its template comes from.
    """

    def __init__(self, picture: np.ndarray, xy: np.ndarray, window: int) -> None:
        self.window = window
        self.xy = np.array(xy)
        self._radius = 2 * window + 2
        self._side = 2 * self._radius + 1
        self._columns = math.ceil(math.sqrt(len(xy)))
        rows = math.ceil(len(xy) / self._columns)
        self._sheet = np.zeros((rows * self._side, self._columns * self._side), np.uint8)
        self._fraction = np.zeros((len(xy), 2))
        self.put(np.arange(len(xy)), picture, xy)

    def put(self, which: np.ndarray, picture: np.ndarray, xy: np.ndarray) -> None:
        """Take new templates of the points ``which``, which are at ``xy`` [n, 2] in ``picture``."""
        height, width = picture.shape
        self.xy[which] = xy
        centre = np.clip(np.rint(xy), 0, (width - 1, height - 1)).astype(np.intp)
        self._fraction[which] = xy - centre
        padded = np.pad(picture, self._radius, mode="edge")
        patches = np.lib.stride_tricks.sliding_window_view(padded, (self._side, self._side))
        cells = self._sheet.reshape(-1, self._side, self._columns, self._side).transpose(0, 2, 1, 3)
        cells[which // self._columns, which % self._columns] = patches[centre[:, 1], centre[:, 0]]

    def sample(self, which: np.ndarray, shift: np.ndarray, linear: np.ndarray, side: int, step: int) -> np.ndarray:
        """Templates as they look after a motion.

        Args:
            which: numbers of the points [n].
            shift: [n, 2], from the points to the patches' centres, in pixels after the motion.
            linear: [n, 2, 2], the motion's linear part.
            side, step: samples a side, and pixels between them.

        Returns:
            uint8 [n, side, side].
        """
        back = np.linalg.inv(linear)
        centre = turn_vectors(back, shift) + self._fraction[which] + self._radius
        local = patch_grid(centre, back, side, step)
        np.clip(local, 0, self._side - 1, out=local)
        local += np.stack([which % self._columns, which // self._columns], axis=1)[..., None] * np.float32(self._side)
        return sample_at(self._sheet, local)


# --- patches ----------------------------------------------------------------------------------------------------------


def patch_grid(centre: np.ndarray, linear: np.ndarray, side: int, step: int) -> np.ndarray:
    """Positions of patches around their centres [n, 2], float32 [n, 2, side * side], turned by ``linear`` [.., 2, 2]."""
    steps = (np.arange(side) - (side - 1) / 2) * step
    square = np.stack(np.meshgrid(steps, steps)).reshape(2, -1)
    return linear.astype(np.float32) @ square.astype(np.float32) + centre.astype(np.float32)[..., None]


def sample_at(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Square patches uint8 [n, side, side] at positions [n, 2, side * side], bilinear, edges repeated."""
    import cv2

    side = math.isqrt(xy.shape[2])
    if len(xy) == 0:
        return np.zeros((0, side, side), np.uint8)
    x, y = np.ascontiguousarray(xy.transpose(1, 0, 2))
    if int(cv2.__version__.partition(".")[0]) >= 5:
        return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, side, side)
    # Before OpenCV 5 its remap rounds positions to 1/32 pixel, which adds up over the frames.
    patches = map_coordinates(picture, [y, x], order=1, mode="nearest", output=np.float32)
    return np.rint(patches).astype(np.uint8).reshape(-1, side, side)


def tile_patches(patches: np.ndarray, columns: int) -> np.ndarray:
    """One picture of square patches [n, side, side], row by row."""
    count, side = patches.shape[:2]
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, side, side), np.uint8)
    cells[:count] = patches
    return np.ascontiguousarray(cells.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, -1))


# --- comparing --------------------------------------------------------------------------------------------------------

NOISE = 4.0
"""Grey levels: what varies less is noise, and two patches that both vary less match, whatever their pattern."""

BRIGHTNESS_SLACK, BRIGHTNESS_RANGE = 10.0, 60.0
"""Grey levels by which the mean may change freely, and by which it may change beyond that before nothing is alike."""


def match_brightness(templates: np.ndarray, windows: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    """Templates with the brightness and, up to a factor of 2, the contrast of their windows, measured in the inner part."""
    mean, window_mean = (part[inner].mean(axis=(1, 2), keepdims=True) for part in (templates, windows))
    contrast, window_contrast = (part[inner].std(axis=(1, 2), keepdims=True) + NOISE for part in (templates, windows))
    lit = (templates - mean) * np.clip(window_contrast / contrast, 0.5, 2) + window_mean
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def patch_correlation(first: np.ndarray, second: np.ndarray, noise: float) -> np.ndarray:
    """Normalized cross-correlation [n] of patches [n, side, side].

    Variation below ``noise`` grey levels counts as common to both: two flat patches are alike, a flat and a textured one not.
    """
    inside = (1, 2)
    one, other = first.astype(np.float32), second.astype(np.float32)
    one -= one.mean(inside, keepdims=True)
    other -= other.mean(inside, keepdims=True)
    floor = np.float32(noise**2)
    spread = (np.square(one).mean(inside) + floor) * (np.square(other).mean(inside) + floor)
    return ((one * other).mean(inside) + floor) / np.sqrt(spread)


def patch_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How alike patches [n, side, side] are, 1 = same: their correlation, less where the brightness differs much."""
    brightness = np.abs(second.mean(axis=(1, 2)) - first.mean(axis=(1, 2)))
    excess = np.maximum(brightness - BRIGHTNESS_SLACK, 0) / BRIGHTNESS_RANGE
    return patch_correlation(first, second, NOISE) * np.maximum(1 - excess**2, 0)


def patch_structure(patches: np.ndarray) -> np.ndarray:
    """Structure tensors [n, 2, 2]: means of the products of the slopes along x and y, in squared grey levels a pixel."""
    down, right = np.gradient(patches.astype(np.float32), axis=(1, 2))
    across, mixed, along = ((a * b).mean(axis=(1, 2)) for a, b in ((right, right), (right, down), (down, down)))
    return np.stack([across, mixed, mixed, along], axis=-1).reshape(-1, 2, 2).astype(np.float64)
