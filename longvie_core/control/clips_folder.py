"""Control clips in the layout of the authors' examples: read and written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..disk.atomic import write_atomically
from ..disk.space import in_words
from ..media.write import VideoWriter
from .control import Control

MOST_CLIPS = 10_000
"""Clips that a folder may list: half a day of video."""

MOST_LISTING_BYTES = 64 << 20
"""Size of a ``cond.json``: more than so many long prompts take."""

MAX_NAME_BYTES = 255
"""The longest file name that file systems allow."""

CONTROL_CRF = 8
"""h264 quality of the videos written here: high, since the network reads the tracks' colours."""


@dataclass(frozen=True)
class ClipsFolder:
    """Controls and prompts of ``clips`` clips, and the picture that the first one starts from."""

    dense: Control
    sparse: Control
    prompts: tuple[str, ...]
    first_frame: Path
    clips: int


def load_clips_folder(folder: Path) -> ClipsFolder:
    """Read a folder in the layout of the authors' examples.

    ``cond.json`` lists ``{"text", "depth", "track"}`` for every clip; the videos and ``first.png`` lie beside it. The
    paths in ``cond.json`` start at the authors' own root, so only their file names count, and nothing outside the
    folder is read.

    Raises:
        FileNotFoundError, ValueError: naming the file, the entry and the key that is missing or wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    listing = _inside(folder, "cond.json", "the list of clips")
    size = listing.stat().st_size
    if size > MOST_LISTING_BYTES:
        raise ValueError(f"{listing} has {in_words(size)}, but at most {in_words(MOST_LISTING_BYTES)} are read: list less")
    try:
        entries = json.loads(listing.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{listing} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{listing} must hold a list with an entry for each clip")
    if len(entries) > MOST_CLIPS:
        raise ValueError(f"{listing} lists {len(entries)} clips, but at most {MOST_CLIPS} are read: divide the folder")
    fields: dict[str, list[str]] = {"text": [], "depth": [], "track": []}
    for number, entry in enumerate(entries):
        for key, values in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise ValueError(f"{listing}: entry {number} has no text under the key {key!r}")
            values.append(entry[key])
    videos = {
        key: [_inside(folder, name, f"{key!r} of entry {number} in cond.json") for number, name in enumerate(fields[key])]
        for key in ("depth", "track")
    }
    dense, sparse = Control.from_clips(videos["depth"], "dense"), Control.from_clips(videos["track"], "sparse")
    if dense.frames != sparse.frames:
        raise ValueError(
            f"{dense.paths[0]} has {dense.frames} frames, but {sparse.paths[0]} has {sparse.frames}: depth and tracks "
            "must show the same frames"
        )
    first_frame = _inside(folder, "first.png", "the picture that the first clip starts from")
    try:
        with Image.open(first_frame) as picture:
            picture.verify()
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{first_frame} is not a readable picture: {error}") from error
    return ClipsFolder(dense, sparse, tuple(fields["text"]), first_frame, len(entries))


def write_clips_folder(
    folder: Path,
    prompts: Sequence[str],
    dense: Iterable[Iterable[np.ndarray]],
    sparse: Iterable[Iterable[np.ndarray]],
    first_frame: np.ndarray,
    *,
    fps: Fraction = Fraction(16),
) -> ClipsFolder:
    """Write a folder that :func:`load_clips_folder` reads, one clip after the other.

    Args:
        prompts: one text a clip.
        dense, sparse: for every clip its frames, uint8 RGB [H, W, 3]; dense with near = black.
        first_frame: uint8 RGB [H, W, 3].
        fps: frames per second of the videos.

    Raises:
        ValueError: another number of dense or sparse clips than prompts; frames of an odd size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(first_frame).save(folder / "first.png")
    entries = []
    for clip, (text, depths, tracks) in enumerate(itertools.zip_longest(prompts, dense, sparse)):
        if text is None or depths is None or tracks is None:
            parts = {"prompt": text, "depth": depths, "tracks": tracks}
            missing = [name for name, part in parts.items() if part is None]
            raise ValueError(f"{folder}: clip {clip + 1} has no {' and no '.join(missing)}: give one of each for every clip")
        entry = {"text": text, "depth": f"depth_{clip:02d}.mp4", "track": f"track_{clip:02d}.mp4"}
        _write_clip(folder / entry["depth"], depths, fps)
        _write_clip(folder / entry["track"], tracks, fps)
        entries.append(entry)
    listing = json.dumps(entries, indent=2, ensure_ascii=False)
    write_atomically(folder / "cond.json", lambda temporary: temporary.write_text(listing, "utf-8"))
    return load_clips_folder(folder)


def _write_clip(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> None:
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: there are no frames to write")
    with VideoWriter(path, first.shape[1], first.shape[0], fps, crf=CONTROL_CRF) as writer:
        for frame in itertools.chain([first], frames):
            writer.write(frame)


def _inside(folder: Path, listed: str, role: str) -> Path:
    """The file in ``folder`` that a listed path ends in; it must be a real file there, not a link that leads out."""
    name = listed.replace("\\", "/").rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "\0" in name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(f"{folder}: {listed[:MAX_NAME_BYTES]!r} ({role}) is not a file name")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {role}")
    if path.resolve().parent != folder.resolve():
        raise ValueError(f"{path} ({role}) is a link that leads out of the folder: copy the file into it")
    return path
