"""How steady depth is over time, and whether it has any shape."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..raw_depth import RawDepth


class DepthMeter:
    """Measures depth frame by frame; only sums and the last frame are kept.

    Attributes:
        frames: frames so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._flat = 0
        self._range = (np.inf, -np.inf)
        self._change = self._spread = 0.0
        self._last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, disparity [H, W]."""
        low, high = float(frame.min()), float(frame.max())
        self._flat += low == high
        self._range = min(self._range[0], low), max(self._range[1], high)
        self._spread += float(np.subtract(*np.percentile(frame, (95, 5))))
        if self._last is not None:
            self._change += float(np.abs(frame - self._last).mean(dtype=np.float64))
        self.frames += 1
        self._last = frame

    @property
    def flicker(self) -> float:
        """Temporal flicker: mean absolute change of a value from frame to frame, over the mean spread (95th less 5th
        percentile) of a frame.

        Independent of the depth's scale and shift. What moves counts as well, so compare it on one video only: before and
        after alignment, one engine with another. 0 for fewer than two frames and where nothing changes; inf where flat
        frames change.
        """
        if self.frames < 2 or self._change == 0:
            return 0.0
        change, spread = self._change / (self.frames - 1), self._spread / self.frames
        return change / spread if spread else float("inf")

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for the user about depth without any shape."""
        if self._range[0] == self._range[1]:
            return (f"all {self.frames} frames have one and the same depth: the control will be mid grey and guide nothing",)
        if self._flat:
            return (f"{self._flat} of {self.frames} frames are flat, one depth everywhere: the control says nothing there",)
        return ()


def temporal_flicker(depth: RawDepth | Iterable[np.ndarray]) -> float:
    """:attr:`DepthMeter.flicker` of raw depth, or of disparity frames [H, W] one after the other."""
    meter = DepthMeter()
    for frame in depth.disparity(range(depth.frames)) if isinstance(depth, RawDepth) else depth:
        meter.add(frame)
    return meter.flicker
