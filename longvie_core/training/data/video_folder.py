"""Training clips from a folder of any videos; their controls are made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from ...control.control import Control
from ...control.depth.engine import DepthEngine, extract_depth
from ...control.normalize import write_control
from ...control.tracks.types import Tracker
from ...control.tracks.write import write_tracks
from ...media.footage import Footage
from ...plan import ClipPlan
from ...run.prompts import PromptSchedule, parse_prompts
from .source import Clip, past_of

VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Preprocessing:
    """How controls are made of a video that has none.

    Args:
        depth: depth of the whole video, see :mod:`longvie_core.control.depth`; normalised over all of it (P1).
        tracker: follows the points, anew in each clip.
        grid: points a side (the reference: 50; P1 and P2: 70).
        fit: ``"crop"`` keeps the pictures' proportions, ``"stretch"`` their edges.
    """

    depth: DepthEngine
    tracker: Tracker
    grid: int = 50
    fit: str = "crop"


@dataclass(frozen=True)
class _Video:
    """A video that is long enough for a clip."""

    footage: Footage
    plan: ClipPlan
    folder: Path


class VideoFolder:
    """Any videos below a folder, cut into clips one after another; captions from ``NAME.txt`` beside ``NAME.mp4``.

    A caption file holds one line for the whole video or one a clip (:func:`longvie_core.run.prompts.parse_prompts`). Depth, its
    global normalisation and the tracks are made once and kept, video by video, so that an interrupted preparation goes on.

    Args:
        folder: of the videos.
        work: where the controls are kept.
        width, height, frames, fps: of the clips.
        preprocessing: makes the controls.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no video that is long enough for one clip.
    """

    def __init__(
        self, folder: Path, work: Path, preprocessing: Preprocessing, width: int, height: int, frames: int, fps: Fraction
    ) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder: give one with videos ({', '.join(VIDEO_ENDINGS)})")
        self.preprocessing = preprocessing
        self.width, self.height, self.frames = width, height, frames
        self.too_short: list[Path] = []
        self.videos: list[_Video] = []
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_ENDINGS):
            footage = Footage.open(path, fps, width, height, preprocessing.fit)
            if footage.frames < frames:
                self.too_short.append(path)
                continue
            plan = ClipPlan(width, height, frames, fps, source_frames=footage.frames)
            self.videos.append(_Video(footage, plan, work / self._digest(footage, plan)))
        if not self.videos:
            raise ValueError(f"{folder} holds no video of at least {frames} frames at {fps} a second: give longer ones")
        self._starts = [0, *accumulate(video.plan.clips for video in self.videos)]
        self._kept: dict[Path, tuple[Control, Control]] = {}

    def _digest(self, footage: Footage, plan: ClipPlan) -> str:
        """Names what the controls of a video depend on."""
        used = self.preprocessing
        parts = (footage.digest(), str(plan), used.depth.name, used.depth.kind, type(used.tracker).__name__, used.grid)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @cached_property
    def identity(self) -> str:
        return json.dumps([video.folder.name for video in self.videos])

    @property
    def capacity(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> Clip:
        video, clip = self._find(number)
        window = video.plan.control_frames(clip)
        past = past_of(window.start)
        frames = np.stack(list(video.footage.read(range(past.start, window.stop))))
        dense, sparse = self._controls(video)
        return Clip(
            frames=frames[len(past) :],
            dense=np.stack(list(dense.window(video.plan, clip))),
            sparse=np.stack(list(sparse.window(video.plan, clip))),
            past=frames[: len(past)],
            text=self.text(number),
        )

    def past(self, number: int) -> int:
        video, clip = self._find(number)
        return len(past_of(video.plan.control_frames(clip).start))

    def text(self, number: int) -> str:
        video, clip = self._find(number)
        caption = self._caption(video)
        return PromptSchedule(parse_prompts(caption)).of(clip).text if caption else ""

    def prepare(self) -> Iterator[Path]:
        """Make the controls of all videos; yields each video when its controls are there."""
        for video in self.videos:
            self._controls(video)
            yield video.footage.path

    def _find(self, number: int) -> tuple[_Video, int]:
        """The video that a clip is of, and the clip's number in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} is outside 0 .. {len(self) - 1}")
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.videos[place], number - self._starts[place]

    def _caption(self, video: _Video) -> str:
        path = video.footage.path.with_suffix(".txt")
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    def _controls(self, video: _Video) -> tuple[Control, Control]:
        """Dense and sparse control of a video, made where they are not there yet."""
        if video.folder in self._kept:
            return self._kept[video.folder]
        dense_path = video.folder / "dense.mkv"
        if not dense_path.is_file():
            video.folder.mkdir(parents=True, exist_ok=True)
            raw_depth = extract_depth(video.footage, self.preprocessing.depth, video.folder / "depth.npy")
            write_control(raw_depth, video.plan, dense_path)
            raw_depth.path.unlink()
        dense = Control.from_video(dense_path, "dense")
        sparse = write_tracks(
            video.footage,
            dense,
            video.plan,
            self.preprocessing.tracker,
            video.folder / "tracks",
            grid=self.preprocessing.grid,
        )
        self._kept[video.folder] = dense, sparse
        return dense, sparse
