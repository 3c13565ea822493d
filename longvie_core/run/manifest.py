"""``run.json``: all takes of a run with what they were made from, the sequence that was last asked for, and its videos."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import PureWindowsPath
from typing import Any

from ..disk.fingerprints import text_sha256

MANIFEST = "run.json"
MANIFEST_COPY = "run.copy.json"
MANIFEST_VERSION = 2
UNKNOWN = ""
"""Version 1 did not write down what a clip started from."""

MAX_FILE_NAME = 255
"""Bytes of a file's name that every file system takes."""

TOO_LARGE = 1 << 80
"""No size, time or seed is so large; sums and quotients of larger numbers may fail."""

TakeId = tuple[int, str]
"""A clip's number and the fingerprint of one of its takes."""


class ManifestVersionError(ValueError):
    """A manifest of another version: to be left alone, not to be set aside as damaged."""


@dataclass(frozen=True)
class StoredFile:
    """A finished file as it was written; size and time stand for its content as long as they stay the same.

    Args:
        name: in the run's folder.
        sha256: of its bytes.
        size: bytes; -1 = not known (version 1).
        mtime_ns: time of its last change.
    """

    name: str
    sha256: str
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class Take:
    """One rendering of a clip.

    Args:
        clip: its number, from 0.
        fingerprint: of the parts and of the take before.
        parts: what it was made from (:mod:`longvie_core.run.keys`).
        start: hash of the tail that it started from; ``UNKNOWN`` for the first clip and in version 1.
        tail: hash of the tail that it left; ``UNKNOWN`` in version 1.
        frames: that the video takes from it.
        latents, video: its files.
        seconds: how long rendering took.
        created: ISO 8601 date and time, UTC; empty in version 1.
        seed: of the noise, with the clip's own offset; ``None`` in version 1.
        prompt: the positive text.
        pinned: whether :mod:`longvie_core.run.__main__` was told to keep it whatever happens.
        former: fingerprint under which an earlier version wrote it, and what follows on it; empty where that is today's.
    """

    clip: int
    fingerprint: str
    parts: Mapping[str, str]
    frames: int
    latents: StoredFile
    video: StoredFile
    seconds: float
    start: str = UNKNOWN
    tail: str = UNKNOWN
    created: str = ""
    seed: int | None = None
    prompt: str = ""
    pinned: bool = False
    former: str = ""

    @property
    def id(self) -> TakeId:
        """What names it among the takes of a run."""
        return self.clip, self.fingerprint

    @property
    def size(self) -> int:
        """Bytes of its files, as far as they are known."""
        return sum(max(file.size, 0) for file in (self.latents, self.video))


@dataclass(frozen=True)
class Video:
    """A joined video.

    Args:
        file: it.
        made_from: hash of the takes, rate and sound.
        takes: fingerprints, in their order.
    """

    file: StoredFile
    made_from: str
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Contents of ``run.json``.

    Args:
        takes: all of them, in the order in which they were finished.
        sequence: fingerprints of the takes that the last queue asked for, clip by clip.
        videos: that were joined, in their order.
        fps: rate of the last queue; empty where nothing is finished.
    """

    takes: tuple[Take, ...] = ()
    sequence: tuple[str, ...] = ()
    videos: tuple[Video, ...] = ()
    fps: str = ""

    @cached_property
    def by_id(self) -> Mapping[TakeId, Take]:
        """All takes by what names them."""
        return {take.id: take for take in self.takes}

    @cached_property
    def _by_clip(self) -> Mapping[int, list[Take]]:
        clips: dict[int, list[Take]] = {}
        for take in reversed(self.takes):
            clips.setdefault(take.clip, []).append(take)
        return clips

    def of(self, clip: int) -> Sequence[Take]:
        """Takes of a clip, newest first."""
        return self._by_clip.get(clip, ())

    def wanted(self, clip: int) -> Take | None:
        """The take of a clip that the sequence names."""
        return self.by_id[clip, self.sequence[clip]] if clip < len(self.sequence) else None

    @property
    def clips(self) -> tuple[Take, ...]:
        """The takes of the sequence."""
        return tuple(self.by_id[name] for name in enumerate(self.sequence))

    def with_take(self, take: Take) -> Manifest:
        """With one more take, in place of one of the same clip and fingerprint."""
        return replace(self, takes=(*(other for other in self.takes if other.id != take.id), take))

    def with_files(self, known: Mapping[StoredFile, StoredFile]) -> Manifest:
        """With other sizes and times of files that have turned out to be as they were written."""

        def now(file: StoredFile) -> StoredFile:
            return known.get(file, file)

        takes = (replace(take, latents=now(take.latents), video=now(take.video)) for take in self.takes)
        videos = (replace(video, file=now(video.file)) for video in self.videos)
        return replace(self, takes=tuple(takes), videos=tuple(videos))

    def to_json(self) -> str:
        """As JSON, a take a line."""
        head: dict[str, Any] = {"version": MANIFEST_VERSION, "fps": self.fps, "sequence": list(self.sequence)}
        head["videos"] = [{**vars(video), "file": vars(video.file)} for video in self.videos]
        takes = [{**vars(take), "latents": vars(take.latents), "video": vars(take.video)} for take in self.takes]
        head["sha256"] = _content_sha256({**head, "takes": takes})
        lines = ",\n".join(map(json.dumps, takes))
        return f'{json.dumps(head)[:-1]},\n"takes": [\n{lines}\n]}}'

    @classmethod
    def from_json(cls, text: str, name: str = MANIFEST) -> Manifest:
        """Parse a manifest; one of version 1 is carried over.

        Raises:
            ManifestVersionError: of another version.
            ValueError: not JSON, edited, or with a field of the wrong kind.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is damaged ({error})") from error
        version = data.get("version") if isinstance(data, dict) else None
        if isinstance(version, bool) or version not in (1, MANIFEST_VERSION):
            raise ManifestVersionError(
                f"{name} has version {version!r}, this LongVie writes version {MANIFEST_VERSION}: update LongVie or use "
                "another run name"
            )
        try:
            if data.pop("sha256", None) != _content_sha256(data):
                raise ValueError("it was changed since it was written")
            return _from_version_1(data) if version == 1 else _from_version_2(data)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{name} is damaged ({type(error).__name__}: {error})") from error


def clip_name(clip: int) -> str:
    """How the files of a clip begin; version 1 called them so."""
    return f"clip_{clip + 1:04d}"


def _from_version_2(data: Mapping[str, Any]) -> Manifest:
    takes = tuple(_take(entry) for entry in data["takes"])
    manifest = Manifest(
        takes,
        tuple(_text(fingerprint) for fingerprint in data["sequence"]),
        tuple(_video(entry) for entry in data["videos"]),
        _rate(data["fps"]) if takes else "",
    )
    if len(manifest.by_id) != len(takes):
        raise ValueError("it has a take twice")
    if any(name not in manifest.by_id for name in enumerate(manifest.sequence)):
        raise ValueError("its sequence names takes that it does not have")
    return manifest


def _from_version_1(data: Mapping[str, Any]) -> Manifest:
    takes = tuple(_take_of_version_1(clip, entry) for clip, entry in enumerate(data["clips"]))
    sequence = tuple(take.fingerprint for take in takes)
    # It had one video, which may be of the first clips only: it counts as one of all, so that none of them is pruned.
    video = dict(data["video"])
    videos = (_video({"file": {"name": "video.mp4", "sha256": UNKNOWN, **video}, "takes": sequence, **video}),) if video else ()
    return Manifest(takes, sequence, videos, _rate(data["fps"]) if takes else "")


def _take_of_version_1(clip: int, entry: Mapping[str, Any]) -> Take:
    name = clip_name(clip)
    return Take(
        clip=clip,
        fingerprint=_text(entry["fingerprint"]),
        parts={_text(key): _text(value) for key, value in entry["parts"].items()},
        frames=_whole(entry["frames"], at_least=1),
        latents=StoredFile(f"{name}.safetensors", _text(entry["latents_sha256"])),
        video=StoredFile(f"{name}.mp4", _text(entry["video_sha256"])),
        seconds=_seconds(entry["seconds"]),
    )


def _take(entry: Mapping[str, Any]) -> Take:
    return Take(
        clip=_whole(entry["clip"], at_least=0),
        fingerprint=_text(entry["fingerprint"]),
        parts={_text(key): _text(value) for key, value in entry["parts"].items()},
        frames=_whole(entry["frames"], at_least=1),
        latents=_file(entry["latents"]),
        video=_file(entry["video"]),
        seconds=_seconds(entry["seconds"]),
        start=_text(entry["start"]),
        tail=_text(entry["tail"]),
        created=_text(entry["created"]),
        seed=None if entry["seed"] is None else _whole(entry["seed"]),
        prompt=_text(entry["prompt"]),
        pinned=_truth(entry["pinned"]),
        former=_text(entry["former"]),
    )


def _video(entry: Mapping[str, Any]) -> Video:
    return Video(_file(entry["file"]), _text(entry["made_from"]), tuple(_text(take) for take in entry["takes"]))


def _file(entry: Mapping[str, Any]) -> StoredFile:
    name = _text(entry["name"])
    if PureWindowsPath(name).name != name or name in ("", "..") or not name.isprintable() or len(name.encode()) > MAX_FILE_NAME:
        raise ValueError(f"{name!r} is no file of the run's folder")
    return StoredFile(name, _text(entry["sha256"]), _whole(entry["size"]), _whole(entry["mtime_ns"]))


def _content_sha256(data: Mapping[str, object]) -> str:
    """Hash of a manifest's content, however it is laid out; of all but the hash itself."""
    return text_sha256(json.dumps(data, sort_keys=True, separators=(",", ":")))


def _rate(value: object) -> str:
    # Checked before it is read: Fraction would work out "1e999999999" to the last digit.
    text = _text(value)
    if not re.fullmatch(r"[0-9]{1,9}(/[0-9]{1,9})?", text) or Fraction(text) <= 0:
        raise ValueError(f"fps {value!r} is no positive number or fraction")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _whole(value: object, at_least: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no whole number")
    if abs(value) >= TOO_LARGE:
        raise ValueError(f"a number of {value.bit_length()} bits is too large")
    if at_least is not None and value < at_least:
        raise ValueError(f"{value} is less than {at_least}")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no time")
    return float(value)
