"""Pyramidal Lucas-Kanade optical flow at single points (Bouguet 2000), as OpenCV has it."""

from __future__ import annotations

import numpy as np

LEAST_STEP = 0.01
"""Pixels: the iterations at a level end when they move a point less."""


def sparse_flow(
    first: np.ndarray, second: np.ndarray, xy: np.ndarray, *, window: int, levels: int, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of one picture are in another.

    Args:
        first, second: uint8 [H, W].
        xy: [n, 2], pixels in ``first``.
        window: side of the compared patches in pixels.
        levels: pyramid levels above the picture itself.
        iterations: most steps a level.

    Returns:
        Places float32 [n, 2] in ``second``, and whether the search for them ended.
    """
    import cv2

    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, LEAST_STEP)
    points = np.ascontiguousarray(xy[:, None], np.float32)
    place, status, _ = cv2.calcOpticalFlowPyrLK(
        first, second, points, None, winSize=(window, window), maxLevel=levels, criteria=criteria
    )
    return place[:, 0], (status[:, 0] > 0) & np.isfinite(place[:, 0]).all(axis=1)
