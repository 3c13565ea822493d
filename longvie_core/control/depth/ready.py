"""Depth that the user already has, copied to raw depth on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from ..raw_depth import RawDepth, RawDepthWriter, to_disparity


class DepthSource(Protocol):
    """Depth that the user already has, in a file or in memory.

    Attributes:
        name: for messages.
        kind: ``"disparity"`` (larger = nearer) or ``"depth"`` (larger = farther).
        frames: number of frames.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def frames(self) -> int: ...

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers`` (ascending, repeats allowed), float32 [H, W]."""
        ...


def copy_depth(
    source: DepthSource,
    destination: Path,
    fps: Fraction,
    numbers: Iterable[int] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> RawDepth:
    """Copy depth to a :class:`RawDepth`, frame by frame. Nothing is aligned: its scale is taken to be the same throughout.

    Args:
        destination: ``.npy`` file; it appears when it is complete.
        fps: frames per second of the copy.
        numbers: which of the source's frames each frame of the copy shows, ascending, repeats allowed; all of them by default.
        progress: called with (frames done, frames); what it raises ends the copying.

    Raises:
        ValueError: a frame that the source does not have, or values that mean nothing.
    """
    sources = range(source.frames) if numbers is None else list(numbers)
    if any(number >= source.frames for number in sources[-1:]):
        raise ValueError(
            f"{source.name} has {source.frames} frames (0 .. {source.frames - 1}), but frame {sources[-1]} was asked for: give "
            "depth that is as long as the video"
        )
    with RawDepthWriter(destination, source.kind, fps) as writer:
        for done, frame in enumerate(source.read(sources), 1):
            to_disparity(frame, source.kind, f"{source.name}: frame {sources[done - 1]}")  # refuses what means nothing
            writer.write(frame)
            if progress is not None:
                progress(done, len(sources))
    return writer.raw_depth()
