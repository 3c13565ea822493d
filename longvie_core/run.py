"""A run on disk: nothing that was finished is ever lost, and nothing unchanged is ever rendered twice.

``run.json`` is the manifest. Per clip there are ``clip_0001.safetensors`` (its latents and the lossless tail that the next clip
starts from) and ``clip_0001.mp4`` (the frames that the stitched video takes from it). Every file is written under another name,
flushed to disk and renamed; a clip counts as finished when the manifest says so, and is believed only while its hashes agree.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .autoregress import Carry
from .clips import ClipPlan
from .files import file_sha256, write_atomically
from .video import VideoWriter, concat

MANIFEST = "run.json"
MANIFEST_VERSION = 1
VIDEO = "video.mp4"
MAX_NAME = 100

MAX_NAME_BYTES = 200
"""File systems count bytes; some of the 255 that they allow are left for what a host adds."""

_DEVICE_NAMES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def check_run_name(name: str) -> str:
    """A run name that is one plain folder name on every system.

    Raises:
        ValueError: naming what is wrong with it.
    """
    if not name or len(name) > MAX_NAME:
        raise ValueError(f"run name has {len(name)} characters: use 1 to {MAX_NAME}")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(f"run name is too long for a folder ({len(name.encode(errors='replace'))} bytes): use a shorter one")
    bad = sorted({character for character in name if character in '/\\:*?"<>|' or not character.isprintable()})
    if bad:
        raise ValueError(f"run name {name!r} holds {', '.join(map(repr, bad))}: use letters, digits, spaces, '-', '_' and '.'")
    if name.startswith((".", " ")) or name.endswith((".", " ")):
        raise ValueError(f"run name {name!r} starts or ends with a dot or space: use a plain folder name")
    if _DEVICE_NAMES.fullmatch(name):
        raise ValueError(f"run name {name!r} is a device name on Windows: choose another")
    return name


@dataclass(frozen=True)
class ClipKey:
    """What a clip depends on, part by part, so that a change can be named.

    Args:
        parts: part (such as ``"prompt"``) -> hash or short text.
    """

    parts: Mapping[str, str]

    def fingerprint(self, previous: str) -> str:
        """Hash of the parts and of the clip before (``""`` for the first)."""
        text = json.dumps([previous, sorted(self.parts.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def changed(self, old: Mapping[str, str]) -> list[str]:
        """Names of the parts that differ."""
        return sorted(name for name in self.parts.keys() | old.keys() if self.parts.get(name) != old.get(name))


@dataclass(frozen=True)
class FinishedClip:
    """Manifest entry of a finished clip."""

    fingerprint: str
    parts: dict[str, str]
    frames: int
    latents_sha256: str
    video_sha256: str
    seconds: float


class ManifestVersionError(ValueError):
    """A manifest of another version: to be left alone, not to be set aside as damaged."""


@dataclass(frozen=True)
class Manifest:
    """Contents of ``run.json``."""

    fps: str = ""
    clips: tuple[FinishedClip, ...] = ()
    video: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"version": MANIFEST_VERSION, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, name: str = MANIFEST) -> Manifest:
        """Parse a manifest.

        Raises:
            ManifestVersionError: of another version.
            ValueError: not JSON, or with a field of the wrong kind.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is damaged ({error})") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version != MANIFEST_VERSION:
            raise ManifestVersionError(
                f"{name} has version {version!r}, this LongVie writes version {MANIFEST_VERSION}: update LongVie or use "
                "another run name"
            )
        try:
            clips = tuple(_finished_clip(entry) for entry in data["clips"])
            return cls(_rate(data["fps"]) if clips else "", clips, dict(data["video"]))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{name} is damaged ({type(error).__name__}: {error})") from error


def _rate(value: object) -> str:
    if Fraction(_text(value)) <= 0:
        raise ValueError(f"fps {value!r} is not positive")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _finished_clip(entry: dict) -> FinishedClip:
    parts = {_text(key): _text(value) for key, value in entry["parts"].items()}
    hashes = [_text(entry[key]) for key in ("fingerprint", "latents_sha256", "video_sha256")]
    return FinishedClip(hashes[0], parts, int(entry["frames"]), hashes[1], hashes[2], float(entry["seconds"]))


@dataclass(frozen=True)
class Resume:
    """What a run keeps: the first ``kept`` clips. ``reasons`` says in words why it goes on where it does."""

    kept: int
    reasons: tuple[str, ...] = ()


class Run:
    """A run folder.

    Args:
        folder: made if it does not exist.

    Raises:
        ValueError: its manifest is of another version (a damaged one is set aside, see :attr:`notes`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest = self._read_manifest()

    def latents_path(self, clip: int) -> Path:
        return self.folder / f"clip_{clip + 1:04d}.safetensors"

    def video_path(self, clip: int) -> Path:
        return self.folder / f"clip_{clip + 1:04d}.mp4"

    @property
    def video(self) -> Path:
        """The stitched video."""
        return self.folder / VIDEO

    def resume(self, keys: Sequence[ClipKey], fixed: int = 0) -> Resume:
        """How many leading clips are finished, intact and made from the same things.

        Args:
            keys: of all clips that are wanted, in order.
            fixed: this many leading clips are kept even where they were made with other settings; they must be there.

        Raises:
            ValueError: one of the fixed clips is missing or damaged.
        """
        reasons = []
        previous = ""
        for clip, key in enumerate(keys):
            if clip >= len(self.manifest.clips):
                if clip < fixed:
                    raise ValueError(f"clip {clip + 1} is not finished in this run yet: start the range at clip {clip + 1}")
                return Resume(clip, tuple(reasons))
            finished = self.manifest.clips[clip]
            damage = self._damage(clip, finished)
            if damage:
                if clip < fixed:
                    raise ValueError(f"clip {clip + 1} must be kept, but {damage}: start the range at clip {clip + 1}")
                return Resume(clip, (*reasons, f"clip {clip + 1} is rendered again: {damage}"))
            if finished.fingerprint != key.fingerprint(previous):
                changed = ", ".join(key.changed(finished.parts)) or "an earlier clip"
                if clip >= fixed:
                    return Resume(clip, (*reasons, f"clips {clip + 1} .. {len(keys)} are rendered again: {changed} changed"))
                reasons.append(f"clip {clip + 1} is kept although it was made with another {changed}")
            previous = finished.fingerprint
        return Resume(len(keys), tuple(reasons))

    def carry(self, clip: int, plan: ClipPlan) -> Carry:
        """What clip ``clip`` needs of the one before it, read back from disk.

        Raises:
            ValueError: the tail has another size than the plan.
        """
        with safe_open(self.latents_path(clip - 1), framework="pt") as file:
            tail = file.get_tensor("tail").numpy()
        if tail.shape[1:] != (plan.height, plan.width, 3):
            raise ValueError(
                f"clip {clip} was rendered at {tail.shape[2]}x{tail.shape[1]}, the plan says {plan.width}x{plan.height}: "
                "keep the size, or use another run name"
            )
        return Carry(tail, first=False)

    def last_frame(self, clip: int, plan: ClipPlan) -> np.ndarray:
        """The last frame that the video takes from a finished clip, uint8 [H, W, 3]."""
        frames = plan.kept_frames(clip)
        with safe_open(self.latents_path(clip), framework="pt") as file:
            return file.get_tensor("last").numpy() if frames.stop < plan.frames else file.get_tensor("tail")[-1].numpy()

    def frames(self, clips: int) -> int:
        """Frames of the video made of the first ``clips`` clips."""
        return sum(clip.frames for clip in self.manifest.clips[:clips])

    def state(self) -> str:
        """Text that changes when the manifest or the stitched video does."""
        return json.dumps([_stamp(path) if path.is_file() else None for path in (self.folder / MANIFEST, self.video)])

    def save_clip(
        self, clip: int, plan: ClipPlan, key: ClipKey, latents: Tensor, frames: np.ndarray, seconds: float
    ) -> FinishedClip:
        """Write a finished clip; when this returns it survives a crash.

        Args:
            clip: its number; everything after it in the manifest is forgotten.
            plan: of the run.
            key: what it was made from.
            latents: [1, 16, f, h, w], as the sampler gave them.
            frames: all frames of the clip, uint8 [T, H, W, 3].
            seconds: how long it took.
        """
        kept = plan.kept_frames(clip)
        tail = torch.from_numpy(Carry.after(plan, frames).frames)
        tensors = {"latent": latents.float().cpu().contiguous(), "tail": tail}
        if kept.stop < plan.frames:
            tensors["last"] = torch.from_numpy(frames[kept.stop - 1].copy())
        write_atomically(self.latents_path(clip), lambda part: save_file(tensors, part))
        with VideoWriter(self.video_path(clip), plan.width, plan.height, plan.fps) as writer:
            for frame in frames[kept.start : kept.stop]:
                writer.write(frame)
        previous = self.manifest.clips[clip - 1].fingerprint if clip else ""
        finished = FinishedClip(
            fingerprint=key.fingerprint(previous),
            parts=dict(key.parts),
            frames=len(kept),
            latents_sha256=file_sha256(self.latents_path(clip)),
            video_sha256=file_sha256(self.video_path(clip)),
            seconds=round(seconds, 3),
        )
        self._write(replace(self.manifest, fps=str(plan.fps), clips=(*self.manifest.clips[:clip], finished)))
        return finished

    def assemble(self, clips: int, metadata: Mapping[str, str] | None = None) -> Path:
        """Join the first ``clips`` finished clips into ``video.mp4`` by stream copy; made again only if they changed.

        Raises:
            ValueError: so many clips are not finished.
        """
        if not 1 <= clips <= len(self.manifest.clips):
            raise ValueError(f"this run has {len(self.manifest.clips)} finished clips, {clips} cannot be joined")
        parts = [clip.video_sha256 for clip in self.manifest.clips[:clips]]
        made_from = hashlib.sha256(json.dumps([parts, dict(metadata or {})]).encode()).hexdigest()
        if not self.video.is_file() or self.manifest.video != {"made_from": made_from, **_stamp(self.video)}:
            concat(
                [self.video_path(clip) for clip in range(clips)],
                self.video,
                fps=Fraction(self.manifest.fps),
                audio_from=None,
                metadata=metadata,
            )
            self._write(replace(self.manifest, video={"made_from": made_from, **_stamp(self.video)}))
        return self.video

    def _damage(self, clip: int, finished: FinishedClip) -> str:
        for path, sha256 in (
            (self.latents_path(clip), finished.latents_sha256),
            (self.video_path(clip), finished.video_sha256),
        ):
            if not path.is_file():
                return f"{path.name} is missing"
            if file_sha256(path) != sha256:
                return f"{path.name} was changed or cut off since it was written"
        return ""

    def _read_manifest(self) -> Manifest:
        path = self.folder / MANIFEST
        if not path.is_file():
            return Manifest()
        try:
            return Manifest.from_json(path.read_text(encoding="utf-8"))
        except ManifestVersionError:
            raise
        except ValueError as error:
            aside = path.with_name(f"{MANIFEST}.damaged-{int(time.time())}")
            path.replace(aside)
            self.notes.append(f"{error}; it was set aside as {aside.name} and the run starts over")
            return Manifest()

    def _write(self, manifest: Manifest) -> None:
        write_atomically(self.folder / MANIFEST, lambda part: part.write_text(manifest.to_json(), encoding="utf-8"))
        self.manifest = manifest


def clip_range(text: str, clips: int | None) -> range:
    """Which clips to render, from text that counts from 1: empty = all, ``3``, ``3-5``, ``4-``, ``-2``.

    Args:
        text: as above.
        clips: number of clips there are; ``None`` checks the text alone.

    Returns:
        Clip numbers from 0.

    Raises:
        ValueError: not such a text, or outside the clips there are.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,6})|(\d{1,6})?\s*-\s*(\d{1,6})?)?\s*", text)
    if match is None:
        raise ValueError(f"clips {text!r} is no range: leave it empty for all, or write 3, 3-5, or 4-")
    single, first, last = (int(group) if group else None for group in match.groups())
    start, stop = (single, single) if single is not None else (1 if first is None else first, last)
    if start < 1 or (stop is not None and stop < start):
        raise ValueError(f"clips {text!r} is an empty range: clips count from 1, the smaller number first")
    if clips is None:
        return range(start - 1, stop or start)
    stop = clips if stop is None else stop
    if not start <= stop <= clips:
        raise ValueError(f"clips {text!r} is outside the {clips} clips of this plan")
    return range(start - 1, stop)


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
