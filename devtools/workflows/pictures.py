"""The pictures that the host's template browser shows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.render import render
from longvie_core.world.scene import make_scene


@dataclass(frozen=True)
class Thumbnail:
    """What a workflow's picture shows: controls of a procedural scene, at the size that the workflow works at.

    ``video``: the scene itself above its controls.
    """

    width: int
    height: int
    grid: TrackGrid
    picture: tuple[int, int]
    video: bool = False


THUMBNAILS = {
    "longvie_from_control_clips": Thumbnail(640, 352, TrackGrid(), (480, 264)),
    "longvie_from_video": Thumbnail(640, 352, TrackGrid(), (480, 396), video=True),
    "longvie_tiny_from_control_clips": Thumbnail(96, 64, TrackGrid(8, 8), (480, 320)),
    "longvie_tiny_from_video": Thumbnail(96, 64, TrackGrid(8, 8), (480, 480), video=True),
}
THUMBNAIL_SCENE = 10
THUMBNAIL_SPEED = 5.0
THUMBNAIL_CLIPS = (0, 3)


def draw_thumbnail(look: Thumbnail) -> Image.Image:
    """Depth above tracks, below the video where that is asked for: the middle frames of two clips of a procedural scene."""
    plan = ClipPlan(look.width, look.height, 17, Fraction(16), source_frames=1 + 16 * (1 + max(THUMBNAIL_CLIPS)))
    scene = make_scene(THUMBNAIL_SCENE)
    rows = []
    if look.video:
        middles = (plan.control_frames(clip)[plan.frames // 2] for clip in THUMBNAIL_CLIPS)
        times = (float(frame / plan.fps * THUMBNAIL_SPEED) for frame in middles)
        rows.append(np.hstack([render(scene, time, look.width, look.height).rgb for time in times]))
    with tempfile.TemporaryDirectory() as folder:
        found = write_scene_clips(Path(folder), scene, plan, look.grid, THUMBNAIL_SPEED)
        rows += [
            np.hstack([next(islice(control.window(plan, clip), plan.frames // 2, None)) for clip in THUMBNAIL_CLIPS])
            for control in (found.dense, found.sparse)
        ]
    return Image.fromarray(np.vstack(rows)).resize(look.picture)
