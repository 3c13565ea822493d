"""A run on disk: nothing that was finished is ever lost, and nothing unchanged is ever rendered twice.

Each rendering of a clip is a *take*: ``clip_0001_<fingerprint>.safetensors`` (its latents and the lossless tail that the next
clip starts from) and ``.mp4`` (the frames that the joined video takes from it), listed in ``run.json``, the manifest. A take is
never overwritten: what was changed and changed back finds its takes again. Every file is written under another name, flushed to
disk and renamed; a take is finished when the manifest says so, and is believed only while its files are as they were written.
The manifest holds its own hash and has a copy, ``run.copy.json``, that takes over when it is damaged. Everything that writes
does so inside :meth:`Run.locked`.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..disk.atomic import make_folder, remove_unfinished, write_atomically
from ..disk.fingerprints import file_sha256, text_sha256
from ..disk.lock import exclusive
from ..disk.space import is_disk_full
from ..media.concat import concat
from ..media.write import VideoWriter
from ..model.clip import TAIL_FRAMES
from ..plan import ClipPlan
from .colour_anchor import AnchorSettings, latent_statistics, pixel_statistics
from .decide import Decision, Link, decide
from .keys import ClipKey
from .loop import Carry, ClipResult
from .manifest import (
    MANIFEST,
    MANIFEST_COPY,
    Manifest,
    ManifestVersionError,
    StoredFile,
    Take,
    TakeId,
    Video,
    clip_name,
)
from .writer import Hurried

LOCK = "run.lock"
NOT_WRITTEN = ""
"""Hash of a file that is not written yet, which no file has."""
COLOURS = "colours"
"""Statistics of the first clip's frames, kept beside its latents: later clips may be anchored to them at any time."""

FINGERPRINT_IN_NAME = 12
"""Characters of a take's fingerprint that its files bear."""
VIDEO_BYTES_PER_PIXEL = 1
"""More than the clips' h264 ever needs: pure noise takes 0.6 to 0.85 bytes a pixel."""
VIDEO_MARGIN = 1.5
"""By how much a clip may be larger than the largest one of the run so far."""
TEXT_BYTES = 512 * 4096 * 4
"""A text embedding of umt5-xxl, float32."""
FILE_BYTES = 64 << 10
"""Headers, manifest entry and what a file system adds, a clip."""


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
        self.folder = folder.absolute()  # a run in "." has a name, too
        self.notes: list[str] = []
        self.manifest = Manifest()
        self._wanted = 0
        self._kept: set[TakeId] = set()
        self._known: set[TakeId] = set()
        self._touched: dict[StoredFile, StoredFile] = {}
        with self._errors_by_name():
            make_folder(self.folder)
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

    def path(self, file: StoredFile) -> Path:
        """Where a file of the run lies."""
        return self.folder / file.name

    # ---- what there is

    def decide(self, keys: Sequence[ClipKey], fixed: int = 0) -> Decision:
        """Which takes fit, clip by clip, and in words why the others are rendered.

        Args:
            keys: of all clips that are wanted, in order.
            fixed: this many leading clips are kept even where they were made with other settings; they must be there.

        Raises:
            ValueError: one of the fixed clips is missing or damaged.
        """
        decision = decide(self.manifest, keys, fixed, self.damage)
        self._wanted = len(keys)
        self._known = set(self.manifest.by_id)
        self._kept = {take.id for take in decision.takes if take is not None}
        return decision

    def adopt(self, decision: Decision) -> None:
        """Write down what was learnt by deciding: today's fingerprints of older takes, and files that were only touched."""
        today = {there.id: take for there, take in decision.relabelled}
        replaced = {take.id for take in today.values()}

        def relabelled(fingerprints: Sequence[str]) -> tuple[str, ...]:
            names = enumerate(fingerprints)
            return tuple(today[name].fingerprint if name in today else name[1] for name in names)

        manifest = self.manifest
        takes = (today.get(take.id, take) for take in manifest.takes if take.id not in replaced)
        videos = (replace(video, takes=relabelled(video.takes)) for video in manifest.videos)
        manifest = replace(manifest, takes=tuple(takes), sequence=relabelled(manifest.sequence), videos=tuple(videos))
        if today or self._touched:
            self._write(manifest)

    def damage(self, file: StoredFile, full: bool = False) -> str:
        """What is wrong with a file of a take, in words; empty where nothing is.

        Size and time are looked at; the bytes are read only where these have changed, or where ``full`` asks for it.
        """
        path = self.path(file)
        try:
            status = path.stat()
        except OSError:
            return f"{file.name} is missing"
        now = replace(file, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if not full and now in (file, self._touched.get(file)):
            return ""
        if not path.is_file() or file_sha256(path) != file.sha256:
            return f"{file.name} was changed or cut off since it was written"
        if now != file:
            self._touched[file] = now
        return ""

    def carry(self, take: Take, plan: ClipPlan, first: Take | None = None, anchor: AnchorSettings | None = None) -> Carry:
        """What the clip after a take needs of the video so far, read back from disk: its tail, and what is anchored to.

        Args:
            take: of the clip before.
            plan: of the run.
            first: the take of clip 1, to which later clips may be anchored.
            anchor: how; not at all by default.

        Raises:
            ValueError: the tail has another size than the plan, or clip 1 was written without its colours.
        """
        tail = self._tensor(take, "tail", 4)
        if tail.shape[1:] != (plan.height, plan.width, 3):
            raise ValueError(
                f"clip {take.clip + 1} was rendered at {tail.shape[2]}x{tail.shape[1]}, the plan says "
                f"{plan.width}x{plan.height}: keep the size, or use another run name"
            )
        if anchor is None or not anchor.active or first is None:
            return Carry(tail, first=False)
        return Carry(tail, first=False, anchor_statistics=self._anchor_statistics(first, anchor))

    def _anchor_statistics(self, first: Take, anchor: AnchorSettings) -> np.ndarray:
        """Statistics of the first clip, bit by bit as they were measured when it was rendered."""
        path = self.path(first.latents)
        try:
            with safe_open(path, framework="pt") as file:
                if anchor.space == "latent":
                    return latent_statistics(file.get_tensor("latent"))
                return file.get_tensor(COLOURS).numpy()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path.name} cannot be anchored to ({error}): render clip 1 again, or set anchor to off"
            ) from error

    def latents(self, take: Take) -> torch.Tensor:
        """Latents [1, 16, f, h, w] of a take, float32, as the sampler gave them."""
        try:
            with safe_open(self.path(take.latents), framework="pt") as file:
                return file.get_tensor("latent")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{take.latents.name} cannot be read ({error}): render clip {take.clip + 1} again") from error

    def last_frame(self, take: Take, plan: ClipPlan) -> np.ndarray:
        """The last frame that the video takes from a take, uint8 [H, W, 3]."""
        frames = plan.kept_frames(take.clip)
        return self._tensor(take, "last", 3) if frames.stop < plan.frames else self._tensor(take, "tail", 4)[-1]

    def _tensor(self, take: Take, name: str, axes: int) -> np.ndarray:
        """Pictures that are kept of a take, uint8 with so many axes."""
        path = self.path(take.latents)
        try:
            with safe_open(path, framework="pt") as file:
                pictures = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} cannot be read ({error}): render clip {take.clip + 1} again") from error
        if pictures.ndim != axes or pictures.dtype != torch.uint8 or not pictures.numel():
            raise ValueError(f"{path.name} has no pictures under {name!r}: render clip {take.clip + 1} again")
        return pictures.numpy()

    def state(self) -> str:
        """Text that changes when the manifest or one of its videos does."""
        paths = [self.folder / MANIFEST, *(self.path(video.file) for video in self.manifest.videos)]
        return json.dumps([_stamp(path) if path.is_file() else None for path in paths])

    def occupied(self) -> str:
        """How many takes there are and what they occupy, in words; empty where every one is used."""
        takes, uses = self.manifest.takes, self.uses()
        spare = [take for take in takes if take.id not in uses]
        if not spare:
            return ""
        sizes = [sum(take.size for take in group) / (1 << 20) for group in (takes, spare)]
        clips = len({take.clip for take in takes})
        return (
            f"{len(takes)} takes of {clips} clips occupy {sizes[0]:.1f} MiB; {len(spare)} are in no video "
            f"({sizes[1]:.1f} MiB): python -m longvie_core.run shows and prunes them"
        )

    def uses(self) -> dict[TakeId, list[str]]:
        """What needs each take that is needed: the run's sequence, videos that are there by name, and whether it is pinned."""
        used: dict[TakeId, list[str]] = {}
        for name in enumerate(self.manifest.sequence):
            used.setdefault(name, []).append("sequence")
        for video in self.manifest.videos:
            if self.path(video.file).is_file():
                for name in enumerate(video.takes):
                    used.setdefault(name, []).append(video.file.name)
        for take in self.manifest.takes:
            if take.pinned:
                used.setdefault(take.id, []).append("pinned")
        return used

    def estimate(self, plan: ClipPlan, pending: int, joined: Sequence[Take] = (), texts: int = 0) -> int:
        """Bytes of disk that rendering takes at most.

        Latents and tails are known exactly; videos are taken from the takes that there are, and bounded where there are none.

        Args:
            plan: of the run.
            pending: how many clips are to be rendered.
            joined: takes that the joined video is made of beside them.
            texts: distinct texts of which an embedding may have to be kept.
        """
        clip_video = plan.height * plan.width * plan.frames * VIDEO_BYTES_PER_PIXEL
        known = [take.video.size / take.frames for take in self.manifest.takes if take.video.size > 0]
        if known:
            clip_video = min(clip_video, math.ceil(VIDEO_MARGIN * max(known) * plan.frames))
        height, width = plan.latent_size
        latent = 16 * plan.latent_frames * height * width * 4
        tail = min(TAIL_FRAMES + plan.overlap - 1, plan.frames) + 1  # and the last frame of a padded clip
        one = latent + tail * plan.height * plan.width * 3 + clip_video + FILE_BYTES
        whole = sum(max(take.video.size, 0) for take in joined) + pending * clip_video + FILE_BYTES
        return pending * one + whole + texts * TEXT_BYTES

    # ---- what is written

    def new_take(
        self,
        plan: ClipPlan,
        key: ClipKey,
        result: ClipResult,
        seconds: float,
        before: Sequence[Take] = (),
        seed: int | None = None,
        prompt: str = "",
    ) -> Take:
        """A take as it will be when :meth:`write` has written it.

        Args:
            plan: of the run.
            key: what it was made from.
            result: the clip.
            seconds: how long rendering took.
            before: the takes before it, from the first clip on.
            seed, prompt: of the clip, for people.
        """
        link = Link.to(before[-1]) if before else Link()
        fingerprint = key.fingerprint(link.fingerprint)
        name = f"{clip_name(result.clip)}_{fingerprint[:FINGERPRINT_IN_NAME]}"
        return Take(
            clip=result.clip,
            fingerprint=fingerprint,
            parts=dict(key.parts),
            frames=len(plan.kept_frames(result.clip)),
            latents=StoredFile(f"{name}.safetensors", NOT_WRITTEN),
            video=StoredFile(f"{name}.mp4", NOT_WRITTEN),
            seconds=round(seconds, 3),
            start=link.tail,
            tail=tail_sha256(result.carry),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seed=seed,
            prompt=prompt,
        )

    def write(self, take: Take, plan: ClipPlan, result: ClipResult, before: Sequence[Take] = ()) -> Take:
        """Write a take's files, latents and tail first; when this returns it survives a crash.

        Where the run is interrupted meanwhile, the video is left for the next time: it can be made from the latents.

        Args:
            take: of :meth:`new_take`.
            plan, result, before: as there.
        """
        latents = self._write_latents(take.latents.name, plan, result)
        try:
            video = self._write_frames(take.video.name, plan, take.clip, result.frames)
        except Hurried:
            video = take.video
        written = replace(take, latents=latents, video=video)
        manifest = self.manifest.with_take(written)
        self._write(replace(manifest, sequence=self._continued([*before, written]), fps=str(plan.fps)))
        return written

    def restore_video(self, take: Take, plan: ClipPlan, frames: np.ndarray) -> Take:
        """Write the video of a take whose own was lost, from its decoded frames, uint8 [T, H, W, 3]."""
        restored = replace(take, video=self._write_frames(take.video.name, plan, take.clip, frames))
        self._write(self.manifest.with_take(restored))
        return restored

    def set_sequence(self, takes: Sequence[Take], plan: ClipPlan) -> None:
        """Say which takes the run consists of now; what followed on them before still does."""
        fps = str(plan.fps) if takes else self.manifest.fps
        manifest = replace(self.manifest, sequence=self._continued(takes), fps=fps)
        if manifest != self.manifest:
            self._write(manifest)

    def _continued(self, takes: Sequence[Take]) -> tuple[str, ...]:
        """The sequence that begins with these takes; if the one that there is does so too, it goes on as it did."""
        sequence = tuple(take.fingerprint for take in takes)
        old = self.manifest.sequence
        return old if old[: len(sequence)] == sequence else sequence

    def _write_latents(self, name: str, plan: ClipPlan, result: ClipResult) -> StoredFile:
        kept = plan.kept_frames(result.clip)
        tensors = {
            "latent": result.latents.float().cpu().contiguous(),
            "tail": torch.from_numpy(result.carry.frames),
        }
        if result.clip == 0:
            tensors[COLOURS] = torch.from_numpy(pixel_statistics(result.frames))
        if kept.stop < plan.frames:
            tensors["last"] = torch.from_numpy(result.frames[kept.stop - 1].copy())
        data = save(tensors)
        with self._in_place_of(self.folder / name):
            write_atomically(self.folder / name, lambda part: part.write_bytes(data))
        return _stored(self.folder / name, hashlib.sha256(data).hexdigest())

    def _write_frames(self, name: str, plan: ClipPlan, clip: int, frames: np.ndarray) -> StoredFile:
        kept = plan.kept_frames(clip)
        with (
            self._in_place_of(self.folder / name),
            VideoWriter(self.folder / name, plan.width, plan.height, plan.fps) as writer,
        ):
            for frame in frames[kept.start : kept.stop]:
                writer.write(frame)
        return _stored(self.folder / name, file_sha256(self.folder / name))

    @contextmanager
    def _in_place_of(self, path: Path) -> Iterator[None]:
        """Set aside what lies under the name of a file that a ``with`` block writes: damaged or changed, it is somebody's.

        Where it turns out to hold the same bytes, as after a kill, it is not kept. A link is replaced.
        """
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        kept = path.exists() and not path.is_symlink()
        if kept:
            path.replace(aside)
        try:
            yield
        finally:
            if kept and not path.exists():
                aside.replace(path)
        if kept and aside.is_file() and filecmp.cmp(aside, path, shallow=False):
            aside.unlink()

    def assemble(
        self, takes: Sequence[Take], fps: Fraction, metadata: Mapping[str, str] | None = None, audio: Path | None = None
    ) -> Path:
        """Join takes into a video of the run's name and a number; none is ever replaced, and none is made twice.

        Args:
            takes: of consecutive clips from the first on, one at least.
            fps: of the video.
            metadata: tags of the file.
            audio: file whose sound is laid under the video, see :func:`longvie_core.media.concat.concat`.

        Raises:
            ValueError: there are no takes, or the sound cannot be read.
        """
        if not takes:
            raise ValueError("no clip is finished, so there is nothing to join")
        sound = None if audio is None else file_sha256(audio)
        made_from = text_sha256(json.dumps([[take.video.sha256 for take in takes], str(fps), sound]))
        for video in reversed(self.manifest.videos):
            if video.made_from == made_from and not self.damage(video.file):
                return self.path(video.file)
        path = self.folder / self._next_video_name()
        concat([self.path(take.video) for take in takes], path, fps=fps, audio_from=audio, metadata=metadata)
        video = Video(_stored(path, file_sha256(path)), made_from, tuple(take.fingerprint for take in takes))
        self._write(replace(self.manifest, videos=(*self.manifest.videos, video), fps=str(fps)))
        return path

    def _next_video_name(self) -> str:
        """The run's name and the next number, as the host counts the files of a folder."""
        pattern = re.compile(re.escape(self.folder.name) + r"_(\d{5,})_\.mp4")
        numbers = [int(match.group(1)) for path in self.folder.iterdir() if (match := pattern.fullmatch(path.name))]
        return f"{self.folder.name}_{max(numbers, default=0) + 1:05d}_.mp4"

    def remove(self, takes: Sequence[Take]) -> None:
        """Delete takes for good: out of the manifest first, so that no crash leaves it promising what is gone."""
        gone = {take.id for take in takes}
        manifest = self.manifest
        sequence = list(manifest.sequence)
        for clip, fingerprint in enumerate(sequence):
            if (clip, fingerprint) in gone:
                del sequence[clip:]
                break
        left = tuple(take for take in manifest.takes if take.id not in gone)
        self._write(replace(manifest, takes=left, sequence=tuple(sequence)))
        needed = {file.name for take in left for file in (take.latents, take.video)}
        for take in takes:
            for file in (take.latents, take.video):
                if file.name not in needed:
                    self.path(file).unlink(missing_ok=True)

    def pin(self, take: Take, pinned: bool = True) -> None:
        """Keep a take whatever is pruned, or no longer."""
        self._write(self.manifest.with_take(replace(take, pinned=pinned)))

    # ---- the manifest

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
        if damaged and not self.manifest.takes:
            self.notes.append("nothing is known of the clips any more, and the run starts over")
        elif damaged or (self.manifest.takes and not there):
            self.notes.append(f"{MANIFEST} was restored from its copy, {MANIFEST_COPY}")
            self._write(self.manifest)

    def _write(self, manifest: Manifest) -> None:
        if self._touched:  # their bytes were found to be as written
            manifest = manifest.with_files(self._touched)
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
        """How many of the wanted clips are finished: those that were kept, and those that were rendered since."""
        if not self._wanted:
            return str(len({take.clip for take in self.manifest.takes}))
        fresh = set(self.manifest.by_id) - self._known
        return f"{len({clip for clip, _ in self._kept | fresh})} of {self._wanted}"

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


def tail_sha256(carry: Carry) -> str:
    """Hash of a clip's tail, uint8 [n, H, W, 3]: what the next clip starts from."""
    return hashlib.sha256(f"{carry.frames.shape}".encode() + np.ascontiguousarray(carry.frames).tobytes()).hexdigest()


def _stored(path: Path, sha256: str) -> StoredFile:
    status = path.stat()
    return StoredFile(path.name, sha256, status.st_size, status.st_mtime_ns)


def _stamp(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _inside(path: str | bytes, folder: Path) -> bool:
    """Whether a path is the folder, lies in it, or is on the way to it."""
    place = Path(os.fsdecode(path))
    return place.is_relative_to(folder) or folder.is_relative_to(place)
