"""Latents of training clips: encoded once, kept on disk, memory-mapped.

Degraded pictures are made here too, beforehand: each clip gets a few *variants* of its depth, its start frame and its history,
drawn from (clip, variant) alone. To make them in the training loop would cost more than the training step itself (a clip is
seen many times, and ten trips through a video VAE are slow at any size), and the network that regenerates frames would have
to stay in memory beside the one that is trained. How often a variant is shown is up to the training.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.lib.format import open_memmap
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...backends.diffusers.encoders import VaeCodec
from ...disk.atomic import write_atomically
from ...model.conditioning import MID_GREY, encoded_history_frames
from ..degradation import (
    DepthDegradation,
    DepthOperator,
    FrameDegradation,
    FrameOperator,
    RoundTrips,
    Velocity,
    degrade_depth,
    degrade_frames,
    draw_depth_operators,
    draw_frame_operators,
)
from ..loop.trainer import generator_for
from ..tasks.vae import WholeClipVae
from .source import Clip, ClipSource

COMMIT_SECONDS = 20.0
"""Time after which what was encoded counts as done: a process that is killed loses at most so much, and a group of clips."""

Vision = Callable[[np.ndarray], Tensor]
"""CLIP vision features [1, 257, 1280] of a picture uint8 [H, W, 3]."""

Variant = int | None
"""Number of a degraded variant, or ``None`` for the clip as it is."""


# ---- the VAE


class WholeClipCodec(VaeCodec):
    """The VAE on clips in one piece, several times faster on a CPU and on small clips; their memory does not stay flat.

    Args:
        vae: a network of its own: its forward is changed.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae)
        self.whole = WholeClipVae(vae)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.normalised(self.whole.encode(pixels.contiguous(memory_format=torch.channels_last_3d)))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.whole.decode(latents).float().clamp(-1, 1)


class TrainingCodec:
    """Frames to normalised latents and back (:class:`.degradation.FrameCodec`).

    Args:
        vae: a network of its own: its forward is changed where ``whole`` is set.
        whole: clips in one piece (:class:`WholeClipCodec`); otherwise diffusers' chunks, whose memory stays flat.
        precision: the convolutions run in this dtype (by autocast).
    """

    def __init__(self, vae: AutoencoderKLWan, *, whole: bool = True, precision: torch.dtype = torch.bfloat16) -> None:
        self.codec = WholeClipCodec(vae) if whole else VaeCodec(vae)
        self.vae = vae
        self.precision = precision

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> [1, 16, f, h, w]."""
        shown = np.stack(list(frames))
        return self.encode_clips(torch.from_numpy(shown)[None], len(shown))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> [1, 16, f, h, w]."""
        return self.encode_clips(torch.from_numpy(frame)[None, None], frames)

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents [1, 16, f, h, w] -> float32 frames [T, H, W, 3] in [-1, 1]."""
        return self.decode_pixels(latents)[0].permute(1, 2, 3, 0).cpu().numpy()

    @torch.no_grad()
    def encode_clips(self, clips: Tensor, frames: int) -> Tensor:
        """Clips as they are, or shorter ones with mid grey after them.

        Args:
            clips: uint8 [B, T, H, W, 3] on any device.
            frames: that the VAE is to see, T or more.

        Returns:
            Normalised latents [B, 16, f, h, w] on the VAE's device.
        """
        shown = device_pixels(clips.to(self.vae.device))
        grey = shown.new_full((len(shown), frames - shown.shape[1], *shown.shape[2:]), MID_GREY)
        pixels = torch.cat([shown, grey], dim=1).permute(0, 4, 1, 2, 3)
        with self._autocast():
            return self.codec.encode_pixels(pixels)

    def decode_clips(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> uint8 [B, T, H, W, 3] on the VAE's device, as the next clip gets them."""
        return device_uint8(self.decode_pixels(latents).permute(0, 2, 3, 4, 1))

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> pixels [B, 3, T, H, W] in [-1, 1]."""
        with self._autocast():
            return self.codec.decode_pixels(latents)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, self.precision, enabled=self.precision != torch.float32)


def device_pixels(frames: Tensor) -> Tensor:
    """:func:`longvie_core.model.conditioning.pixels_from_uint8` where the tensor is; the same bits."""
    return frames.float() * (2 / 255) - 1


def device_uint8(pixels: Tensor) -> Tensor:
    """:func:`longvie_core.model.conditioning.frames_to_uint8` where the tensor is; the same bits."""
    return ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8)


# ---- tables on disk


class LatentTable:
    """Tensors of numbered clips under names, float16, memory-mapped; it knows which are there.

    Args:
        folder: made where it is missing.
        rows: how many clips there may be.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rows = folder, rows
        self._open: dict[str, tuple[np.memmap, np.memmap]] = {}
        self._written: list[tuple[str, int]] = []

    def reserve(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for tensors of these shapes; only one process at a time."""
        for name, shape in shapes.items():
            for path, dtype, rest in ((self._path(name), np.float16, shape), (self._path(f"{name}.done"), bool, ())):
                if not path.is_file():
                    write_atomically(path, lambda part, dtype=dtype, rest=rest: self._create(part, dtype, rest))

    def done(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Which of the clips are there, bool [len(rows)]; none where nothing was ever written under this name."""
        return self._arrays(name)[1][rows] if self._path(name).is_file() else np.zeros(len(rows), bool)

    def write(self, name: str, row: int, value: Tensor) -> None:
        """Keep a clip's tensor [1, ...]; it counts as there after the next :meth:`commit`."""
        self._arrays(name)[0][row] = value[0].cpu().numpy()
        self._written.append((name, row))

    def commit(self) -> None:
        """What was written is now there."""
        for name in {name for name, _ in self._written}:
            self._arrays(name)[0].flush()
        for name, row in self._written:
            self._arrays(name)[1][row] = True
        for name in {name for name, _ in self._written}:
            self._arrays(name)[1].flush()
        self._written.clear()

    def read(self, name: str, rows: Sequence[int]) -> Tensor:
        """float32 [len(rows), ...]; see :meth:`kept`."""
        return self.kept(name, rows).float()

    def kept(self, name: str, rows: Sequence[int]) -> Tensor:
        """float16 [len(rows), ...], as they are kept.

        Raises:
            ValueError: one of the clips is not there.
        """
        missing = int((~self.done(name, rows)).sum())
        if missing:
            raise ValueError(f"{self.folder}: {name} of {missing} clips is not encoded: run 'prepare' first")
        return torch.from_numpy(self._arrays(name)[0][rows])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _create(self, path: Path, dtype: type, shape: tuple[int, ...]) -> None:
        open_memmap(path, mode="w+", dtype=dtype, shape=(self.rows, *shape)).flush()

    def _arrays(self, name: str) -> tuple[np.memmap, np.memmap]:
        """Values and which of them are there."""
        if name not in self._open:
            found = tuple(open_memmap(self._path(part), mode="r+") for part in (name, f"{name}.done"))
            if any(len(array) != self.rows for array in found):
                raise ValueError(f"{self._path(name)} has {len(found[0])} rows instead of {self.rows}: use another folder")
            self._open[name] = found
        return self._open[name]


# ---- what is encoded


@dataclass(frozen=True)
class Wanted:
    """Which latents a training reads.

    Args:
        histories: lengths of histories in frames; 0 needs nothing.
        variants: degraded variants a clip.
        first_frame: how start frame and history are degraded in them; ``None`` = not.
        depth: how depth is; ``None`` = not.
        vision: whether CLIP vision features are read.
    """

    histories: tuple[int, ...] = ()
    variants: int = 1
    first_frame: FrameDegradation | None = None
    depth: DepthDegradation | None = None
    vision: bool = False

    def frame_operators(self, row: int, variant: int) -> tuple[FrameOperator, ...]:
        """What happens to the start frame and the history of a clip in one of its variants."""
        return draw_frame_operators(replace(self.first_frame, probability=1.0), generator_for(1, row, variant))

    def depth_operators(self, row: int, variant: int) -> tuple[DepthOperator, ...]:
        """What happens to the depth of a clip in one of its variants."""
        return draw_depth_operators(replace(self.depth, probability=1.0, start=0.0), 0, 1, generator_for(2, row, variant))

    def histories_of(self, past: int) -> list[int]:
        """Those lengths that a clip with ``past`` frames before it can have."""
        return [length for length in self.histories if 0 < length <= past + 1]

    def degraded_key(self, regenerator: str) -> str:
        """Names everything that the variants depend on but the clip and the VAE."""
        drawn = (None if part is None else {**asdict(part), "probability": 1} for part in (self.first_frame, self.depth))
        return _short_hash([*drawn, self.histories, regenerator])


def window_of(past: int, histories: Sequence[int]) -> int:
    """Frames up to the start frame that are degraded together: 4n + 1, enough for the longest history that is there."""
    longest = max([1, *(length for length in histories if length <= past + 1)])
    return encoded_history_frames(longest + 3)


# ---- pictures to be encoded


class Picture(NamedTuple):
    """What a tensor is made of.

    Args:
        frames: uint8 [T, H, W, 3] on any device.
        length: frames that the VAE sees; mid grey follows where T is less. 0: CLIP vision sees the one frame.
    """

    frames: Tensor
    length: int


Pictures = dict[str, Picture]
"""Name of a tensor -> what it is made of."""

FOR_VISION = 0


def control_pictures(name: str, control: np.ndarray) -> Pictures:
    """What is kept of a control uint8 [F, H, W, 3]."""
    frames = torch.from_numpy(control)
    return {name: Picture(frames, len(frames)), f"{name}_first": Picture(frames[:1], len(frames))}


def start_pictures(before: Tensor, frames: int, histories: Sequence[int], vision: bool) -> Pictures:
    """What is kept of what a clip starts from.

    Args:
        before: uint8 [n, H, W, 3], the frames up to the start frame, that one included.
        frames: of the clip.
        histories: lengths, each at most n.
        vision: whether CLIP vision features are read.
    """
    made = {"image": Picture(before[-1:], frames)}
    for length in histories:
        kept = encoded_history_frames(length)
        made[f"history_{length}"] = Picture(before[-length:][:kept], kept)
    if vision:
        made["vision"] = Picture(before[-1:], FOR_VISION)
    return made


def clean_pictures(clip: Clip, wanted: Wanted) -> Pictures:
    """What is kept of a clip as it is."""
    before = torch.from_numpy(clip.history(len(clip.past) + 1))
    video = {"video": Picture(torch.from_numpy(clip.frames), len(clip.frames))}
    starts = start_pictures(before, len(clip.frames), wanted.histories_of(len(clip.past)), wanted.vision)
    return video | control_pictures("dense", clip.dense) | control_pictures("sparse", clip.sparse) | starts


def in_parts(values: Sequence, most: int) -> Iterator[Sequence]:
    """At most so many at a time."""
    return (values[start : start + most] for start in range(0, len(values), most))


def encode_pictures(pictures: Sequence[Picture], codec: TrainingCodec, vision: Vision | None, batch: int) -> list[Tensor]:
    """Float16 tensors [16, f, h, w] on the CPU, or vision features [257, 1280], in the order of the pictures.

    Those of one shape go through the VAE together, ``batch`` at a time; nothing waits for the device until all are on the way.
    """
    alike: dict[tuple[int, int, torch.device], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        alike[len(picture.frames), picture.length, picture.frames.device].append(place)
    order, encoded = [], []
    for (_, length, _), places in alike.items():
        for part in in_parts(places, 1 if length == FOR_VISION else batch):
            frames = torch.stack([pictures[place].frames for place in part])
            found = vision(frames[0, 0].cpu().numpy()) if length == FOR_VISION else codec.encode_clips(frames, length)
            encoded.append(found.half())
            order += part
    values = [value for part in encoded for value in part.cpu()]
    return [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]


# ---- degraded starts


@dataclass(frozen=True)
class Start:
    """Start frame and history of a clip, degraded as one video, the way generation hands them on.

    Args:
        frames: uint8 [window, H, W, 3], window = 4n + 1; the last one is the start frame.
        operators: what happens to them.
        velocity: see :func:`.degradation.degrade_frames`.
    """

    frames: Tensor
    operators: tuple[FrameOperator, ...]
    velocity: Velocity

    @property
    def trips(self) -> int:
        """Round trips that it begins with, which are taken together with other clips'."""
        return self.operators[0].times if self.operators and isinstance(self.operators[0], RoundTrips) else 0


def degrade_starts(starts: Sequence[Start], codec: TrainingCodec, batch: int) -> list[Tensor]:
    """Degraded frames uint8 [window, H, W, 3] of each, in their order; round trips take ``batch`` at a time."""
    alike: dict[int, list[int]] = defaultdict(list)
    for place, start in enumerate(starts):
        alike[len(start.frames)].append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        places.sort(key=lambda place: -starts[place].trips)  # those that go on are always the first ones
        for part in in_parts(places, batch):
            frames = torch.stack([starts[place].frames for place in part])
            trips = [starts[place].trips for place in part]
            found |= zip(part, round_trips(frames, trips, codec), strict=True)
    return [_degraded_alone(starts[place], found[place], codec) for place in range(len(starts))]


def round_trips(clips: Tensor, trips: Sequence[int], codec: TrainingCodec) -> Tensor:
    """:func:`.degradation.vae_round_trip`, each clip as often as it says.

    Args:
        clips: uint8 [B, T, H, W, 3], T = 4n + 1.
        trips: of each, falling.
        codec: the VAE.
    """
    for trip in range(max(trips)):
        going = sum(times > trip for times in trips)
        again = codec.decode_clips(codec.encode_clips(clips[:going], clips.shape[1]))
        clips = torch.cat([again, clips[going:].to(again.device)])
    return clips


def _degraded_alone(start: Start, frames: Tensor, codec: TrainingCodec) -> Tensor:
    """What is left to do after the round trips."""
    left = start.operators[1:] if start.trips else start.operators
    if not left:
        return frames
    return torch.from_numpy(degrade_frames(frames.cpu().numpy(), left, codec, start.velocity))


# ---- all latents of a source


class ClipLatents:
    """All latents of a source's clips, clean and degraded.

    Args:
        source: whose.
        wanted: which.
        folder: of the cache; several VAEs, sources and ways of degrading live in it side by side.
        encoder: fingerprint of the VAE and of how it encodes.
        regenerator: fingerprint of the backbone that noise-then-denoise uses; empty where it does not happen.
    """

    def __init__(self, source: ClipSource, wanted: Wanted, folder: Path, encoder: str, regenerator: str = "") -> None:
        geometry = (source.width, source.height, source.frames)
        self.source, self.wanted = source, wanted
        self.folder = folder / _short_hash([source.identity, geometry, encoder])
        self.clean = LatentTable(self.folder, source.capacity)
        variants = self.folder / wanted.degraded_key(regenerator)
        self.degraded = [
            LatentTable(variants / str(variant), source.capacity) for variant in range(wanted.variants if self._degrades else 0)
        ]

    @property
    def _degrades(self) -> bool:
        return self.wanted.first_frame is not None or self.wanted.depth is not None

    def table(self, variant: Variant) -> LatentTable:
        """Where a variant's tensors are; ``None`` = the clean ones."""
        return self.clean if variant is None else self.degraded[variant]

    def reserve(self) -> None:
        """Make the files; only one process at a time."""
        clean, degraded = self._shapes()
        self.clean.reserve(clean)
        for table in self.degraded:
            table.reserve(degraded)

    def fill(
        self,
        rows: Sequence[int],
        codec: TrainingCodec,
        regenerator: Callable[[Clip], Velocity] | None = None,
        vision: Vision | None = None,
        batch: int = 1,
        workers: int = 0,
    ) -> Iterator[int]:
        """Encode what is missing of these clips; yields each clip's number when it is done with it.

        Args:
            rows: the clips.
            codec: the VAE.
            regenerator: the pretrained backbone for a clip; not needed where all degraded frames take VAE round trips.
            vision: CLIP vision, where features are wanted.
            batch: clips that are encoded together.
            workers: processes that read clips ahead; with 0 this one does.
        """
        lacking = [row for row, lacks in zip(rows, self._lacking(rows), strict=True) if lacks]
        context = "fork" if workers else None  # so that what is memory-mapped need not be sent
        reading = DataLoader(
            _Reading(self, lacking), batch, num_workers=workers, collate_fn=list, multiprocessing_context=context
        )
        committed = time.monotonic()
        for group in reading:
            self._encode(group, codec, regenerator, vision, batch)
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()
            yield from (read.row for read in group)
        self._commit()

    def missing(self, rows: Sequence[int]) -> int:
        """How many of these clips lack something."""
        return int(self._lacking(rows).sum())

    def _lacking(self, rows: Sequence[int]) -> np.ndarray:
        """Which of these clips lack something, bool [len(rows)]."""
        clean, degraded = self._shapes()
        lacking = self._lack(self.clean, clean, rows)
        for table in self.degraded:
            lacking |= self._lack(table, degraded, rows)
        return lacking

    def _lack(self, table: LatentTable, names: Iterable[str], rows: Sequence[int]) -> np.ndarray:
        """Which of these clips lack one of these tensors that they can have."""
        lacking = np.zeros(len(rows), bool)
        longest = np.array([self.source.past(row) + 1 for row in rows])
        for name in names:
            length = int(name.removeprefix("history_")) if name.startswith("history_") else 0
            lacking |= (longest >= length) & ~table.done(name, rows)
        return lacking

    def _encode(
        self,
        group: Sequence[_Read],
        codec: TrainingCodec,
        regenerator: Callable[[Clip], Velocity] | None,
        vision: Vision | None,
        batch: int,
    ) -> None:
        """Encode what these clips lack."""
        jobs = []
        for read in group:
            jobs += _jobs(self.clean, read.row, clean_pictures(read.clip, self.wanted))
            for table, dense in zip(self.degraded, read.dense, strict=False):
                jobs += _jobs(table, read.row, control_pictures("dense", dense))
        jobs += self._degraded_starts(group, codec, regenerator, batch)
        for job, value in zip(jobs, encode_pictures([job.picture for job in jobs], codec, vision, batch), strict=True):
            job.table.write(job.name, job.row, value[None])

    def _degraded_starts(
        self, group: Sequence[_Read], codec: TrainingCodec, regenerator: Callable[[Clip], Velocity] | None, batch: int
    ) -> list[_Job]:
        """Degraded starts of these clips, where some of their tensors are missing."""
        if self.wanted.first_frame is None:
            return []
        names = self._start_shapes()
        velocities = {read.row: _no_backbone if regenerator is None else regenerator(read.clip) for read in group}
        lacking = [
            (table, variant, read)
            for variant, table in enumerate(self.degraded)
            for read in group
            if self._lack(table, names, [read.row]).any()
        ]
        starts = []
        for _, variant, read in lacking:
            window = window_of(len(read.clip.past), self.wanted.histories)
            frames = torch.from_numpy(read.clip.history(window))
            starts.append(Start(frames, self.wanted.frame_operators(read.row, variant), velocities[read.row]))
        jobs = []
        for (table, _, read), before in zip(lacking, degrade_starts(starts, codec, batch), strict=True):
            histories = self.wanted.histories_of(len(read.clip.past))
            jobs += _jobs(table, read.row, start_pictures(before, self.source.frames, histories, self.wanted.vision))
        return jobs

    def _commit(self) -> None:
        for table in (self.clean, *self.degraded):
            table.commit()

    def _shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Names and shapes of the tensors of a clip, and of a degraded variant."""
        wanted, clip, start = self.wanted, self._latent_shape(self.source.frames), self._start_shapes()
        clean = {"video": clip, "dense": clip, "dense_first": clip, "sparse": clip, "sparse_first": clip, **start}
        degraded = {} if wanted.depth is None else {"dense": clip, "dense_first": clip}
        return clean, degraded if wanted.first_frame is None else degraded | start

    def _start_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of what a clip starts from."""
        shapes = {"image": self._latent_shape(self.source.frames)}
        for length in self.wanted.histories:
            if length:
                shapes[f"history_{length}"] = self._latent_shape(encoded_history_frames(length))
        return shapes | {"vision": (257, 1280)} if self.wanted.vision else shapes

    def _latent_shape(self, frames: int) -> tuple[int, ...]:
        return (16, 1 + (frames - 1) // 4, self.source.height // 8, self.source.width // 8)


class _Read(NamedTuple):
    """A clip, and its degraded depth uint8 [F, H, W, 3] in each variant where depth is degraded."""

    row: int
    clip: Clip
    dense: list[np.ndarray]


class _Reading(Dataset):
    """Clips for :class:`ClipLatents`; what can be done to them without the VAE is done here, in other processes too."""

    def __init__(self, latents: ClipLatents, rows: Sequence[int]) -> None:
        self.source, self.wanted, self.rows = latents.source, latents.wanted, rows
        self.variants = 0 if latents.wanted.depth is None else len(latents.degraded)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _Read:
        row = self.rows[place]
        clip = self.source[row]
        drawn = [self.wanted.depth_operators(row, variant) for variant in range(self.variants)]
        return _Read(row, clip, [np.stack(degrade_depth(clip.dense, operators)) for operators in drawn])


class _Job(NamedTuple):
    """A tensor to be made, and where it goes."""

    table: LatentTable
    row: int
    name: str
    picture: Picture


def _jobs(table: LatentTable, row: int, pictures: Pictures) -> list[_Job]:
    """Those tensors of a clip that are not there yet."""
    return [_Job(table, row, name, picture) for name, picture in pictures.items() if not table.done(name, [row])[0]]


def _no_backbone(noisy: Tensor, timestep: Tensor) -> Tensor:
    raise ValueError("noise-then-denoise needs the pretrained backbone: give it, or set first_frame.round_trip_share to 1")


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
