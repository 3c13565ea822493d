"""How many frames of history a clip is trained with (P2 section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

HISTORY_LENGTHS = tuple(range(17))
"""Frames of history in training, all alike likely (P2: 0 .. 16)."""


def draw_history_length(lengths: Sequence[int], available: int, generator: torch.Generator) -> int:
    """Number of history frames of a clip.

    Args:
        lengths: what may be drawn, all alike likely; 0 among them.
        available: frames that the video has before the clip.
        generator: the random choices.

    Returns:
        The drawn length, or where the video has fewer frames the longest of ``lengths`` that fits.

    Raises:
        ValueError: ``lengths`` lacks 0, which the start of a video needs.
    """
    if 0 not in lengths:
        raise ValueError(f"history lengths {tuple(lengths)} lack 0: a clip at the start of a video has no history")
    drawn = lengths[torch.randint(len(lengths), (), generator=generator).item()]
    return max(length for length in lengths if length <= min(drawn, available))
