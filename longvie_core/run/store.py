"""A run on disk: nothing that was finished is ever lost, and nothing unchanged is ever rendered twice.

``run.json`` is the manifest. Per clip there are ``clip_0001.safetensors`` (its latents and the lossless tail that the next clip
starts from) and ``clip_0001.mp4`` (the frames that the stitched video takes from it). Every file is written under another name,
flushed to disk and renamed; a clip counts as finished when the manifest says so, and is believed only while its hashes agree.
The manifest holds its own hash and has a copy, ``run.copy.json``, that takes over when it is damaged. Everything that writes
does so inside :meth:`Run.locked`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..disk.atomic import make_folder, remove_unfinished, write_atomically
from ..disk.fingerprints import file_sha256, text_sha256
from ..disk.lock import exclusive
from ..disk.space import is_disk_full
from ..media.concat import concat
from ..media.write import VideoWriter
from ..model.clip import TAIL_FRAMES
from ..plan import ClipPlan
from .colour_anchor import AnchorSettings, latent_statistics, pixel_statistics
from .keys import ClipKey, in_words
from .loop import Carry, ClipResult
from .manifest import MANIFEST, MANIFEST_COPY, FinishedClip, Manifest, ManifestVersionError

LOCK = "run.lock"
VIDEO = "video.mp4"
COLOURS = "colours"
"""Statistics of the first clip's frames, kept beside its latents: later clips may be anchored to them at any time."""

VIDEO_BYTES_PER_PIXEL = 1
"""More than the clips' h264 ever needs: pure noise takes 0.6 to 0.85 bytes a pixel."""
VIDEO_MARGIN = 1.5
"""By how much a clip may be larger than the largest one of the run so far."""
TEXT_BYTES = 512 * 4096 * 4
"""A text embedding of umt5-xxl, float32."""
FILE_BYTES = 64 << 10
"""Headers, manifest entry and what a file system adds, a clip."""


@dataclass(frozen=True)
class Resume:
    """What a run keeps: the first ``kept`` clips. ``reasons`` says in words why it goes on where it does."""

    kept: int
    reasons: tuple[str, ...] = ()


class Run:
    """A run folder. Making one reads its manifest and writes nothing but the folder; see :meth:`locked` for the rest.

    Args:
        folder: made if it does not exist.

    Attributes:
        manifest: what is finished.
        notes: what :meth:`locked` had to mend, in words.

    Raises:
        ValueError: its manifest is of another version, or the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.manifest = Manifest()
        self._wanted = 0
        self._kept = (self.manifest, 0)
        with self._errors_by_name():
            make_folder(folder)
            self.manifest, _ = self._read()

    @contextmanager
    def locked(self) -> Iterator[Run]:
        """Hold the run for a ``with`` block: nobody else may write it, and what it finds is in order.

        Half-written files of a killed process are removed, the manifest is read again, and a damaged one is set aside (see
        :attr:`notes`). Errors of the disk inside the block come out by name.

        Raises:
            ValueError: another loop writes this run; the folder cannot be written, or holds a link that leads out of it;
                the manifest is of another version; or, at any time in the block, the disk is full.
        """
        with self._errors_by_name():
            self._refuse_link(self.folder / LOCK)
            with exclusive(self.folder / LOCK, f"run {self.folder.name!r}") as known:
                self.notes = []
                if not known:
                    self.notes.append("this file system has no locks: let no other ComfyUI write the same run meanwhile")
                self._refuse_links()
                if remove_unfinished(self.folder):
                    self.notes.append("half-written files of a stopped process were removed")
                self._mend_manifest()
                yield self

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
        resume = self._compare(keys, fixed)
        self._wanted = len(keys)
        self._kept = (self.manifest, resume.kept)
        return resume

    def _compare(self, keys: Sequence[ClipKey], fixed: int) -> Resume:
        reasons: list[str] = []
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
            if not key.matches(finished.fingerprint, previous):
                groups, members = in_words(key.changed(finished.parts))
                changed = groups or "an earlier clip"
                if clip >= fixed:
                    why = f"clips {clip + 1} .. {len(keys)} are rendered again: {changed} changed{members}"
                    return Resume(clip, (*reasons, why))
                reasons.append(f"clip {clip + 1} is kept although it was made with another {changed}{members}")
            previous = finished.fingerprint
        return Resume(len(keys), tuple(reasons))

    def carry(self, clip: int, plan: ClipPlan, anchor: AnchorSettings | None = None) -> Carry:
        """What clip ``clip`` needs of the video so far, read back from disk: the tail before it, and what it is anchored to.

        Raises:
            ValueError: the tail has another size than the plan, or clip 1 was written without its colours.
        """
        tail = self._tensor(clip - 1, "tail", 4)
        if tail.shape[1:] != (plan.height, plan.width, 3):
            raise ValueError(
                f"clip {clip} was rendered at {tail.shape[2]}x{tail.shape[1]}, the plan says {plan.width}x{plan.height}: "
                "keep the size, or use another run name"
            )
        statistics = self._anchor_statistics(anchor) if anchor is not None and anchor.active else None
        return Carry(tail, first=False, anchor_statistics=statistics)

    def _anchor_statistics(self, anchor: AnchorSettings) -> np.ndarray:
        """Statistics of the first clip, bit by bit as they were measured when it was rendered."""
        path = self.latents_path(0)
        try:
            with safe_open(path, framework="pt") as file:
                if anchor.space == "latent":
                    return latent_statistics(file.get_tensor("latent"))
                return file.get_tensor(COLOURS).numpy()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path.name} cannot be anchored to ({error}): render clip 1 again, or set anchor to off"
            ) from error

    def last_frame(self, clip: int, plan: ClipPlan) -> np.ndarray:
        """The last frame that the video takes from a finished clip, uint8 [H, W, 3]."""
        frames = plan.kept_frames(clip)
        return self._tensor(clip, "last", 3) if frames.stop < plan.frames else self._tensor(clip, "tail", 4)[-1]

    def _tensor(self, clip: int, name: str, axes: int) -> np.ndarray:
        """Pictures that are kept of a finished clip, uint8 with so many axes."""
        path = self.latents_path(clip)
        try:
            with safe_open(path, framework="pt") as file:
                pictures = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} cannot be read ({error}): render clip {clip + 1} again") from error
        if pictures.ndim != axes or pictures.dtype != torch.uint8 or not pictures.numel():
            raise ValueError(f"{path.name} has no pictures under {name!r}: render clip {clip + 1} again")
        return pictures.numpy()

    def frames(self, clips: int) -> int:
        """Frames of the video made of the first ``clips`` clips."""
        return sum(clip.frames for clip in self.manifest.clips[:clips])

    def state(self) -> str:
        """Text that changes when the manifest or the stitched video does."""
        return json.dumps([_stamp(path) if path.is_file() else None for path in (self.folder / MANIFEST, self.video)])

    def estimate(self, plan: ClipPlan, pending: range, texts: int = 0) -> int:
        """Bytes of disk that rendering takes at most, files that are replaced not deducted.

        Latents and tails are known exactly; videos are taken from the clips that are kept, and are bounded where there are
        none.

        Args:
            plan: of the run.
            pending: clips to be rendered.
            texts: distinct texts of which an embedding may have to be kept.
        """
        kept = self.manifest.clips[: pending.start]
        pixels = plan.height * plan.width * plan.frames
        sizes = [self.video_path(clip).stat().st_size for clip in range(len(kept))]
        clip_video = pixels * VIDEO_BYTES_PER_PIXEL
        if kept:
            a_frame = max(size / entry.frames for size, entry in zip(sizes, kept, strict=True))
            clip_video = min(clip_video, math.ceil(VIDEO_MARGIN * a_frame * plan.frames))
        height, width = plan.latent_size
        latent = 16 * plan.latent_frames * height * width * 4
        tail = min(TAIL_FRAMES + plan.overlap - 1, plan.frames) + 1  # and the last frame of a padded clip
        one = latent + tail * plan.height * plan.width * 3 + clip_video + FILE_BYTES
        whole = sum(sizes) + len(pending) * clip_video + FILE_BYTES
        return len(pending) * one + whole + texts * TEXT_BYTES

    def save_clip(self, plan: ClipPlan, key: ClipKey, result: ClipResult, seconds: float) -> FinishedClip:
        """Write a finished clip; when this returns it survives a crash.

        Args:
            plan: of the run.
            key: what it was made from.
            result: the clip; everything after it in the manifest is forgotten.
            seconds: how long it took.
        """
        clip, frames = result.clip, result.frames
        kept = plan.kept_frames(clip)
        tail = torch.from_numpy(result.carry.frames)
        tensors = {"latent": result.latents.float().cpu().contiguous(), "tail": tail}
        if clip == 0:
            tensors[COLOURS] = torch.from_numpy(pixel_statistics(frames))
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

    def video_damage(self, clip: int) -> str:
        """What is wrong with the video of a finished clip, in words; empty where nothing is."""
        return _file_damage(self.video_path(clip), self.manifest.clips[clip].video_sha256)

    def assemble(
        self,
        clips: int,
        metadata: Mapping[str, str] | None = None,
        audio: Path | None = None,
        fps: Fraction | None = None,
    ) -> Path:
        """Join the first ``clips`` finished clips into ``video.mp4`` by stream copy; made again only if they changed.

        Args:
            clips: how many.
            metadata: tags of the file.
            audio: file whose sound is laid under the video, see :func:`longvie_core.media.concat.concat`.
            fps: of the video; by default that of the last one, or of the clips.

        Raises:
            ValueError: so many clips are not finished, or the sound cannot be read.
        """
        if not 1 <= clips <= len(self.manifest.clips):
            raise ValueError(f"this run has {len(self.manifest.clips)} finished clips, {clips} cannot be joined")
        parts = [clip.video_sha256 for clip in self.manifest.clips[:clips]]
        sound = None if audio is None else file_sha256(audio)
        rate = str(fps or self.manifest.fps)
        made_from = text_sha256(json.dumps([parts, dict(metadata or {}), sound, rate]))
        if not self.video.is_file() or self.manifest.video != {"made_from": made_from, **_stamp(self.video)}:
            concat(
                [self.video_path(clip) for clip in range(clips)],
                self.video,
                fps=Fraction(rate),
                audio_from=audio,
                metadata=metadata,
            )
            self._write(replace(self.manifest, fps=rate, video={"made_from": made_from, **_stamp(self.video)}))
        return self.video

    def _damage(self, clip: int, finished: FinishedClip) -> str:
        return _file_damage(self.latents_path(clip), finished.latents_sha256) or self.video_damage(clip)

    def _read(self) -> tuple[Manifest, list[tuple[Path, str]]]:
        """The manifest, or where it is damaged or gone its copy; and what is damaged, with the reason."""
        damaged: list[tuple[Path, str]] = []
        for path in (self.folder / MANIFEST, self.folder / MANIFEST_COPY):
            try:
                return Manifest.from_json(path.read_text(encoding="utf-8"), path.name), damaged
            except FileNotFoundError:
                continue
            except UnicodeDecodeError as error:
                damaged.append((path, f"{path.name} is damaged ({error})"))
            except ManifestVersionError:
                raise
            except ValueError as error:
                damaged.append((path, str(error)))
        return Manifest(), damaged

    def _mend_manifest(self) -> None:
        """Read the manifest again; a damaged one is set aside, and its copy put in its place."""
        self.manifest, damaged = self._read()
        there = (self.folder / MANIFEST).exists()
        for path, reason in damaged:
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            path.replace(aside)
            self.notes.append(f"{reason}; it was set aside as {aside.name}")
        if damaged and not self.manifest.clips:
            self.notes.append("nothing is known of the clips any more, and the run starts over")
        elif damaged or (self.manifest.clips and not there):
            self.notes.append(f"{MANIFEST} was restored from its copy, {MANIFEST_COPY}")
            self._write(self.manifest)

    def _write(self, manifest: Manifest) -> None:
        text = manifest.to_json()
        for name in (MANIFEST, MANIFEST_COPY):
            write_atomically(self.folder / name, lambda part: part.write_text(text, encoding="utf-8"))
            self.manifest = manifest

    def _refuse_links(self) -> None:
        """A folder that is a link would be written through; a file that is one is read through, or replaced."""
        for path in self.folder.iterdir():
            self._refuse_link(path)

    def _refuse_link(self, path: Path) -> None:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            raise ValueError(
                f"{path.name} in run {self.folder.name!r} is a link that leads out of the run's folder: remove it, or use "
                "another run name"
            )

    def _finished(self) -> str:
        """How many of the wanted clips are finished: those that were kept, or all of a manifest that was written since."""
        if not self._wanted:
            return str(len(self.manifest.clips))
        manifest, kept = self._kept
        return f"{kept if manifest is self.manifest else min(len(self.manifest.clips), self._wanted)} of {self._wanted}"

    @contextmanager
    def _errors_by_name(self) -> Iterator[None]:
        """Errors of the disk as something that can be read and acted upon; all others as they are."""
        try:
            yield
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            if is_disk_full(error):
                raise ValueError(
                    f"the disk is full: {self._finished()} clips are finished and safe in {self.folder}; free space and queue "
                    "again"
                ) from error
            if isinstance(error, OSError) and error.filename and _inside(error.filename, self.folder):
                raise ValueError(
                    f"run {self.folder.name!r} cannot be written or read ({error.strerror}: {error.filename}): make its folder "
                    "a writable one, or use another run name or output folder"
                ) from error
            raise


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _file_damage(path: Path, sha256: str) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    return "" if file_sha256(path) == sha256 else f"{path.name} was changed or cut off since it was written"


def _inside(path: str | bytes, folder: Path) -> bool:
    """Whether a path is the folder, lies in it, or is on the way to it."""
    place = Path(os.fsdecode(path))
    return place.is_relative_to(folder) or folder.is_relative_to(place)
