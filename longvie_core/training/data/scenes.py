"""Training videos of the procedural world, rendered once: pictures, global depth control and per-clip tracks, all exact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from ...control.normalize import normalized_frames
from ...control.raw_depth import RawDepthWriter
from ...disk.atomic import write_atomically
from ...plan import ClipPlan
from ...world.clips import TrackGrid, clip_windows, scene_tracks
from ...world.render import render_frames
from ...world.scene import make_scene

SETTINGS = "scenes.json"
ARRAYS = ("rgb", "dense", "sparse", "done")


@dataclass(frozen=True)
class SceneSettings:
    """What every video of a set has in common.

    Args:
        width, height: pixels, multiples of 16.
        clips: clips a video; the depth's percentiles are taken over all of them.
        frames: frames a clip, 4n + 1; neighbours share one.
        grid: points a side of the tracks, :func:`longvie_core.control.tracks.draw.reference_grid`.
        first_seed: the scene of video 0; video k shows scene ``first_seed + k``.
        slowest, fastest: bounds of the seconds of scene time in one second of video, drawn for each video.
        fps: frames a second.
    """

    width: int = 96
    height: int = 64
    clips: int = 12
    frames: int = 17
    grid: int = 8
    first_seed: int = 100_000
    slowest: float = 2.5
    fastest: float = 5.0
    fps: int = 16

    @property
    def plan(self) -> ClipPlan:
        """How a video is cut into clips."""
        length = 1 + (self.frames - 1) * self.clips
        return ClipPlan(self.width, self.height, self.frames, Fraction(self.fps), source_frames=length)

    @property
    def track_grid(self) -> TrackGrid:
        """Points of the tracks."""
        return TrackGrid(self.grid, self.grid)

    def speed(self, video: int) -> float:
        """Seconds of scene time in one second of video ``video``."""
        return float(np.random.default_rng(self.first_seed + video).uniform(self.slowest, self.fastest))

    def rate(self, video: int) -> Fraction:
        """Frames of video ``video`` in one second of scene time."""
        return self.plan.fps / Fraction(self.speed(video)).limit_denominator(1000)


def film(settings: SceneSettings, video: int) -> Mapping[str, np.ndarray]:
    """One video and its controls.

    Returns:
        ``rgb`` uint8 [T, H, W, 3], ``dense`` uint8 [T, H, W] (global normalisation over all T, near = black) and ``sparse``
        uint8 [clips, frames, H, W, 3].
    """
    plan, scene = settings.plan, make_scene(settings.first_seed + video)
    rate = settings.rate(video)
    rgb = []
    with tempfile.TemporaryDirectory() as temporary:
        with RawDepthWriter(Path(temporary) / "disparity.npy", "disparity", plan.fps) as writer:
            for frame in render_frames(scene, plan.source_frames, rate, plan.width, plan.height):
                rgb.append(frame.rgb)
                writer.write(frame.disparity)
        dense = list(normalized_frames(writer.raw_depth(), plan.source_frames))
    windows = clip_windows(plan, iter(dense))
    sparse = [list(scene_tracks(scene, plan, clip, window, settings.track_grid, rate)) for clip, window in enumerate(windows)]
    return {"rgb": np.stack(rgb), "dense": np.stack(dense), "sparse": np.array(sparse)}


class SceneSet:
    """Videos on disk, memory-mapped, and which of them are finished.

    Args:
        folder: made by :func:`open_set`.

    Raises:
        FileNotFoundError: there is no such set.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / SETTINGS).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {SETTINGS}: render scenes there first (python -m longvie_core.training.scenes)"
            )
        self.settings = SceneSettings(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        self.rgb, self.dense, self.sparse, self.done = (open_memmap(folder / f"{name}.npy", mode="r+") for name in ARRAYS)

    @property
    def finished(self) -> np.ndarray:
        """Numbers of the finished videos."""
        return np.flatnonzero(self.done)

    def render(self, videos: range, processes: int = 1) -> Iterator[int]:
        """Film those of ``videos`` that are not finished; yields each number when it is on disk.

        Args:
            processes: how many film at once; 1 = this one alone.
        """
        missing = [video for video in videos if not self.done[video]]
        if processes == 1:
            yield from self._keep(missing, map(partial(film, self.settings), missing))
            return
        with ProcessPoolExecutor(processes) as pool:
            yield from self._keep(missing, pool.map(partial(film, self.settings), missing))

    def _keep(self, videos: list[int], films: Iterator[Mapping[str, np.ndarray]]) -> Iterator[int]:
        for video, arrays in zip(videos, films, strict=True):
            for name, array in arrays.items():
                getattr(self, name)[video] = array
            self.done[video] = True
            self.done.flush()
            yield video


def open_set(folder: Path, settings: SceneSettings, videos: int) -> SceneSet:
    """The set in ``folder``; made, empty, where there is none.

    Raises:
        ValueError: a set with other settings or of another size is there.
    """
    if not (folder / SETTINGS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        plan = settings.plan
        picture = (settings.height, settings.width)
        shapes = {
            "rgb": (videos, plan.source_frames, *picture, 3),
            "dense": (videos, plan.source_frames, *picture),
            "sparse": (videos, settings.clips, settings.frames, *picture, 3),
            "done": (videos,),
        }
        for name, shape in shapes.items():
            open_memmap(folder / f"{name}.npy", mode="w+", dtype=bool if name == "done" else np.uint8, shape=shape).flush()
        write_atomically(folder / SETTINGS, lambda part: part.write_text(json.dumps(asdict(settings)), encoding="utf-8"))
    scenes = SceneSet(folder)
    if scenes.settings != settings or len(scenes.done) != videos:
        raise ValueError(f"{folder} holds {len(scenes.done)} videos of {scenes.settings}: choose another folder, or delete it")
    return scenes
