"""Roll-outs: training videos generated clip by clip, kept as what a later stage's clips start from.

The papers imitate what long videos do to start frames and histories by VAE trips and noise-then-denoise (P2 section 3.3).
Here a model makes them itself, in the loop of :mod:`longvie_core.autoregress` with many videos at once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..autoregress import TAIL_FRAMES
from ..files import write_atomically
from .control_task import ControlledBackbone, Shown, read_shown, sampled, video_noise
from .data import ClipSource
from .latents import ROLLED_OUT, ClipLatents, TrainingCodec, Vision, encode_pictures, in_parts, start_pictures

MODEL = "model.json"
"""Beside the latents: which model made them."""


@dataclass(frozen=True)
class RollOut:
    """How videos are generated.

    Args:
        network: the model, in the dtype that it runs in.
        codec: the VAE.
        text: embedding [1, L, text_dim] of a caption.
        history: frames that one clip hands on to the next.
        seed: of the noise; each video has noise of its own, the same in all its clips (P1 section 3.2).
        vision: CLIP vision, where the backbone reads features.
    """

    network: ControlledBackbone
    codec: TrainingCodec
    text: Callable[[str], Tensor]
    history: int
    seed: int
    vision: Vision | None = None


def videos_of(source: ClipSource) -> list[range]:
    """The clips of each video."""
    firsts = [row for row in range(len(source)) if source.past(row) == 0]
    return [range(first, end) for first, end in zip(firsts, [*firsts[1:], len(source)], strict=True)]


def groups_of(videos: Sequence[range], numbers: Sequence[int], batch: int) -> Iterator[Sequence[int]]:
    """Those numbers, at most ``batch`` at a time, of videos with equally many clips."""
    alike: dict[int, list[int]] = defaultdict(list)
    for number in numbers:
        alike[len(videos[number])].append(number)
    for group in alike.values():
        yield from in_parts(group, batch)


def begin(latents: ClipLatents, model: Mapping[str, object]) -> None:
    """Make room for this model's roll-out; another one's is forgotten. Only one process at a time."""
    noted = latents.rolled.folder / MODEL
    wanted = json.dumps(dict(model), indent=1)
    if not noted.is_file() or noted.read_text(encoding="utf-8") != wanted:
        noted.unlink(missing_ok=True)  # first, so that half a set is nobody's
        latents.rolled.clear()
        write_atomically(noted, lambda part: part.write_text(wanted, encoding="utf-8"))
    latents.reserve_rolled()


def roll_out(latents: ClipLatents, model: RollOut, numbers: Sequence[int], batch: int) -> Iterator[int]:
    """Generate those of these videos that are not there yet; yields each one's number when it is on disk.

    Args:
        latents: encoded clips of the source, after :func:`begin`.
        model: what generates.
        numbers: of videos, places in :func:`videos_of`.
        batch: videos at once.

    Raises:
        ValueError: a clip is too short for the history, or its latents are not there.
    """
    source = latents.source
    if model.history > source.frames:
        raise ValueError(f"a history of {model.history} frames is asked for, but clips have {source.frames}: shorten it")
    videos = videos_of(source)
    missing = [number for number in numbers if latents.missing_rolled(videos[number])]
    for group in groups_of(videos, missing, batch):
        _generate(latents, model, [videos[number] for number in group], video_noise(source, model.seed, group))
        yield from group


@torch.no_grad()
def _generate(latents: ClipLatents, model: RollOut, videos: Sequence[range], noise: Tensor) -> None:
    """Videos with equally many clips, a clip of each at a time; noise [B, 16, f, h, w]."""
    seen: Tensor | None = None  # uint8 [B, n, H, W, 3], the last frames so far
    for rows in zip(*videos, strict=True):
        if seen is None:
            shown, history = [Shown(row) for row in rows], 0
        else:
            _keep_starts(latents, model, rows, seen, len(videos))
            shown, history = [Shown(row, start=ROLLED_OUT) for row in rows], model.history
        conditions = read_shown(latents, shown, history, model.text).conditions()
        frames = model.codec.decode_clips(sampled(model.network, noise, conditions))
        seen = (frames if seen is None else torch.cat([seen[:, :-1], frames], dim=1))[:, -TAIL_FRAMES:]


def _keep_starts(latents: ClipLatents, model: RollOut, rows: Sequence[int], seen: Tensor, batch: int) -> None:
    """Encode what clips start from, given the generated frames before them, and keep it."""
    source, wanted = latents.source, latents.wanted
    starts = [
        start_pictures(before, source.frames, wanted.histories_of(source.past(row)), wanted.vision)
        for before, row in zip(seen, rows, strict=True)
    ]
    places = [(row, name) for row, start in zip(rows, starts, strict=True) for name in start]
    pictures = [picture for start in starts for picture in start.values()]
    for (row, name), value in zip(places, encode_pictures(pictures, model.codec, model.vision, batch), strict=True):
        latents.rolled.write(name, row, value[None])
    latents.rolled.commit()
