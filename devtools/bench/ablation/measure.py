"""Scores of a scene's videos against the true rendering, scenes in one or several processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from devtools.bench.ablation.make import (
    VARIANTS,
    Controls,
    Pictures,
    Weights,
    global_controls,
    load_codec,
    make_backend,
    make_video,
    per_clip_controls,
)
from longvie_core.bench.metrics import colour_change, edge_agreement, seam_score, ssim
from longvie_core.model.conditioning import pixels_from_uint8
from longvie_core.model.dual_control import Strengths
from longvie_core.model.noise import UnifiedNoise
from longvie_core.plan import ClipPlan
from longvie_core.training.data.scenes import SceneSettings, film
from longvie_core.training.tasks.pictures import psnr

Scores = Mapping[str, float | list[float] | list[list[float]]]

SHEET_SCENES = 3
"""Scenes whose pictures are kept for the sheet."""

BOTH, NONE, DENSE, SPARSE, INVERTED, OTHER = "both", "none", "dense", "sparse", "dense inverted", "another scene's"

ONE_CLIP = {DENSE: Strengths(1, 0), SPARSE: Strengths(0, 1), NONE: Strengths(0, 0)}
"""Strengths of the one-clip cases; 1 each where nothing is said."""


@dataclass(frozen=True)
class Task:
    """What is done with each scene."""

    weights: Weights
    settings: SceneSettings
    variants: tuple[str, ...]


@dataclass(frozen=True)
class SceneResult:
    """One scene: what was measured, and the last frame of each clip for the sheet.

    Args:
        seed: of the scene and of its noise.
        truth: depth adherence and seam score of the true rendering.
        variants: scores of each variant's video; lists have an entry a clip, or a channel.
        one_clip: scores of the first clip alone, by its controls.
        pictures: row of the sheet -> uint8 [clips, H, W, 3].
        clips: clips that were generated.
        seconds: that took, encoding the controls included.
    """

    seed: int
    truth: Scores
    variants: Mapping[str, Scores]
    one_clip: Mapping[str, Scores]
    pictures: Mapping[str, np.ndarray]
    clips: int
    seconds: float


def new_frames(plan: ClipPlan, clip: int) -> slice:
    """Frames of the stitched video that clip ``clip`` adds; of the first clip all but the given one."""
    numbers = plan.control_frames(clip)
    return slice(numbers.start + 1, numbers.stop)


def seams(plan: ClipPlan) -> list[int]:
    """First frame of the stitched video that each clip after the first adds."""
    return [plan.stitched_frames(clips) for clips in range(1, plan.clips)]


def fidelity(frames: np.ndarray, truth: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """Scores of the frames of one clip: uint8 [T, H, W, 3], the same, and their depth control [T, H, W]."""
    pixels, true_pixels = (torch.from_numpy(pixels_from_uint8(pictures)) for pictures in (frames, truth))
    return {"psnr": psnr(pixels, true_pixels), "ssim": ssim(frames, truth), "adherence": edge_agreement(frames, depth)}


def measure_video(plan: ClipPlan, video: np.ndarray, truth: np.ndarray, depth: np.ndarray) -> Scores:
    """Scores of a whole video, stitched as the truth is; ``depth`` is the right control, whichever the video was made with."""
    parts = [new_frames(plan, clip) for clip in range(plan.clips)]
    clips = [fidelity(video[part], truth[part], depth[part]) for part in parts]
    scores = {name: [clip[name] for clip in clips] for name in clips[0]}
    change, true_change = (colour_change(frames[parts[0]], frames[parts[-1]]) for frames in (video, truth))
    colour, contrast = np.abs(change - true_change).mean(axis=1).tolist()
    return {
        **scores,
        "seam": seam_score(video, seams(plan)),
        "drift": scores["psnr"][0] - scores["psnr"][-1],
        "colour_drift": colour,
        "contrast_drift": contrast,
        "channel_changes": (change - true_change).tolist(),
    }


def measure_truth(plan: ClipPlan, truth: np.ndarray, depth: np.ndarray) -> Scores:
    """What the true rendering itself reaches, where that is a question."""
    parts = [new_frames(plan, clip) for clip in range(plan.clips)]
    return {
        "adherence": [edge_agreement(truth[part], depth[part]) for part in parts],
        "seam": seam_score(truth, seams(plan)),
    }


def measure_scene(task: Task, number: int) -> SceneResult:
    """Film scene ``number``, make all its videos and measure them."""
    torch.set_num_threads(1)
    load_codec(task.weights.vae).forget()
    settings, plan = task.settings, task.settings.plan
    seed = settings.first_seed + number
    filmed = film(settings, number)
    truth, depth = filmed["rgb"], filmed["dense"]
    right = global_controls(plan, filmed)
    videos = {"truth": truth, "depth": np.repeat(depth[..., None], 3, axis=-1)}
    scores, spent = {}, 0.0
    for name in task.variants:
        variant = VARIANTS[name]
        controls = per_clip_controls(settings, number) if variant.per_clip else right
        begun = time.perf_counter()
        backend = make_backend(task.weights, variant.strengths, variant.degradation)
        noise = UnifiedNoise(seed, variant.noise)
        videos[name] = make_video(plan, plan.clips, truth[0], controls, noise, backend, variant.anchor)
        spent += time.perf_counter() - begun
        scores[name] = measure_video(plan, videos[name], truth, depth)
    begun = time.perf_counter()
    one_clip = measure_one_clip(task, number, filmed, right)
    spent += time.perf_counter() - begun
    last_frames = [new_frames(plan, clip).stop - 1 for clip in range(plan.clips)]
    pictures = {name: video[last_frames] for name, video in videos.items()} if number < SHEET_SCENES else {}
    made = plan.clips * len(task.variants) + len(one_clip)
    return SceneResult(seed, measure_truth(plan, truth, depth), scores, one_clip, pictures, made, spent)


def measure_one_clip(task: Task, number: int, filmed: Mapping[str, np.ndarray], right: Controls) -> dict[str, Scores]:
    """The first clip alone, with right and with wrong controls."""
    settings, plan = task.settings, task.settings.plan
    other = replace(settings, clips=1)
    wrong = {
        INVERTED: Controls(Pictures(255 - right.dense.frames[:1]), right.sparse),
        OTHER: global_controls(other.plan, film(other, number + 1)),
    }
    part, noise = new_frames(plan, 0), UnifiedNoise(settings.first_seed + number)
    scores = {}
    for case in (BOTH, DENSE, SPARSE, NONE, INVERTED, OTHER):
        backend = make_backend(task.weights, ONE_CLIP.get(case, Strengths()))
        video = make_video(plan, 1, filmed["rgb"][0], wrong.get(case, right), noise, backend)
        scores[case] = fidelity(video[part], filmed["rgb"][part], filmed["dense"][part])
    return scores


def measure_scenes(task: Task, count: int, processes: int) -> Iterator[SceneResult]:
    """Every scene in order; the results do not depend on how many processes share the work."""
    if processes == 1:
        yield from (measure_scene(task, number) for number in range(count))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(measure_scene, task), range(count))
