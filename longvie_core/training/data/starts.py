"""Degraded start frames and histories, many clips at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..degradation.frames import FrameOperator, RoundTrips, Velocity, degrade_frames
from .codec import TrainingCodec
from .encode import in_parts


@dataclass(frozen=True)
class Start:
    """Start frame and history of a clip, degraded as one video, the way generation hands them on.

    Args:
        frames: uint8 [window, H, W, 3], window = 4n + 1; the last one is the start frame.
        operators: what happens to them.
        velocity: the pretrained backbone, see :func:`longvie_core.training.degradation.frames.degrade_frames`.
    """

    frames: Tensor
    operators: tuple[FrameOperator, ...]
    velocity: Velocity

    @property
    def trips(self) -> int:
        """Round trips that come first; clips take these together."""
        return self.operators[0].times if self.operators and isinstance(self.operators[0], RoundTrips) else 0


def degrade_starts(starts: Sequence[Start], codec: TrainingCodec, batch: int) -> list[Tensor]:
    """Degraded frames uint8 [window, H, W, 3] of each, in their order; round trips take ``batch`` at a time."""
    alike: dict[int, list[int]] = defaultdict(list)
    for place, start in enumerate(starts):
        alike[len(start.frames)].append(place)
    after_trips: dict[int, Tensor] = {}
    for places in alike.values():
        places.sort(key=lambda place: -starts[place].trips)  # so that those with trips left are always the first ones
        for part in in_parts(places, batch):
            frames = torch.stack([starts[place].frames for place in part])
            trips = [starts[place].trips for place in part]
            after_trips |= zip(part, round_trips(frames, trips, codec), strict=True)
    return [_remaining_operators(starts[place], after_trips[place], codec) for place in range(len(starts))]


def round_trips(clips: Tensor, trips: Sequence[int], codec: TrainingCodec) -> Tensor:
    """:func:`longvie_core.training.degradation.frames.vae_round_trip`, several clips together.

    Args:
        clips: uint8 [B, T, H, W, 3], T = 4n + 1.
        trips: how many each clip takes, from the most to the fewest.
        codec: the VAE.

    Returns:
        uint8 [B, T, H, W, 3].
    """
    for trip in range(max(trips)):
        going = sum(times > trip for times in trips)
        decoded = codec.decode_clips(codec.encode_clips(clips[:going], clips.shape[1]))
        clips = torch.cat([decoded, clips[going:].to(decoded.device)])
    return clips


def _remaining_operators(start: Start, frames: Tensor, codec: TrainingCodec) -> Tensor:
    """Apply the operators that come after the round trips, clip by clip."""
    remaining = start.operators[1:] if start.trips else start.operators
    if not remaining:
        return frames
    return torch.from_numpy(degrade_frames(frames.cpu().numpy(), remaining, codec, start.velocity))
