"""One picture of what LongVie-Tiny makes of a procedural scene.

``python -m devtools.contact_sheet VIDEO... OUT.jpg`` puts the scene itself, its depth and its tracks above the videos that were
generated from it: a row each, and a column for the middle frame of each clip.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from devtools.demo import FPS, GRID, SCENE, SPEED, scene_plan
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import write_scene_clips
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene

ENLARGED = 2
QUALITY = 85


def plan_of(videos: Sequence[Path]) -> ClipPlan:
    """How the videos are cut.

    Raises:
        FileNotFoundError, ValueError: a video is missing, is none of LongVie-Tiny's, or of another length than the first.
    """
    plan = scene_plan(max(1, (probe(videos[0]).frames - 1) // scene_plan(1).stride))
    wanted = (plan.output_frames, plan.width, plan.height)
    for video in videos:
        info = probe(video)
        if (info.frames, info.width, info.height) != wanted:
            raise ValueError(
                f"{video} has {info.frames} frames of {info.width}x{info.height} instead of {wanted[0]} of "
                f"{plan.width}x{plan.height}: give videos of whole clips, all of one scene"
            )
    return plan


def middles(plan: ClipPlan) -> list[int]:
    """The frame in the middle of each clip, counted from the start of the video."""
    return [plan.control_frames(clip)[plan.frames // 2] for clip in range(plan.clips)]


def rows(videos: Sequence[Path], scene: int) -> list[np.ndarray]:
    """Truth, depth, tracks and the videos, each uint8 [clips, H, W, 3]."""
    plan, filmed = plan_of(videos), make_scene(scene)
    truth = [frame.rgb for frame in render_frames(filmed, middles(plan), FPS / SPEED, plan.width, plan.height)]
    with tempfile.TemporaryDirectory() as folder:
        found = write_scene_clips(Path(folder), filmed, plan, GRID, SPEED)
        controls = [
            [next(islice(control.window(plan, clip), plan.frames // 2, None)) for clip in range(plan.clips)]
            for control in (found.dense, found.sparse)
        ]
    generated = [list(read_frames(video, middles(plan))) for video in videos]
    return [np.stack(row) for row in (truth, *controls, *generated)]


def sheet(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Rows of pictures [N, H, W, 3] above each other, every pixel enlarged."""
    whole = Image.fromarray(np.vstack([np.hstack(list(row)) for row in pictures]))
    return whole.resize((ENLARGED * whole.width, ENLARGED * whole.height), Image.Resampling.NEAREST)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devtools.contact_sheet", description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="what python dev.py demo has written")
    parser.add_argument("out", type=Path, metavar="OUT", help="picture to write (.jpg)")
    parser.add_argument("--scene", type=int, default=SCENE, help=f"seed of the scene that the videos were made from ({SCENE})")
    options = parser.parse_args(arguments)
    try:
        pictures = rows(options.videos, options.scene)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    sheet(pictures).save(options.out, "JPEG", quality=QUALITY, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
