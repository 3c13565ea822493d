"""Which pictures become a clip's latents, and their encoding in as few calls of the VAE as there are shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...model.conditioning import encoded_history_frames
from .codec import TrainingCodec
from .source import Clip
from .spec import LatentSpec

Vision = Callable[[np.ndarray], Tensor]
"""CLIP vision features [1, 257, 1280] of a picture uint8 [H, W, 3]."""


class Picture(NamedTuple):
    """What a tensor is encoded from.

    Args:
        frames: uint8 [T, H, W, 3] on any device.
        length: frames that the VAE sees; mid grey follows where T is less. :data:`FOR_VISION`: CLIP vision sees the one frame.
    """

    frames: Tensor
    length: int


Pictures = dict[str, Picture]
"""Name of a tensor -> what it is encoded from."""

FOR_VISION = 0
"""Length of a picture that CLIP vision sees, and not the VAE."""


def control_pictures(name: str, control: np.ndarray) -> Pictures:
    """What is encoded of a control uint8 [F, H, W, 3]: all of it, and its first frame followed by grey."""
    frames = torch.from_numpy(control)
    return {name: Picture(frames, len(frames)), f"{name}_first": Picture(frames[:1], len(frames))}


def start_pictures(before: Tensor, frames: int, histories: Sequence[int], vision: bool) -> Pictures:
    """What is encoded of the start frame and of each history.

    Args:
        before: uint8 [n, H, W, 3], the frames up to the start frame, that one included.
        frames: of the clip.
        histories: lengths, each at most n.
        vision: whether CLIP vision features are read.
    """
    pictures = {"image": Picture(before[-1:], frames)}
    for length in histories:
        encoded = encoded_history_frames(length)
        pictures[f"history_{length}"] = Picture(before[-length:][:encoded], encoded)
    if vision:
        pictures["vision"] = Picture(before[-1:], FOR_VISION)
    return pictures


def clean_pictures(clip: Clip, spec: LatentSpec) -> Pictures:
    """What is encoded of a clip as it is."""
    before = torch.from_numpy(clip.history(len(clip.past) + 1))
    video = {"video": Picture(torch.from_numpy(clip.frames), len(clip.frames))}
    starts = start_pictures(before, len(clip.frames), spec.histories_of(len(clip.past)), spec.vision)
    return video | control_pictures("dense", clip.dense) | control_pictures("sparse", clip.sparse) | starts


def in_parts(values: Sequence, most: int) -> Iterator[Sequence]:
    """The values in their order, at most ``most`` at a time."""
    return (values[start : start + most] for start in range(0, len(values), most))


def encode_pictures(pictures: Sequence[Picture], codec: TrainingCodec, vision: Vision | None, batch: int) -> list[Tensor]:
    """Float16 tensors [16, f, h, w] on the CPU, or vision features [257, 1280], in the order of the pictures.

    Those of one shape go through the VAE together, ``batch`` at a time. Results are fetched when all have been started, so that
    a GPU never waits in between.
    """
    alike: dict[tuple[int, int, torch.device], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        alike[len(picture.frames), picture.length, picture.frames.device].append(place)
    order: list[int] = []
    encoded: list[Tensor] = []
    for (_, length, _), places in alike.items():
        for part in in_parts(places, 1 if length == FOR_VISION else batch):
            frames = torch.stack([pictures[place].frames for place in part])
            if length == FOR_VISION and vision is not None:
                value = vision(frames[0, 0].cpu().numpy())
            else:
                value = codec.encode_clips(frames, length)
            encoded.append(value.half())
            order += part
    values = [value for part in encoded for value in part.cpu()]
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
