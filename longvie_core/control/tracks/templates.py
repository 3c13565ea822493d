"""Patches of pictures around points: cut out, compared, and kept as the points' looks."""

from __future__ import annotations

import math

import numpy as np

from .motion import turn_vectors

NOISE = 4.0
"""Grey levels: patches that vary less look alike, whatever their pattern; what makes two flat patches match."""

BRIGHTNESS_SLACK, BRIGHTNESS_RANGE = 10.0, 60.0
"""Grey levels by which the mean may change freely, and by which it may change beyond that before nothing is alike."""


# --- patches ----------------------------------------------------------------------------------------------------


class Templates:
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
        centre = turn_vectors(back, shift) + self.fraction[which] + self.radius
        local = patch_grid(centre, back, side, step)
        np.clip(local, 0, self.side - 1, out=local)
        local += np.stack([which % self.columns, which // self.columns], axis=1)[..., None] * np.float32(self.side)
        return sample_at(self.sheet, local)


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
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, side, side)


def tile_patches(patches: np.ndarray, columns: int) -> np.ndarray:
    """One picture of square patches [n, side, side], row by row."""
    count, side = patches.shape[:2]
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, side, side), np.uint8)
    cells[:count] = patches
    return np.ascontiguousarray(cells.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, -1))


def match_brightness(templates: np.ndarray, windows: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    """Templates with the brightness and, up to a factor of 2, the contrast of their windows, measured in the inner part."""
    mean, wanted_mean = (part[inner].mean(axis=(1, 2), keepdims=True) for part in (templates, windows))
    contrast, wanted = (part[inner].std(axis=(1, 2), keepdims=True) + NOISE for part in (templates, windows))
    lit = (templates - mean) * np.clip(wanted / contrast, 0.5, 2) + wanted_mean
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def patch_correlation(first: np.ndarray, second: np.ndarray, noise: float) -> np.ndarray:
    """Normalised cross-correlation [n] of patches [n, side, side], where variation below ``noise`` counts as common to both:
    two flat patches are alike, a flat and a textured one are not."""
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
