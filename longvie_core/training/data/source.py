"""Training clips with their controls and their past, from the procedural world or from a folder of any videos.

A source gives clips by number; what is read from it again and again, its latents, lies in :mod:`.latents`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from ...control.control import Control
from ...control.depth.engine import DepthEngine, extract_depth
from ...control.normalize import write_control
from ...control.tracks.types import Tracker
from ...control.tracks.write import write_tracks
from ...media.footage import Footage
from ...plan import ClipPlan
from ...run.prompts import PromptSchedule, parse_prompts
from .scenes import SceneSet

PAST_FRAMES = 16
"""Frames before a clip that a sample holds; with the clip's first one they make the longest history, 17 frames."""

VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Clip:
    """One training sample; all pictures are uint8 [.., H, W, 3].

    Args:
        frames: the clip itself [F, H, W, 3].
        dense, sparse: its controls [F, H, W, 3].
        past: up to :data:`PAST_FRAMES` frames before it [n, H, W, 3]; none where it begins its video.
        text: its caption.
    """

    frames: np.ndarray
    dense: np.ndarray
    sparse: np.ndarray
    past: np.ndarray
    text: str = ""

    @property
    def first(self) -> bool:
        """Whether it begins its video."""
        return len(self.past) == 0

    def mirrored(self) -> Clip:
        """The same with left and right swapped; a caption that names sides would be wrong."""
        pictures = (self.frames, self.dense, self.sparse, self.past)
        return Clip(*(np.ascontiguousarray(frames[:, :, ::-1]) for frames in pictures), text=self.text)

    def history(self, frames: int) -> np.ndarray:
        """The last ``frames`` frames up to the clip's first one, that one included, as generation hands them on.

        Raises:
            ValueError: so many frames are not there.
        """
        if not 0 < frames <= len(self.past) + 1:
            raise ValueError(f"a history of {frames} frames is asked for, but the clip has {len(self.past) + 1}")
        return np.concatenate([self.past, self.frames[:1]])[-frames:]


class ClipSource(Protocol):
    """Training clips by number; those of a video follow one another, each from where the last one ended.

    Attributes:
        width, height, frames: of each clip.
        identity: changes where the clips change.
        capacity: how many clips there may be one day; as many rows are set aside for latents.
    """

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def identity(self) -> str: ...

    @property
    def capacity(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Clip: ...

    def past(self, number: int) -> int:
        """How many frames the clip's ``past`` has, without reading them; 0 for a video's first clip, and for no other."""

    def text(self, number: int) -> str:
        """The clip's caption."""


def past_of(start: int) -> range:
    """Numbers of the frames before a clip that starts at frame ``start`` of its video."""
    return range(max(0, start - PAST_FRAMES), start)


class SceneClips:
    """Clips of the procedural world, :mod:`.scenes`: exact controls, no captions.

    Args:
        scenes: rendered videos.
        videos: how many of them, from the first; a set may still be growing. All of them by default.
        mirrored: every video once more, left and right swapped: the copy of video v is video ``videos + v``.

    Raises:
        ValueError: not all of these videos are rendered.
    """

    def __init__(self, scenes: SceneSet, videos: int | None = None, mirrored: bool = False) -> None:
        self.videos = len(scenes.done) if videos is None else videos
        missing = self.videos - int(scenes.done[: self.videos].sum())
        if missing:
            raise ValueError(f"{missing} of the first {self.videos} training videos are not rendered: render them first")
        self.scenes, self.mirrored = scenes, mirrored
        self.plan = scenes.settings.plan
        self.width, self.height, self.frames = self.plan.width, self.plan.height, self.plan.frames

    @property
    def identity(self) -> str:
        settings = asdict(self.scenes.settings)  # where there are copies, their numbers depend on how many videos there are
        return json.dumps({**settings, "mirrored": self.videos} if self.mirrored else settings)

    @property
    def capacity(self) -> int:
        return len(self.scenes.done) * self.plan.clips * (1 + self.mirrored)

    def __len__(self) -> int:
        return self.videos * self.plan.clips * (1 + self.mirrored)

    def __getitem__(self, number: int) -> Clip:
        copy, place = divmod(number, self.videos * self.plan.clips)
        video, clip = divmod(place, self.plan.clips)
        shown = self.plan.control_frames(clip)
        rgb, dense = self.scenes.rgb[video], self.scenes.dense[video, shown.start : shown.stop]
        past = past_of(shown.start)
        found = Clip(
            frames=np.array(rgb[shown.start : shown.stop]),
            dense=np.repeat(dense[..., None], 3, axis=-1),
            sparse=np.array(self.scenes.sparse[video, clip]),
            past=np.array(rgb[past.start : past.stop]),
        )
        return found.mirrored() if copy else found

    def past(self, number: int) -> int:
        return len(past_of(self.plan.stride * (number % self.plan.clips)))

    def text(self, number: int) -> str:
        return ""


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
        self._made: dict[Path, tuple[Control, Control]] = {}

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
        shown = video.plan.control_frames(clip)
        past = past_of(shown.start)
        frames = np.stack(list(video.footage.read(range(past.start, shown.stop))))
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
        if video.folder in self._made:
            return self._made[video.folder]
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
        self._made[video.folder] = dense, sparse
        return dense, sparse
