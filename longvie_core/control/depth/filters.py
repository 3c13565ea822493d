"""Smoothing of pictures."""

from __future__ import annotations

import numpy as np


def box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Means of ``values`` [h, w] over squares of ``2 * radius + 1`` pixels a side."""
    import cv2

    return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)


def guided_filter(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """``values`` [h, w] smoothed within the outlines of ``guide`` [h, w] (He et al. 2010): locally a linear function of it.

    Args:
        radius: pixels; of the squares in which the function is fitted.
        epsilon: variance of the guide below which a square counts as without outlines.
    """
    mean_guide, mean = box_mean(guide, radius), box_mean(values, radius)
    variance = np.maximum(box_mean(guide * guide, radius) - mean_guide**2, 0)
    slope = (box_mean(guide * values, radius) - mean_guide * mean) / (variance + epsilon)
    return box_mean(slope, radius) * guide + box_mean(mean - slope * mean_guide, radius)
