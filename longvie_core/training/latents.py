"""Latents of training clips: encoded once, kept on disk, memory-mapped.

Degraded pictures are made here too, beforehand: each clip gets a few *variants* of its depth, its start frame and its history,
drawn from (clip, variant) alone. To make them in the training loop would cost more than the training step itself (a clip is
seen many times, and ten trips through a video VAE are slow at any size), and the network that regenerates frames would have
to stay in memory beside the one that is trained. How often a variant is shown is up to the training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.lib.format import open_memmap
from torch import Tensor

from ..backends.diffusers import VaeCodec
from ..conditioning import encoded_history_frames, first_frame_then_grey, pixels_from_uint8
from ..files import write_atomically
from .data import Clip, ClipSource
from .degradation import (
    DepthDegradation,
    DepthOperator,
    FrameDegradation,
    FrameOperator,
    Velocity,
    degrade_depth,
    degrade_frames,
    draw_depth_operators,
    draw_frame_operators,
)
from .trainer import generator_for
from .vae import WholeClipVae

COMMIT_EVERY = 50
"""Clips after which what was encoded counts as done: a process that is killed loses at most so many."""

Vision = Callable[[np.ndarray], Tensor]
"""CLIP vision features [1, 257, 1280] of a picture uint8 [H, W, 3]."""


# ---- the VAE


class TrainingCodec:
    """Frames to normalised latents and back (:class:`.degradation.FrameCodec`).

    Args:
        vae: a network of its own: its forward is changed where ``whole`` is set.
        whole: clips in one piece, several times faster on a CPU; otherwise diffusers' chunks, whose memory stays flat.
        precision: the convolutions run in this dtype (by autocast).
    """

    def __init__(self, vae: AutoencoderKLWan, *, whole: bool = True, precision: torch.dtype = torch.bfloat16) -> None:
        self.normal = VaeCodec(vae)
        self.vae = vae
        self.whole = WholeClipVae(vae) if whole else None
        self.precision = precision

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> [1, 16, f, h, w]."""
        return self._encode(pixels_from_uint8(np.stack(list(frames))))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> [1, 16, f, h, w]."""
        return self._encode(first_frame_then_grey(frame, frames))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents [1, 16, f, h, w] -> float32 frames [T, H, W, 3] in [-1, 1]."""
        return self.decode_pixels(latents)[0].permute(1, 2, 3, 0).cpu().numpy()

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> pixels [B, 3, T, H, W] in [-1, 1]."""
        with self._autocast():
            if self.whole is None:
                return self.normal.decode_pixels(latents)
            return self.whole.decode(self.normal.denormalised(latents)).float().clamp(-1, 1)

    @torch.no_grad()
    def _encode(self, pixels: np.ndarray) -> Tensor:
        clip = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].to(self.vae.device)
        with self._autocast():
            if self.whole is None:
                return self.normal.encode_pixels(clip)
            latents = self.whole.encode(clip.contiguous(memory_format=torch.channels_last_3d))
        return self.normal.normalised(latents)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, self.precision, enabled=self.precision != torch.float32)


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
        """float32 [len(rows), ...].

        Raises:
            ValueError: one of the clips is not there.
        """
        missing = int((~self.done(name, rows)).sum())
        if missing:
            raise ValueError(f"{self.folder}: {name} of {missing} clips is not encoded: run 'prepare' first")
        return torch.from_numpy(self._arrays(name)[0][rows]).float()

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


@dataclass
class DegradedStart:
    """Start frame and history of a clip, degraded as one video, the way generation hands them on.

    Args:
        clip: whose.
        window: frames of history that are degraded, 4n + 1.
        operators, codec, velocity: see :func:`.degradation.degrade_frames`.
    """

    clip: Clip
    window: int
    operators: tuple[FrameOperator, ...]
    codec: TrainingCodec
    velocity: Velocity

    @cached_property
    def frames(self) -> np.ndarray:
        """uint8 [window, H, W, 3]; the last one is the start frame."""
        return degrade_frames(self.clip.history(self.window), self.operators, self.codec, self.velocity)

    def history(self, length: int) -> np.ndarray:
        """The frames of a history of ``length`` that the VAE encodes."""
        return self.frames[-length:][: encoded_history_frames(length)]


def window_of(past: int, histories: Sequence[int]) -> int:
    """Frames up to the start frame that are degraded together: 4n + 1, enough for the longest history that is there."""
    longest = max([1, *(length for length in histories if length <= past + 1)])
    return encoded_history_frames(longest + 3)


Encodings = dict[str, Callable[[], Tensor]]
"""Name of a tensor -> what computes it."""


def clean_encodings(clip: Clip, wanted: Wanted, codec: TrainingCodec, vision: Vision | None) -> Encodings:
    """What is kept of a clip as it is."""
    frames = len(clip.frames)
    made: Encodings = {
        "video": partial(codec.encode, clip.frames),
        "image": partial(codec.encode_first_frame, clip.frames[0], frames),
    }
    for name, pictures in (("dense", clip.dense), ("sparse", clip.sparse)):
        made[name] = partial(codec.encode, pictures)
        made[f"{name}_first"] = partial(codec.encode_first_frame, pictures[0], frames)
    for length in wanted.histories_of(len(clip.past)):
        made[f"history_{length}"] = partial(codec.encode, clip.history(length)[: encoded_history_frames(length)])
    if wanted.vision:
        made["vision"] = partial(vision, clip.frames[0])
    return made


def degraded_encodings(
    clip: Clip, row: int, variant: int, wanted: Wanted, codec: TrainingCodec, velocity: Velocity, vision: Vision | None
) -> Encodings:
    """What is kept of one degraded variant of a clip."""
    frames = len(clip.frames)
    made: Encodings = {}
    if wanted.depth is not None:
        dense = degrade_depth(clip.dense, wanted.depth_operators(row, variant))
        made["dense"] = partial(codec.encode, dense)
        made["dense_first"] = partial(codec.encode_first_frame, dense[0], frames)
    if wanted.first_frame is not None:
        window = window_of(len(clip.past), wanted.histories)
        start = DegradedStart(clip, window, wanted.frame_operators(row, variant), codec, velocity)
        made["image"] = lambda: codec.encode_first_frame(start.frames[-1], frames)
        for length in wanted.histories_of(len(clip.past)):
            made[f"history_{length}"] = lambda length=length: codec.encode(start.history(length))
        if wanted.vision:
            made["vision"] = lambda: vision(start.frames[-1])
    return made


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

    def table(self, variant: int | None) -> LatentTable:
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
    ) -> Iterator[int]:
        """Encode what is missing of these clips; yields each clip's number when it is done with it.

        Args:
            rows: the clips.
            codec: the VAE.
            regenerator: the pretrained backbone for a clip; not needed where all degraded frames take VAE round trips.
            vision: CLIP vision, where features are wanted.
        """
        since_commit = 0
        for row in rows:
            if not self.missing([row]):
                continue
            clip = self.source[row]
            _write(self.clean, row, clean_encodings(clip, self.wanted, codec, vision))
            velocity = _no_backbone if regenerator is None else regenerator(clip)
            for variant, table in enumerate(self.degraded):
                _write(table, row, degraded_encodings(clip, row, variant, self.wanted, codec, velocity, vision))
            since_commit += 1
            if since_commit == COMMIT_EVERY:
                self._commit()
                since_commit = 0
            yield row
        self._commit()

    def missing(self, rows: Sequence[int]) -> int:
        """How many of these clips lack something."""
        lacking = np.zeros(len(rows), bool)
        longest = np.array([self.source.past(row) + 1 for row in rows])
        clean, degraded = self._shapes()
        for table, names in ((self.clean, clean), *((table, degraded) for table in self.degraded)):
            for name in names:
                length = int(name.removeprefix("history_")) if name.startswith("history_") else 0
                lacking |= (longest >= length) & ~table.done(name, rows)
        return int(lacking.sum())

    def _commit(self) -> None:
        for table in (self.clean, *self.degraded):
            table.commit()

    def _shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Names and shapes of the tensors of a clip, and of a degraded variant."""
        source, wanted = self.source, self.wanted

        def latent(frames: int) -> tuple[int, ...]:
            return (16, 1 + (frames - 1) // 4, source.height // 8, source.width // 8)

        clip = latent(source.frames)
        start = {"image": clip}
        start |= {f"history_{length}": latent(encoded_history_frames(length)) for length in wanted.histories if length}
        if wanted.vision:
            start["vision"] = (257, 1280)
        clean = {"video": clip, "dense": clip, "dense_first": clip, "sparse": clip, "sparse_first": clip, **start}
        degraded = {} if wanted.depth is None else {"dense": clip, "dense_first": clip}
        return clean, degraded if wanted.first_frame is None else degraded | start


def _write(table: LatentTable, row: int, encodings: Encodings) -> None:
    for name, compute in encodings.items():
        if not table.done(name, [row])[0]:
            table.write(name, row, compute())


def _no_backbone(noisy: Tensor, timestep: Tensor) -> Tensor:
    raise ValueError("noise-then-denoise needs the pretrained backbone: give it, or set first_frame.round_trip_share to 1")


def _short_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
