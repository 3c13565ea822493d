"""``run.json``: which clips of a run are finished, from what they were made, and hashes of their files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction

from ..disk.fingerprints import text_sha256

MANIFEST = "run.json"
MANIFEST_COPY = "run.copy.json"
MANIFEST_VERSION = 1


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
        data = {"version": MANIFEST_VERSION, **asdict(self)}
        return json.dumps({**data, "sha256": _content_sha256(data)}, indent=1)

    @classmethod
    def from_json(cls, text: str, name: str = MANIFEST) -> Manifest:
        """Parse a manifest.

        Raises:
            ManifestVersionError: of another version.
            ValueError: not JSON, edited, or with a field of the wrong kind.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is damaged ({error})") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version is True or version != MANIFEST_VERSION:
            raise ManifestVersionError(
                f"{name} has version {version!r}, this LongVie writes version {MANIFEST_VERSION}: update LongVie or use "
                "another run name"
            )
        try:
            if data.pop("sha256", None) != _content_sha256(data):
                raise ValueError("it was changed since it was written")
            clips = tuple(_finished_clip(entry) for entry in data["clips"])
            return cls(_rate(data["fps"]) if clips else "", clips, dict(data["video"]))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{name} is damaged ({type(error).__name__}: {error})") from error


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


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError(f"{value!r} is no number of frames")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no time")
    return float(value)


def _finished_clip(entry: dict) -> FinishedClip:
    parts = {_text(key): _text(value) for key, value in entry["parts"].items()}
    hashes = [_text(entry[key]) for key in ("fingerprint", "latents_sha256", "video_sha256")]
    return FinishedClip(hashes[0], parts, _count(entry["frames"]), hashes[1], hashes[2], _seconds(entry["seconds"]))
