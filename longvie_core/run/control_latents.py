"""Control latents of a run, clip by clip: encoded once, kept on disk, and their pictures read while the model is busy.

All VAE work happens between two samplings: a clip's controls are encoded right after the clip before it was decoded. So a host
that has room for one model at a time exchanges VAE and video model once a clip and no more. Reading and resizing the pictures
needs no model: a thread does it one clip ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..disk.cache import ControlCache
from ..disk.read_ahead import ReadAhead
from ..disk.space import in_words
from ..disk.tensors import read_tensors, write_tensors
from ..interrupt import result_of
from ..model.clip import ControlEncoder, encode_control
from ..model.conditioning import control_condition
from ..plan import ClipPlan
from .broken_clips import checked_latents


class ControlWindow(Protocol):
    """One modality's control pictures, addressed by clip."""

    def window(self, plan: ClipPlan, clip: int) -> Iterable[np.ndarray]:
        """The clip's control frames, uint8 [H, W, 3] each, at the plan's size."""

    def digest(self, plan: ClipPlan, clip: int) -> str:
        """Text that is equal where the frames are."""


def control_latents(control: ControlWindow, plan: ClipPlan, clip: int, encoder: ControlEncoder) -> Tensor:
    """One modality's control latents [1, 36, f, h, w] of a clip.

    Raises:
        ValueError: the encoder's numbers broke.
    """
    return control_condition(*_encoded(list(control.window(plan, clip)), clip, "control", encoder))


def _encoded(frames: Sequence[np.ndarray], clip: int, name: str, encoder: ControlEncoder) -> tuple[Tensor, Tensor]:
    video, first_frame = encode_control(frames, encoder)
    step = f"encoding its {name}"
    return checked_latents(video, clip, step), checked_latents(first_frame, clip, step)


class LatentStore:
    """Encoded controls in the cache, named by the control's content and by what encodes it.

    While the store is open, nothing that is pinned is removed to make room; afterwards it is as any other entry. What cannot be
    read back is encoded again, and what cannot be written is not kept: a full disk costs time, not the run.

    Args:
        cache: where.
        encoder: fingerprint of the VAE and of how it encodes: equal only where equal pictures give equal bits.
    """

    def __init__(self, cache: ControlCache, encoder: str) -> None:
        self.cache = cache
        self.encoder = encoder
        self.misses = 0
        self.hits = 0
        self.notes: list[str] = []
        self._pinned: set[Path] = set()

    def __enter__(self) -> LatentStore:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._pinned:
            self.cache.release(path)
        self._pinned.clear()

    @property
    def report(self) -> list[str]:
        """What was encoded and what was kept, in words; nothing where there were no controls."""
        counts = [f"control latents: {self.misses} encoded, {self.hits} kept"] if self.misses or self.hits else []
        return [*self.notes, *counts]

    def pin(self, digest: str) -> Path:
        """Where the encoding of the control window with this digest lies, or will lie; from now on it stays there."""
        path = self.cache.path_of("latents", digest, self.encoder, suffix=".safetensors")
        if path not in self._pinned:
            self.cache.hold(path)
            self._pinned.add(path)
        return path

    def read(self, digest: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        """The two encodings of a window, of this shape each; ``None`` where they are not there or damaged."""
        stored = read_tensors(self.pin(digest)) or {}
        parts = stored.get("video"), stored.get("first_frame")
        if any(part is None or tuple(part.shape) != shape for part in parts):
            return None
        self.hits += 1
        return parts

    def write(self, digest: str, video: Tensor, first_frame: Tensor) -> None:
        """Keep the two encodings of a window; the room for them is made first."""
        self.misses += 1
        path = self.pin(digest)
        try:
            self.cache.trim()
            write_tensors(path, {"video": video, "first_frame": first_frame})
            self.cache.trim()
        except OSError as error:
            size = in_words(video.nbytes + first_frame.nbytes)
            note = (
                f"control latents cannot be kept in {self.cache.folder}, {size} a clip and control: {error}; they are encoded "
                "anew in the next run"
            )
            if note not in self.notes:
                self.notes.append(note)


class ControlLatents:
    """Control latents of a run's clips, asked for in their order.

    Args:
        plan: of the run.
        dense, sparse: control pictures; ``None`` leaves the modality out.
        encoder: what encodes them.
        store: keeps the encodings from run to run; ``None`` = encode all of them.
    """

    def __init__(
        self,
        plan: ClipPlan,
        dense: ControlWindow | None,
        sparse: ControlWindow | None,
        encoder: ControlEncoder,
        store: LatentStore | None = None,
    ) -> None:
        self.plan = plan
        self.controls: Mapping[str, ControlWindow] = {
            name: control for name, control in (("dense", dense), ("sparse", sparse)) if control is not None
        }
        self.encoder = encoder
        self.store = store
        self._reader = ReadAhead()
        self._ahead: dict[tuple[str, int], Future[list[np.ndarray]]] = {}

    def __enter__(self) -> ControlLatents:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.stop()
        self._ahead.clear()

    def pin(self, clips: Iterable[int]) -> None:
        """Say which clips will be asked for, so that the cache does not drop the later ones to make room for the first."""
        if self.store is not None:
            for clip in clips:
                for control in self.controls.values():
                    self.store.pin(control.digest(self.plan, clip))

    def read_ahead(self, clip: int) -> None:
        """Begin to read a clip's pictures on a thread; does nothing for encodings that are on disk already."""
        for name, control in self.controls.items():
            if self.store is None or not self.store.pin(control.digest(self.plan, clip)).is_file():
                self._ahead[name, clip] = self._reader.read(partial(control.window, self.plan, clip))

    def of(self, clip: int) -> Iterator[Tensor | None]:
        """Control latents [1, 36, f, h, w] of a clip, dense and sparse; ``None`` where the modality is absent."""
        for name in ("dense", "sparse"):
            yield self._latents(name, clip) if name in self.controls else None

    def _latents(self, name: str, clip: int) -> Tensor:
        reading = self._ahead.pop((name, clip), None)
        if self.store is None:
            return control_condition(*self._encode(name, clip, reading))
        digest = self.controls[name].digest(self.plan, clip)
        parts = self.store.read(digest, (1, 16, self.plan.latent_frames, *self.plan.latent_size))
        # LongVie 0.1 kept broken numbers as well.
        if parts is None or not all(part.isfinite().all() for part in parts):
            parts = self._encode(name, clip, reading)
            self.store.write(digest, *parts)
        return control_condition(*parts)

    def _encode(self, name: str, clip: int, reading: Future[list[np.ndarray]] | None) -> tuple[Tensor, Tensor]:
        frames = list(self.controls[name].window(self.plan, clip)) if reading is None else result_of(reading)
        return _encoded(frames, clip, f"{name} control", self.encoder)
