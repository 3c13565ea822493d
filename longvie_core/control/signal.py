"""Control signals on disk: what the clips of a run read, window by window.

A :class:`Signal` is raw depth, as a depth model gave it. A :class:`Control` is what the network sees: an 8-bit video,
dense (depth in grey, near = black) or sparse (coloured tracks). Both are paths and numbers only; pictures are read when
they are needed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..clips import ClipPlan
from ..files import file_sha256, publish, temporary_name, write_atomically
from ..video import VideoWriter, probe, read_frames, stretch

MODALITIES = ("dense", "sparse")
KINDS = ("disparity", "depth")
MAX_NAME_BYTES = 255
"""What file systems allow."""

CONTROL_CRF = 8
"""h264 quality of written clips folders: the tracks' colours are what the network reads."""


@dataclass(frozen=True)
class Control:
    """A control video that any window can be read from.

    Controls are addressed by (clip, frame), not by frame alone: tracks are re-gridded for every clip, so that the frame
    which two clips share has two different pictures.

    Attributes:
        modality: ``"dense"`` or ``"sparse"``.
        near_is_black: polarity of a dense control's files; :meth:`window` always gives near = black, as the weights
            want it. Without meaning for a sparse one.
        paths: one continuous video, or one video a clip.
        per_clip: which of the two.
        frames: frames of each file.
        width, height: size of each file in pixels.

    Raises:
        ValueError: an unknown modality, or a number of paths that does not fit.
    """

    modality: str
    near_is_black: bool
    paths: tuple[Path, ...]
    per_clip: bool
    frames: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"control modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        if not self.paths or (len(self.paths) > 1 and not self.per_clip):
            raise ValueError(f"a {self.modality} control of {len(self.paths)} videos: give one, or one for each clip")

    @classmethod
    def from_video(cls, path: Path, modality: str, *, near_is_black: bool = True) -> Control:
        """A control from one continuous video: frame n of the control is frame n of the file."""
        info = probe(path)
        return cls(modality, near_is_black, (path,), False, info.frames, info.width, info.height)

    @classmethod
    def from_clips(cls, paths: Sequence[Path], modality: str, *, near_is_black: bool = True) -> Control:
        """A control from one video a clip, all with the same number of frames and the same size.

        Raises:
            ValueError: naming the first file that differs from the first one.
        """
        if not paths:
            raise ValueError(f"a {modality} control needs at least one video")
        infos = [probe(path) for path in paths]
        first = infos[0]
        for path, info in zip(paths, infos, strict=True):
            if (info.frames, info.width, info.height) != (first.frames, first.width, first.height):
                raise ValueError(
                    f"{path} has {info.frames} frames of {info.width}x{info.height}, but {paths[0]} has {first.frames} "
                    f"of {first.width}x{first.height}: all clips of a control must be alike"
                )
        return cls(modality, near_is_black, tuple(paths), True, first.frames, first.width, first.height)

    def length(self, clip_frames: int, overlap: int) -> int:
        """Control frames of the equivalent continuous video: each shared frame counts once."""
        if not self.per_clip:
            return self.frames
        self._check_clip_frames(clip_frames)
        return overlap + (clip_frames - overlap) * len(self.paths)

    def window(self, plan: ClipPlan, clip: int) -> Iterator[np.ndarray]:
        """The ``plan.frames`` control pictures of clip ``clip``: uint8 RGB [plan.height, plan.width, 3].

        A dense control comes out with near = black, whatever its file holds: this is the one place that turns it round.
        Frames past the plan's end (tail rule ``"pad"``) repeat the last one.

        Raises:
            ValueError: at the call, if the control is too short for this clip or its clips have another length.
        """
        path, numbers = self._source(plan, clip)
        return self._pictures(path, numbers, plan)

    def first_frame(self, plan: ClipPlan, clip: int) -> np.ndarray:
        """The first picture of :meth:`window`."""
        return next(self.window(plan, clip))

    def digest(self, plan: ClipPlan, clip: int) -> str:
        """sha256 that changes when what :meth:`window` gives changes: a run's resume compares it.

        Where each clip has its file, the file's bytes count; in a continuous video, the decoded frames of the window,
        so that frames added at the end leave the earlier clips as they are.
        """
        path, numbers = self._source(plan, clip)
        status = path.stat()
        content = _digest_of(path, status.st_size, status.st_mtime_ns, None if self.per_clip else numbers)
        use = (self.modality, self.near_is_black, plan.width, plan.height, plan.frames, content)
        return hashlib.sha256(json.dumps(use).encode()).hexdigest()

    def _source(self, plan: ClipPlan, clip: int) -> tuple[Path, range]:
        """File of a clip, and the frames to read from it."""
        numbers = plan.control_frames(clip)
        if self.per_clip:
            self._check_clip_frames(plan.frames)
            if clip >= len(self.paths):
                raise ValueError(
                    f"the {self.modality} control has {len(self.paths)} clips ({self.paths[0].name} .. "
                    f"{self.paths[-1].name}), but the plan has {plan.clips}: give as many as clips"
                )
            return self.paths[clip], range(plan.frames)
        end = min(numbers.stop, plan.source_frames)
        if self.frames < end:
            raise ValueError(
                f"{self.paths[0]} has {self.frames} frames, but clip {clip + 1} needs {end}: give a longer {self.modality} "
                "control, or plan fewer source frames"
            )
        return self.paths[0], range(numbers.start, end)

    def _pictures(self, path: Path, numbers: range, plan: ClipPlan) -> Iterator[np.ndarray]:
        picture = None
        for frame in read_frames(path, numbers):
            black_near = frame if self.near_is_black or self.modality == "sparse" else 255 - frame
            picture = stretch(black_near, (plan.width, plan.height))
            yield picture
        yield from itertools.repeat(picture, plan.frames - len(numbers))

    def _check_clip_frames(self, clip_frames: int) -> None:
        if clip_frames != self.frames:
            raise ValueError(
                f"{self.paths[0]} has {self.frames} frames, but the plan's clips have {clip_frames}: a control with a "
                f"file for each clip cannot be cut anew, set frames per clip to {self.frames}"
            )


@dataclass(frozen=True)
class Signal:
    """Raw, un-normalised depth of a whole video, on disk as a ``.npy`` of float32 [frames, height, width].

    Attributes:
        path: the file.
        kind: ``"disparity"`` (larger = nearer: Video-Depth-Anything, Depth Anything V2, MiDaS) or ``"depth"``
            (distance, larger = farther: DA3, Zoe).
        frames, height, width: shape.
        fps: frames per second of the video that it was taken from.
    """

    path: Path
    kind: str
    frames: int
    height: int
    width: int
    fps: Fraction

    def __post_init__(self) -> None:
        _check_kind(self.kind)

    def disparity(self, numbers: range) -> Iterator[np.ndarray]:
        """The frames ``numbers`` as disparity, float32 [H, W], larger = nearer.

        Depth z becomes 1/z here, and only here, before any percentile is taken; z = inf (sky) becomes 0.

        Raises:
            FileNotFoundError: the file is gone.
            ValueError: a frame that the signal does not have; a file of another shape; a frame with values that mean
                nothing (NaN, infinite disparity, z <= 0 or too near 0 to have an inverse), with number and count.
        """
        if numbers.step < 1 or (numbers and not 0 <= numbers[0] <= numbers[-1] < self.frames):
            raise ValueError(f"{self.path} has frames 0 .. {self.frames - 1}, but {numbers} was asked for")
        return self._disparity(numbers)

    def _disparity(self, numbers: range) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            start = _npy_start(file, (self.frames, self.height, self.width))
            # Read, not mapped: mapped pages would count as this process's memory until the whole signal is in it.
            for number in numbers:
                file.seek(start + number * self.height * self.width * 4)
                raw = np.fromfile(file, "<f4", self.height * self.width).reshape(self.height, self.width)
                yield self._checked(raw, number) if self.kind == "disparity" else self._inverse(raw, number)

    def _inverse(self, z: np.ndarray, number: int) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.reciprocal(z)
        return self._checked(np.where(z > 0, inverse, np.float32(np.nan)), number)

    def _checked(self, disparity: np.ndarray, number: int) -> np.ndarray:
        bad = disparity.size - int(np.count_nonzero(np.isfinite(disparity)))
        if bad:
            rule = "finite" if self.kind == "disparity" else "positive, or infinite for the sky"
            raise ValueError(
                f"{self.path}: frame {number} has {bad} of {disparity.size} {self.kind} values that mean nothing: they "
                f"must be {rule}"
            )
        return disparity


class SignalWriter:
    """Write raw depth frame by frame; the file appears, complete, when the ``with`` block ends without an error.

    The number of frames need not be known before. :meth:`signal` describes the finished file.

    Args:
        path: ``.npy`` file.
        kind: see :class:`Signal`.
        fps: frames per second of the source video.
    """

    def __init__(self, path: Path, kind: str, fps: Fraction) -> None:
        _check_kind(kind)
        if path.suffix != ".npy":
            raise ValueError(f"{path}: a signal needs the file name ending .npy")
        self.path, self.kind, self.fps = path, kind, fps
        self.frames = 0
        self._shape: tuple[int, ...] = ()
        self._temporary = temporary_name(path)

    def __enter__(self) -> SignalWriter:
        self._file = self._temporary.open("wb")
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame [H, W] of floats; kept as float32.

        Raises:
            ValueError: not two axes, or another shape than the first frame's.
        """
        if frame.ndim != 2 or frame.shape != (self._shape or frame.shape):
            expected = list(self._shape) or "[H, W]"
            raise ValueError(f"{self.path}: frame {self.frames} is {list(frame.shape)}, expected {expected}")
        if not self._shape:
            self._shape = frame.shape
            self._file.write(_npy_header((0, *frame.shape)))
        self._file.write(np.ascontiguousarray(frame, "<f4").data)
        self.frames += 1

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if error is None and self.frames == 0:
                    raise ValueError(f"{self.path}: no frame was written, so there is no signal to keep")
                if error is None:
                    self._file.seek(0)
                    self._file.write(_npy_header((self.frames, *self._shape)))
            if error is None:
                publish(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def signal(self) -> Signal:
        """The written signal; to be asked for after the ``with`` block."""
        return Signal(self.path, self.kind, self.frames, *self._shape, self.fps)


@dataclass(frozen=True)
class ClipsFolder:
    """What :func:`load_clips_folder` finds: controls and prompts for ``clips`` clips, and the picture to start from."""

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
    try:
        entries = json.loads(listing.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{listing} is not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{listing} must hold a list with an entry for each clip")
    fields: dict[str, list[str]] = {"text": [], "depth": [], "track": []}
    for number, entry in enumerate(entries):
        for key, values in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise ValueError(f"{listing}: entry {number} has no text under the key {key!r}")
            values.append(entry[key])
    videos = {
        key: [
            _inside(folder, name, f"{key!r} of entry {number} in cond.json") for number, name in enumerate(fields[key])
        ]
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

    Raises:
        ValueError: another number of dense or sparse clips than prompts; frames of an odd size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(first_frame).save(folder / "first.png")
    entries = []
    ended = object()
    for clip, (text, depths, tracks) in enumerate(itertools.zip_longest(prompts, dense, sparse, fillvalue=ended)):
        parts = {"prompt": text, "depth": depths, "tracks": tracks}
        missing = [name for name, part in parts.items() if part is ended]
        if missing:
            raise ValueError(
                f"{folder}: clip {clip + 1} has no {' and no '.join(missing)}: give one of each for every clip"
            )
        entry = {"text": text, "depth": f"depth_{clip:02d}.mp4", "track": f"track_{clip:02d}.mp4"}
        _write_clip(folder / entry["depth"], depths, fps)
        _write_clip(folder / entry["track"], tracks, fps)
        entries.append(entry)
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    write_atomically(folder / "cond.json", lambda temporary: temporary.write_text(text, "utf-8"))
    return load_clips_folder(folder)


def _write_clip(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> None:
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: there are no frames to write")
    with VideoWriter(path, first.shape[1], first.shape[0], fps, crf=CONTROL_CRF) as writer:
        for frame in itertools.chain([first], frames):
            writer.write(frame)


def _inside(folder: Path, written: str, role: str) -> Path:
    """The file in ``folder`` with the file name of ``written``, which must be a real file in that folder."""
    name = written.replace("\\", "/").rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "\0" in name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(f"{folder}: {written[:MAX_NAME_BYTES]!r} ({role}) is not a file name")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {role}")
    if path.resolve().parent != folder.resolve():
        raise ValueError(f"{path} ({role}) is a link that leads out of the folder: copy the file into it")
    return path


@lru_cache(maxsize=8192)
def _digest_of(path: Path, _size: int, _mtime_ns: int, numbers: range | None) -> str:
    """sha256 of a file's bytes, or of its decoded frames ``numbers``."""
    if numbers is None:
        return file_sha256(path)
    digest = hashlib.sha256()
    for frame in read_frames(path, numbers):
        digest.update(frame.data)
    return digest.hexdigest()


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"signal kind {kind!r} is not one of {', '.join(KINDS)}")


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Header of a ``.npy`` of little-endian float32. NumPy pads it, so its length stays while the first axis grows."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _npy_start(file: io.BufferedReader, shape: tuple[int, int, int]) -> int:
    """Where the values start, after checking that the file holds float32 of this shape, and all of it."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0 of the .npy format")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ValueError(f"{file.name} is not a signal: {error}") from error
    if found != shape or fortran or dtype != np.dtype("<f4"):
        raise ValueError(f"{file.name} holds {dtype} {list(found)}, expected float32 {list(shape)}: it was replaced")
    start = file.tell()
    whole = start + 4 * int(np.prod(shape, dtype=np.int64))
    size = os.fstat(file.fileno()).st_size
    if size != whole:
        raise ValueError(f"{file.name} has {size} bytes instead of {whole}: it is incomplete or damaged, make it again")
    return start
