"""Training clips of the procedural world, with exact controls."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from .scenes import SceneSet
from .source import Clip, past_of


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
        window = self.plan.control_frames(clip)
        rgb, dense = self.scenes.rgb[video], self.scenes.dense[video, window.start : window.stop]
        past = past_of(window.start)
        sample = Clip(
            frames=np.array(rgb[window.start : window.stop]),
            dense=np.repeat(dense[..., None], 3, axis=-1),
            sparse=np.array(self.scenes.sparse[video, clip]),
            past=np.array(rgb[past.start : past.stop]),
        )
        return sample.mirrored() if copy else sample

    def past(self, number: int) -> int:
        return len(past_of(self.plan.stride * (number % self.plan.clips)))

    def text(self, number: int) -> str:
        return ""
