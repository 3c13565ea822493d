"""All latents of a source's clips, clean and degraded: encoded once, kept in tables on disk.

Degraded pictures are encoded beforehand too: each clip gets a few *variants* of its depth, its start frame and its history,
drawn from (clip, variant) alone. To degrade them in the training loop would cost more than the training step itself (a clip is
seen many times, and ten round trips through a video VAE are slow at any size), and the network that regenerates frames would
have to stay in memory beside the one that is trained. How often a variant is shown is up to the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...model.conditioning import encoded_history_frames
from ..degradation.dense import degrade_depth
from ..degradation.frames import Velocity
from .codec import TrainingCodec
from .encode import Picture, Pictures, Vision, clean_pictures, control_pictures, encode_pictures, start_pictures
from .source import Clip, ClipSource
from .spec import LatentSpec, Variant, short_hash, window_of
from .starts import Start, degrade_starts
from .table import LatentTable

COMMIT_SECONDS = 20.0
"""Time after which what was encoded is flushed and counts as done: the most that a process loses when it is killed, apart from
the group of clips that it is encoding."""


class ClipLatents:
    """All latents of a source's clips, clean and degraded.

    Args:
        source: the clips.
        spec: which latents.
        folder: of the cache; several VAEs, sources and ways of degrading live in it side by side.
        encoder: fingerprint of the VAE and of how it encodes.
        regenerator: fingerprint of the backbone that noise-then-denoise uses; empty where it does not happen.
    """

    def __init__(self, source: ClipSource, spec: LatentSpec, folder: Path, encoder: str, regenerator: str = "") -> None:
        geometry = (source.width, source.height, source.frames)
        self.source, self.spec = source, spec
        self.folder = folder / short_hash([source.identity, geometry, encoder])
        self.clean = LatentTable(self.folder, source.capacity)
        variants = self.folder / spec.degraded_key(regenerator)
        self.degraded = [
            LatentTable(variants / str(variant), source.capacity) for variant in range(spec.variants if self._degrades else 0)
        ]

    @property
    def _degrades(self) -> bool:
        return self.spec.first_frame is not None or self.spec.depth is not None

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
        """Encode what is missing of these clips; yields each clip's number when its tensors are written.

        Args:
            rows: the clips.
            codec: the VAE.
            regenerator: the pretrained backbone's velocity for a clip; not needed where all degraded frames take round trips.
            vision: CLIP vision, where the spec has features.
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
            jobs += _jobs(self.clean, read.row, clean_pictures(read.clip, self.spec))
            for table, dense in zip(self.degraded, read.dense, strict=False):
                jobs += _jobs(table, read.row, control_pictures("dense", dense))
        jobs += self._degraded_starts(group, codec, regenerator, batch)
        for job, value in zip(jobs, encode_pictures([job.picture for job in jobs], codec, vision, batch), strict=True):
            job.table.write(job.name, job.row, value[None])

    def _degraded_starts(
        self, group: Sequence[_Read], codec: TrainingCodec, regenerator: Callable[[Clip], Velocity] | None, batch: int
    ) -> list[_Job]:
        """Degraded starts of these clips, where some of their tensors are missing."""
        if self.spec.first_frame is None:
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
            window = window_of(len(read.clip.past), self.spec.histories)
            frames = torch.from_numpy(read.clip.history(window))
            starts.append(Start(frames, self.spec.frame_operators(read.row, variant), velocities[read.row]))
        jobs = []
        for (table, _, read), before in zip(lacking, degrade_starts(starts, codec, batch), strict=True):
            histories = self.spec.histories_of(len(read.clip.past))
            jobs += _jobs(table, read.row, start_pictures(before, self.source.frames, histories, self.spec.vision))
        return jobs

    def _commit(self) -> None:
        for table in (self.clean, *self.degraded):
            table.commit()

    def _shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Names and shapes of the tensors of a clip, and of a degraded variant."""
        spec, clip, start = self.spec, self._latent_shape(self.source.frames), self._start_shapes()
        clean = {"video": clip, "dense": clip, "dense_first": clip, "sparse": clip, "sparse_first": clip, **start}
        degraded = {} if spec.depth is None else {"dense": clip, "dense_first": clip}
        return clean, degraded if spec.first_frame is None else degraded | start

    def _start_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of what a clip starts from."""
        shapes = {"image": self._latent_shape(self.source.frames)}
        for length in self.spec.histories:
            if length:
                shapes[f"history_{length}"] = self._latent_shape(encoded_history_frames(length))
        return shapes | {"vision": (257, 1280)} if self.spec.vision else shapes

    def _latent_shape(self, frames: int) -> tuple[int, ...]:
        return (16, 1 + (frames - 1) // 4, self.source.height // 8, self.source.width // 8)


class _Read(NamedTuple):
    """A clip, and its degraded depth uint8 [F, H, W, 3] in each variant where depth is degraded."""

    row: int
    clip: Clip
    dense: list[np.ndarray]


class _Reading(Dataset):
    """Clips for :class:`ClipLatents`, their depth degraded already: that needs no VAE, so worker processes can do it."""

    def __init__(self, latents: ClipLatents, rows: Sequence[int]) -> None:
        self.source, self.spec, self.rows = latents.source, latents.spec, rows
        self.variants = 0 if latents.spec.depth is None else len(latents.degraded)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _Read:
        row = self.rows[place]
        clip = self.source[row]
        draws = [self.spec.depth_operators(row, variant) for variant in range(self.variants)]
        return _Read(row, clip, [np.stack(degrade_depth(clip.dense, operators)) for operators in draws])


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
