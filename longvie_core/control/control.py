"""Control pictures on disk, addressed by clip and frame: how the rest of the program reads depth and tracks."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..disk.fingerprints import cached_file_sha256, file_stamp
from ..media.probe import probe
from ..media.read import read_frames, stretch
from ..plan import ClipPlan

MODALITIES = ("dense", "sparse")


@dataclass(frozen=True)
class Control:
    """A control video that any window can be read from.

    Controls are addressed by (clip, frame), not by frame alone: tracks are re-gridded for every clip, so that the frame
    which two clips share has two different pictures.

    Attributes:
        modality: ``"dense"`` or ``"sparse"``.
        near_is_black: whether near is black in a dense control's files, as the weights want it; :meth:`window` inverts the
            others. Without meaning for a sparse one.
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

        A dense control comes out with near = black, whatever its file holds: nothing else inverts it.
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
        """sha256 that changes when what :meth:`window` gives changes: by it a resumed run knows which clips to render again.

        Where each clip has its file, the file's bytes count; in a continuous video, the decoded frames of the window,
        so that frames added at the end leave the earlier clips as they are.
        """
        path, numbers = self._source(plan, clip)
        content = cached_file_sha256(path) if self.per_clip else frames_sha256(path, file_stamp(path), numbers)
        parts = (self.modality, self.near_is_black, plan.width, plan.height, plan.frames, content)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

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
            near_black = frame if self.near_is_black or self.modality == "sparse" else 255 - frame
            picture = stretch(near_black, (plan.width, plan.height))
            yield picture
        yield from itertools.repeat(picture, plan.frames - len(numbers))

    def _check_clip_frames(self, clip_frames: int) -> None:
        if clip_frames != self.frames:
            raise ValueError(
                f"{self.paths[0]} has {self.frames} frames, but the plan's clips have {clip_frames}: a control with a "
                f"file for each clip cannot be cut anew, set frames per clip to {self.frames}"
            )


@lru_cache(maxsize=8192)
def frames_sha256(path: Path, _stamp: tuple[int, int], numbers: range) -> str:
    """Hash of the decoded frames ``numbers``; cached as long as the file's size and time stay the same."""
    digest = hashlib.sha256()
    for frame in read_frames(path, numbers):
        digest.update(frame.data)
    return digest.hexdigest()
