"""How well the default point tracker follows procedural scenes whose exact tracks are known, and what drawing tracks costs.

The points are a regular grid over each clip's first frame: sky, ground and solids. Errors count where a point is truly visible;
the F1 score is that of calling it visible. The first frame is left out of both. Clips start at different times of their scenes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longvie_core.control.normalize import normalize, to_uint8
from longvie_core.control.percentiles import PERCENTILES
from longvie_core.control.tracks.draw import reference_grid, render_tracks
from longvie_core.control.tracks.lucas_kanade import LucasKanade
from longvie_core.control.tracks.point_depth import depth_to_z, hide_occluded
from longvie_core.control.tracks.types import Tracks
from longvie_core.world.cast import hit
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from longvie_core.world.track import TrueTracks, grid_points, track

FPS = 16
START_STEP = 7.5
"""The clip of seed k starts k times this many seconds into its scene."""

DRAWN = (832, 480, 81, 50)
"""Width, height, frames and points a side of the drawing that is timed."""


class Clip(NamedTuple):
    """A rendered clip, its points and the truth about them."""

    rgb: np.ndarray
    depth: np.ndarray
    points: np.ndarray
    truth: TrueTracks
    surface: np.ndarray


@dataclass(frozen=True)
class Score:
    """Tracks of one clip against the truth: end-point errors of the visible points, and counts of the visibility calls."""

    errors: np.ndarray
    hits: int
    called: int
    visible: int

    @property
    def precision(self) -> float:
        """Share of the points called visible that are."""
        return self.hits / max(self.called, 1)

    @property
    def recall(self) -> float:
        """Share of the visible points that are called so."""
        return self.hits / max(self.visible, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.hits / max(self.called + self.visible, 1)


def film(seed: int, width: int, height: int, length: int, grid: int) -> Clip:
    """The clip of one seed."""
    scene = make_scene(seed)
    first = round(START_STEP * seed * FPS)
    numbers = range(first, first + length)
    points = grid_points(grid, grid, width, height)
    truth = track(scene, points, [number / FPS for number in numbers], width, height)
    surface = hit(scene, first / FPS, points, width, height)[1]
    frames = list(render_frames(scene, numbers, FPS, width, height))
    rgb, depth = np.stack([frame.rgb for frame in frames]), np.stack([frame.depth for frame in frames])
    return Clip(rgb, depth, points, truth, surface)


def score(tracks: Tracks, truth: TrueTracks, chosen: np.ndarray | slice = slice(None)) -> Score:
    """Compare the ``chosen`` points, without the frame that they are given in."""
    visible, called = truth.visible[1:, chosen], tracks.visible[1:, chosen]
    errors = np.linalg.norm(tracks.xy[1:, chosen] - truth.xy[1:, chosen], axis=-1)
    return Score(errors[visible], int((called & visible).sum()), int(called.sum()), int(visible.sum()))


def pooled(scores: list[Score]) -> Score:
    """All clips as one."""
    errors = np.concatenate([one.errors for one in scores])
    return Score(errors, *(sum(getattr(one, name) for one in scores) for name in ("hits", "called", "visible")))


def with_depth(tracks: Tracks, depth: np.ndarray) -> Tracks:
    """The tracks after the depth check, with the exact depth as an 8-bit dense control."""
    disparity = 1 / depth
    grey = to_uint8(normalize(disparity, *np.percentile(disparity, PERCENTILES)))
    return hide_occluded(tracks, depth_to_z(np.repeat(grey[..., None], 3, axis=-1), depth.shape[:0:-1]))


def row(name: str, one: Score) -> str:
    """One line of the table."""
    median, late = np.percentile(one.errors, [50, 95]) if len(one.errors) else (np.nan, np.nan)
    return f"{name:<16} {median:7.3f} {late:8.2f} {one.f1:6.3f} {one.precision:6.3f} {one.recall:6.3f}"


def describe(clip: Clip) -> str:
    """Texture and motion of a clip: what its figures are to be read against."""
    grey = clip.rgb[0].astype(np.float64).mean(axis=-1)
    moved = np.linalg.norm(clip.truth.xy[-1] - clip.truth.xy[0], axis=-1)
    step = np.linalg.norm(np.diff(clip.truth.xy, axis=0), axis=-1)
    slope = np.hypot(*np.gradient(grey)).mean()
    return (
        f"grey std {grey.std():.0f}, mean slope {slope:.1f} levels/px, median displacement {np.nanmedian(moved):.0f} px, "
        f"{np.nanmedian(step):.2f} px a frame, truly visible {clip.truth.visible[1:].mean():.2f}"
    )


def drawing_seconds() -> float:
    """Time to draw a clip of drifting points."""
    width, height, frames, side = DRAWN
    generator = np.random.default_rng(0)
    start = np.concatenate([reference_grid(width, height, side), generator.random((side * side, 1))], axis=1)
    drift = np.linspace(0, 1, frames)[:, None, None] * generator.normal(0, (60, 30, 0.1), (side * side, 3))
    tracks = (start + drift).astype(np.float32)
    started = time.perf_counter()
    for _ in render_tracks(tracks, None, width, height):
        pass
    return time.perf_counter() - started


def main(arguments: list[str]) -> int:
    """Command line; prints the pooled figures as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python dev.py bench tracks", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="scenes, from seed 0 on")
    parser.add_argument("--size", default="640x352", help="width x height in pixels")
    parser.add_argument("--frames", type=int, default=81, help="frames a clip, at 16 fps")
    parser.add_argument("--grid", type=int, default=50, help="points a side")
    options = parser.parse_args(arguments)
    width, _, height = options.size.partition("x")
    if not (width.isdigit() and height.isdigit()) or min(options.seeds, options.grid, options.frames - 1) < 1:
        parser.error("give a size like 640x352, at least 1 seed, a grid of at least 1 and at least 2 frames")

    header = f"{'':<16} {'median':>7} {'95 %':>8} {'F1':>6} {'prec.':>6} {'recall':>6}"
    print(f"{options.grid**2} points, {options.frames} frames, {options.size}; errors in pixels\n{header}")
    scores, checked, parts = [], [], {"sky": [], "ground": [], "solids": []}
    for seed in range(options.seeds):
        clip = film(seed, int(width), int(height), options.frames, options.grid)
        started = time.perf_counter()
        tracks = LucasKanade().track(clip.rgb, clip.points)
        seconds = time.perf_counter() - started
        scores.append(score(tracks, clip.truth))
        checked.append(score(with_depth(tracks, clip.depth), clip.truth))
        for name, chosen in zip(parts, (clip.surface < 0, clip.surface == 0, clip.surface > 0), strict=True):
            parts[name].append(score(tracks, clip.truth, chosen))
        print(f"{row(f'seed {seed}', scores[-1])}  {seconds:.1f} s; {describe(clip)}", flush=True)
    for name, some in parts.items():
        print(row(f"all, {name}", pooled(some)))
    total = pooled(scores)
    print(row("all", total))
    print(row("all, with depth", pooled(checked)))
    result = {
        "median_epe_px": round(float(np.median(total.errors)), 4),
        "visibility_f1": round(total.f1, 4),
        "render_s": round(drawing_seconds(), 2),
    }
    print(json.dumps(result))
    return 0
