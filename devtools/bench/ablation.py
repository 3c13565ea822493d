"""The papers' four answers to drift, each switched off in turn, on held-out scenes whose true pictures are known.

Videos come from the real clip loop, without ComfyUI, in float32, on one thread a process; scenes are filmed as in training.
The exit code says whether it ran, not what came out. docs/ablation.md explains the measures.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image, ImageDraw
from torch import Tensor, nn

from devtools.tiny import BACKBONE_FILE, CONTROL_FILE, LONGVIE_TINY, VAE_FILE
from longvie_core.backends.diffusers.sampler import DiffusersBackend, SamplingSettings
from longvie_core.backends.diffusers.weights import load_backbone, load_control, load_vae
from longvie_core.bench.metrics import bootstrap_interval, colour_change, edge_agreement, seam_score, ssim
from longvie_core.control.normalize import normalize, to_uint8
from longvie_core.control.percentiles import PERCENTILES
from longvie_core.model.conditioning import pixels_from_uint8
from longvie_core.model.dual_control import DualControl, Strengths
from longvie_core.model.noise import UnifiedNoise
from longvie_core.model.schedule import flow_sigmas
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.loop import Carry, generate
from longvie_core.training.data.codec import WholeClipCodec
from longvie_core.training.data.scenes import SceneSettings, film
from longvie_core.training.tasks.pictures import psnr
from longvie_core.world.clips import clip_windows, scene_tracks
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene

WITHOUT_DEGRADATION = LONGVIE_TINY.with_name("longvie-tiny-ablation")
"""What the other training gave: a control network, and the backbone's self-attention as LongVie 2's third stage leaves it."""

FIRST_SEED = 10_000
"""First held-out scene; those of the training start at 100,000."""

STEPS = 8
ROLLED_OUT = 10
"""Scenes that the figures of drift and seam are asked of."""

SHEET_SCENES = 3
LABEL_WIDTH = 150

BY_SCENE = "by_scene"
"""Part of the summary that is written to a file, but too long to be printed."""

Scores = Mapping[str, float | list[float] | list[list[float]]]


# ---- what is compared


@dataclass(frozen=True)
class Metric:
    """A number for each video, and which way is better."""

    title: str
    higher_is_better: bool
    decimals: int = 2


METRICS = {
    "psnr": Metric("PSNR to the true rendering, dB", True),
    "ssim": Metric("SSIM to the true rendering", True, 3),
    "adherence": Metric("depth adherence (correlation of edges)", True, 3),
    "seam": Metric("seam score (jump at seams / median adjacent difference)", False),
    "drift": Metric("drift: PSNR of the first clip less that of the last, dB", False),
    "colour_drift": Metric("colour drift, grey levels", False),
    "contrast_drift": Metric("contrast drift, grey levels", False),
}


@dataclass(frozen=True)
class Variant:
    """One way to make the videos.

    Args:
        noise: :data:`longvie_core.model.noise.NOISE_MODES`.
        per_clip: normalise depth by each clip's own percentiles; the tracks' z follows, as it is read from the dense control.
        strengths: of the control streams.
        degradation: the network that was trained with it, or the other one.
        anchor: how later clips are held to the first one's colours; neither paper has it.
        papers: their figures, with this answer and without; empty where they have no such row.
        measured: those of our metrics that they report themselves; for the others their sign is that of the VBench dimensions.
    """

    noise: str = "unified"
    per_clip: bool = False
    strengths: Strengths = field(default_factory=Strengths)
    degradation: bool = True
    anchor: AnchorSettings = field(default_factory=AnchorSettings)
    papers: str = ""
    measured: tuple[str, ...] = ()


FULL, UNDEGRADED = "full", "trained without degradation"
VARIANTS = {
    FULL: Variant(),
    "independent noise": Variant(
        noise="per clip",
        papers="P1: S.C. 87.12 -> 86.63, B.C. 91.76 -> 91.59, A.Q. 55.31 -> 54.80, I.Q. 64.91 -> 64.84; "
        "P2: S.C. 91.05 -> 88.73, B.C. 92.45 -> 91.59, A.Q. 58.47 -> 57.80, I.Q. 69.77 -> 69.62",
    ),
    "per-clip normalisation": Variant(
        per_clip=True,
        papers="P1: S.C. 87.12 -> 86.39, B.C. 91.76 -> 91.41, A.Q. 55.31 -> 54.88, I.Q. 64.91 -> 64.81; "
        "P2: S.C. 91.05 -> 88.81, B.C. 92.45 -> 91.41, A.Q. 58.47 -> 57.73, I.Q. 69.77 -> 69.56",
    ),
    "dense only": Variant(
        strengths=Strengths(1, 0),
        papers="P1: SSIM .557 -> .508, LPIPS .290 -> .347, S.C. 87.12 -> 87.09, B.C. 91.76 -> 91.37",
        measured=("ssim",),
    ),
    "sparse only": Variant(strengths=Strengths(0, 1)),
    "no control": Variant(strengths=Strengths(0, 0)),
    "colour anchoring": Variant(anchor=AnchorSettings("pixels", 0.3)),
    UNDEGRADED: Variant(
        degradation=False, papers="P1: S.C. 87.12 -> 86.99, B.C. 91.76 -> 91.50, A.Q. 55.31 -> 53.95, I.Q. 64.91 -> 63.67"
    ),
}

BOTH, NONE, DENSE, SPARSE, INVERTED, OTHER = "both", "none", "dense", "sparse", "dense inverted", "another scene's"
ONE_CLIP = {DENSE: Strengths(1, 0), SPARSE: Strengths(0, 1), NONE: Strengths(0, 0)}
"""Strengths of the one-clip cases; 1 each where nothing is said."""


@dataclass(frozen=True)
class Weights:
    """Files of the networks; each also a diffusers folder where it is a backbone or VAE.

    Args:
        backbone, control, vae: the model; its control network was trained with degradation.
        overlay: self-attention that goes in place of the backbone's, if any.
        undegraded_control, undegraded_overlay: those of the training without degradation.
    """

    backbone: Path = LONGVIE_TINY / BACKBONE_FILE
    control: Path = LONGVIE_TINY / CONTROL_FILE
    vae: Path = LONGVIE_TINY / VAE_FILE
    overlay: Path | None = None
    undegraded_control: Path = WITHOUT_DEGRADATION / "control.safetensors"
    undegraded_overlay: Path | None = WITHOUT_DEGRADATION / "dit.safetensors"


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
        shown: row of the sheet -> uint8 [clips, H, W, 3].
        clips: clips that were generated.
        seconds: that took, encoding the controls included.
    """

    seed: int
    truth: Scores
    variants: Mapping[str, Scores]
    one_clip: Mapping[str, Scores]
    shown: Mapping[str, np.ndarray]
    clips: int
    seconds: float


# ---- networks


class SceneCodec(WholeClipCodec):
    """The VAE on whole clips; equal pictures are encoded once.

    Args:
        vae: a network of its own, its forward is changed.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae)
        self._known: dict[bytes, Tensor] = {}
        if torch.backends.mkldnn.is_available():
            # On one thread torch takes a five times slower convolution for a batch of one.
            for module in vae.modules():
                if isinstance(module, nn.Conv3d):
                    module._conv_forward = partial(_onednn_convolution, module)

    def forget(self) -> None:
        """Drop the encodings that are kept: those of the next scene are others."""
        self._known.clear()

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        key = sha256(pixels.numpy().tobytes()).digest()
        if key not in self._known:
            self._known[key] = super().encode_pixels(pixels)
        return self._known[key]

    def _decode(self, latents: Tensor) -> Tensor:
        return super()._decode(latents.contiguous(memory_format=torch.channels_last_3d))


def _onednn_convolution(conv: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)


@cache
def load_networks(backbone: Path, overlay: Path | None, control: Path) -> tuple[WanTransformer3DModel, DualControl]:
    """Backbone and control network, once a process."""
    return load_backbone(backbone, overlay), load_control(control)


@cache
def load_codec(path: Path) -> SceneCodec:
    """The VAE, once a process."""
    return SceneCodec(load_vae(path))


def make_backend(weights: Weights, strengths: Strengths, degradation: bool = True) -> DiffusersBackend:
    """The model as it was trained: a single zero token for a text, no guidance."""
    networks = (
        load_networks(weights.backbone, weights.overlay, weights.control)
        if degradation
        else load_networks(weights.backbone, weights.undegraded_overlay, weights.undegraded_control)
    )
    text = torch.zeros(1, 1, networks[0].config.text_dim)
    settings = SamplingSettings(flow_sigmas(STEPS), cfg=1, strengths=strengths)
    return DiffusersBackend(*networks, load_codec(weights.vae), settings, lambda _: (text, text))


# ---- scenes


@dataclass(frozen=True)
class Pictures:
    """:class:`~longvie_core.run.control_latents.ControlWindow`: control pictures in memory, uint8 [clips, T, H, W, 3]."""

    frames: np.ndarray

    def window(self, _plan: ClipPlan, clip: int) -> Iterable[np.ndarray]:
        return self.frames[clip]


@dataclass(frozen=True)
class Controls:
    """The two controls of a video."""

    dense: Pictures
    sparse: Pictures


def global_controls(plan: ClipPlan, filmed: Mapping[str, np.ndarray]) -> Controls:
    """Controls as :func:`longvie_core.training.data.scenes.film` made them."""
    return Controls(Pictures(np.stack(list(clip_windows(plan, iter(filmed["dense"]))))), Pictures(filmed["sparse"]))


def per_clip_controls(settings: SceneSettings, video: int) -> Controls:
    """The same video's controls by each clip's own percentiles, as a user of the nodes gets them.

    The scene is rendered once more, for its raw depth: :func:`longvie_core.training.data.scenes.film` keeps 8 bits of it.
    """
    plan, scene = settings.plan, make_scene(settings.first_seed + video)
    rate = settings.rate(video)
    rendered = render_frames(scene, plan.source_frames, rate, plan.width, plan.height, supersample=1)
    disparity = np.stack([frame.disparity for frame in rendered])
    windows = (disparity[slice(numbers.start, numbers.stop)] for numbers in map(plan.control_frames, range(plan.clips)))
    dense = [
        np.repeat(to_uint8(normalize(window, *np.percentile(window, PERCENTILES)))[..., None], 3, axis=-1) for window in windows
    ]
    sparse = [list(scene_tracks(scene, plan, clip, window, settings.track_grid, rate)) for clip, window in enumerate(dense)]
    return Controls(Pictures(np.stack(dense)), Pictures(np.array(sparse)))


def make_video(
    plan: ClipPlan,
    clips: int,
    first: np.ndarray,
    controls: Controls,
    noise: UnifiedNoise,
    backend: DiffusersBackend,
    anchor: AnchorSettings | None = None,
) -> np.ndarray:
    """The first ``clips`` clips by the real loop, stitched, each shared frame once: uint8 [T, H, W, 3].

    Args:
        first: the given first frame, uint8 [H, W, 3].
    """
    carry = Carry(first[None], first=True)
    results = generate(
        plan,
        range(clips),
        carry,
        controls.dense,
        controls.sparse,
        noise.for_clip,
        backend,
        backend.settings.history,
        anchor=anchor,
    )
    return np.concatenate([result.frames[plan.kept_frames(result.clip).start :] for result in results])


# ---- measuring


def new_frames(plan: ClipPlan, clip: int) -> slice:
    """Frames of the stitched video that clip ``clip`` adds; of the first clip all but the given one."""
    numbers = plan.control_frames(clip)
    return slice(numbers.start + 1, numbers.stop)


def fidelity(found: np.ndarray, truth: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """Scores of the frames of one clip: uint8 [T, H, W, 3], the same, and their depth control [T, H, W]."""
    seen, wanted = (torch.from_numpy(pixels_from_uint8(frames)) for frames in (found, truth))
    return {"psnr": psnr(seen, wanted), "ssim": ssim(found, truth), "adherence": edge_agreement(found, depth)}


def measure_video(plan: ClipPlan, found: np.ndarray, truth: np.ndarray, depth: np.ndarray) -> Scores:
    """Scores of a whole video, stitched as the truth is; ``depth`` is the right control, whichever the video was made with."""
    parts = [new_frames(plan, clip) for clip in range(plan.clips)]
    clips = [fidelity(found[part], truth[part], depth[part]) for part in parts]
    scores = {name: [clip[name] for clip in clips] for name in clips[0]}
    change, due = (colour_change(video[parts[0]], video[parts[-1]]) for video in (found, truth))
    colour, contrast = np.abs(change - due).mean(axis=1).tolist()
    return {
        **scores,
        "seam": seam_score(found, seams(plan)),
        "drift": scores["psnr"][0] - scores["psnr"][-1],
        "colour_drift": colour,
        "contrast_drift": contrast,
        "channel_changes": (change - due).tolist(),
    }


def seams(plan: ClipPlan) -> list[int]:
    """First frame of the stitched video that each clip after the first adds."""
    return [plan.stitched_frames(clips) for clips in range(1, plan.clips)]


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
    shown = {"truth": truth, "depth": np.repeat(depth[..., None], 3, axis=-1)}
    scores, spent = {}, 0.0
    for name in task.variants:
        variant = VARIANTS[name]
        controls = per_clip_controls(settings, number) if variant.per_clip else right
        begun = time.perf_counter()
        backend = make_backend(task.weights, variant.strengths, variant.degradation)
        noise = UnifiedNoise(seed, variant.noise)
        shown[name] = make_video(plan, plan.clips, truth[0], controls, noise, backend, variant.anchor)
        spent += time.perf_counter() - begun
        scores[name] = measure_video(plan, shown[name], truth, depth)
    begun = time.perf_counter()
    one_clip = measure_one_clip(task, number, filmed, right)
    spent += time.perf_counter() - begun
    lasts = [new_frames(plan, clip).stop - 1 for clip in range(plan.clips)]
    kept = {name: video[lasts] for name, video in shown.items()} if number < SHEET_SCENES else {}
    made = plan.clips * len(task.variants) + len(one_clip)
    return SceneResult(seed, measure_truth(plan, truth, depth), scores, one_clip, kept, made, spent)


def measure_one_clip(task: Task, number: int, filmed: Mapping[str, np.ndarray], right: Controls) -> dict[str, Scores]:
    """The first clip alone, with right and with wrong controls."""
    settings, plan = task.settings, task.settings.plan
    other = replace(settings, clips=1)
    given = {
        INVERTED: Controls(Pictures(255 - right.dense.frames[:1]), right.sparse),
        OTHER: global_controls(other.plan, film(other, number + 1)),
    }
    part, noise = new_frames(plan, 0), UnifiedNoise(settings.first_seed + number)
    scores = {}
    for case in (BOTH, DENSE, SPARSE, NONE, INVERTED, OTHER):
        backend = make_backend(task.weights, ONE_CLIP.get(case, Strengths()))
        video = make_video(plan, 1, filmed["rgb"][0], given.get(case, right), noise, backend)
        scores[case] = fidelity(video[part], filmed["rgb"][part], filmed["dense"][part])
    return scores


def measure_scenes(task: Task, count: int, processes: int) -> Iterator[SceneResult]:
    """Every scene in order; the results do not depend on how many processes share the work."""
    if processes == 1:
        yield from (measure_scene(task, number) for number in range(count))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(measure_scene, task), range(count))


# ---- what comes out


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over scenes, and the bootstrap interval of that mean."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], baseline: Sequence[float]) -> Difference:
        """Of ``values`` less ``baseline``, scene by scene."""
        paired = np.subtract(values, baseline)
        return cls(float(paired.mean()), *bootstrap_interval(paired))

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval leaves 0 out, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def verdict(difference: Difference, metric: Metric, claimed: bool) -> str:
    """Ours beside the papers', who say that switching an answer off makes a video worse."""
    if not claimed:
        return "-"
    worse = -1 if metric.higher_is_better else 1
    return {worse: "agree", -worse: "disagree", 0: "undecided"}[difference.sign]


def values_of(results: Sequence[SceneResult], of: Callable[[SceneResult], Scores], metric: str) -> list[float]:
    """A metric's value for each scene; the mean over the clips where there is one for each."""
    return [float(np.mean(of(result)[metric])) for result in results]


def compare(results: Sequence[SceneResult]) -> dict[str, dict]:
    """Variant -> metric -> its mean, the paired difference to the full method, and the verdict."""
    table = {}
    for name in results[0].variants:
        table[name] = {"papers": VARIANTS[name].papers}
        for key, metric in METRICS.items():
            values, full = (values_of(results, lambda one, name=name: one.variants[name], key) for name in (name, FULL))
            table[name][key] = {"mean": float(np.mean(values))}
            if name != FULL:
                less_full = Difference.of(values, full)
                claimed = bool(VARIANTS[name].papers)
                table[name][key] |= {"less_full": asdict(less_full), "verdict": verdict(less_full, metric, claimed)}
        for key in ("psnr", "ssim"):
            table[name][f"{key}_by_clip"] = np.mean([one.variants[name][key] for one in results], axis=0).tolist()
    return table


def compare_one_clip(results: Sequence[SceneResult]) -> dict[str, dict]:
    """Controls -> metric -> its mean, and the paired difference to both right controls."""
    table = {}
    for case in results[0].one_clip:
        table[case] = {}
        for key in results[0].one_clip[case]:
            values, both = (values_of(results, lambda one, case=case: one.one_clip[case], key) for case in (case, BOTH))
            table[case][key] = {"mean": float(np.mean(values))}
            if case != BOTH:
                table[case][key]["less_both"] = asdict(Difference.of(values, both))
    return table


def requirements(results: Sequence[SceneResult]) -> list[dict]:
    """The figures that the tiny model is asked for, and whether each is reached."""

    def one_clip(case: str, metric: str) -> list[float]:
        return values_of(results, lambda one: one.one_clip[case], metric)

    both, single = one_clip(BOTH, "psnr"), max((DENSE, SPARSE), key=lambda case: np.mean(one_clip(case, "psnr")))
    gain = Difference.of(both, one_clip(NONE, "psnr"))
    over_single = Difference.of(both, one_clip(single, "psnr"))
    inverted = Difference.of(one_clip(INVERTED, "psnr"), both)
    follows = float(np.mean(np.greater(one_clip(BOTH, "adherence"), one_clip(NONE, "adherence"))))
    rolled = results[:ROLLED_OUT]
    drift, seam = (float(np.mean(values_of(rolled, lambda one: one.variants[FULL], key))) for key in ("drift", "seam"))
    few, all_of_them = f"{len(rolled)} scenes", f"{len(results)} scenes"
    return [
        asked(f"one clip, {all_of_them}: PSNR over no control, dB", ">= 2", gain, gain.mean >= 2),
        asked(f"one clip: PSNR of both over {single} only, dB", "interval not below 0", over_single, over_single.low >= 0),
        asked("one clip: share of scenes with better depth adherence than no control", ">= 0.9", follows, follows >= 0.9),
        asked("one clip: PSNR of inverted depth less that of right depth, dB", "interval below 0", inverted, inverted.high < 0),
        asked(f"{few}: PSNR of the first clip less that of the last, dB", "<= 4", drift, drift <= 4),
        asked(f"{few}: seam score", "<= 2.5", seam, seam <= 2.5),
    ]


def asked(what: str, wanted: str, found: Difference | float, holds: bool) -> dict:
    """One required figure."""
    numbers = asdict(found) if isinstance(found, Difference) else {"mean": found}
    return {"what": what, "wanted": wanted, **numbers, "holds": bool(holds)}


def summarise(task: Task, results: Sequence[SceneResult]) -> dict:
    """Everything that was measured, as JSON takes it (what is not finite becomes null)."""
    truth = {key: float(np.mean(values_of(results, lambda one: one.truth, key))) for key in ("adherence", "seam")}
    seconds, clips = sum(one.seconds for one in results), sum(one.clips for one in results)
    return jsonable(
        {
            "scenes": [one.seed for one in results],
            "clips": task.settings.clips,
            "steps": STEPS,
            "must_hold": requirements(results),
            "truth": truth,
            "variants": compare(results),
            "one_clip": compare_one_clip(results),
            "ms_per_clip": 1000 * seconds / clips,
            BY_SCENE: [
                {"seed": one.seed, "truth": one.truth, "variants": one.variants, "one_clip": one.one_clip} for one in results
            ],
        }
    )


def jsonable(value: object) -> object:
    """Numbers rounded to 4 decimals, those that are not finite ``None``, in dicts and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


# ---- tables and pictures


def report(summary: Mapping) -> str:
    """The summary as tables to read."""
    papers = {name: row["papers"] for name, row in summary["variants"].items() if row["papers"]}
    return "\n".join(
        [
            f"{len(summary['scenes'])} scenes from seed {summary['scenes'][0]}, {summary['clips']} clips each, {STEPS} steps",
            *(line for key in METRICS for line in metric_table(summary, key)),
            "",
            "The first clip alone: mean, and paired difference to both right controls with its 95 % interval",
            *one_clip_table(summary["one_clip"]),
            "",
            "The papers' figures, with the answer -> without it",
            *(f"  {name}: {figures}" for name, figures in papers.items()),
            "  worse: they report the measure itself; (worse): they report VBench dimensions, which fall; -: they have no row",
            "",
            "What must hold",
            *map(must_hold_line, summary["must_hold"]),
            "",
            f"{summary['ms_per_clip']:.0f} ms a clip",
        ]
    )


def metric_table(summary: Mapping, key: str) -> Iterator[str]:
    """One metric of all variants: mean, paired difference to the full method with its interval, the papers' sign and ours."""
    metric, truth = METRICS[key], summary["truth"]
    reached = f"; the true rendering: {_number(truth[key], metric.decimals)}" if key in truth else ""
    yield ""
    yield f"{metric.title} ({'higher' if metric.higher_is_better else 'lower'} is better{reached})"
    yield f"  {'':<28}{'mean':>8}  {'less full [95 % interval]':<26}{'papers':<9}ours"
    for name, row in summary["variants"].items():
        mean = _number(row[key]["mean"], metric.decimals)
        if name == FULL:
            yield f"  {name:<28}{mean:>8}"
        else:
            difference = _interval(row[key]["less_full"], metric.decimals)
            yield f"  {name:<28}{mean:>8}  {difference:<26}{_papers(name, key):<9}{row[key]['verdict']}"


def one_clip_table(cases: Mapping) -> Iterator[str]:
    """A line for each kind of controls."""
    for case, row in cases.items():
        parts = []
        for key, one in row.items():
            decimals = METRICS[key].decimals
            difference = _interval(one["less_both"], decimals) if "less_both" in one else ""
            parts.append(f"{key} {_number(one['mean'], decimals)} {difference:<24}")
        yield f"  {case:<17}{'  '.join(parts).rstrip()}"


def must_hold_line(one: Mapping) -> str:
    """One required figure, and whether it is reached."""
    return f"  {'yes' if one['holds'] else 'NO':<4}{one['what']}: {_figure(one)}, asked: {one['wanted']}"


def _number(value: float | None, decimals: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{decimals}f}"


def _interval(difference: Mapping, decimals: int) -> str:
    mean, low, high = (_number(difference[key], decimals, "+") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _figure(one: Mapping) -> str:
    return _interval(one, 2) if "low" in one else _number(one["mean"], 2)


def _papers(name: str, key: str) -> str:
    variant = VARIANTS[name]
    return ("worse" if key in variant.measured else "(worse)") if variant.papers else "-"


def draw_sheet(results: Sequence[SceneResult]) -> Image.Image:
    """Truth, depth and every variant, one below the other, the last frame of each clip; the first scenes only."""
    rows = [(f"{result.seed}\n{name}", pictures) for result in results for name, pictures in result.shown.items()]
    clips, height, width = rows[0][1].shape[:3]
    sheet = Image.new("RGB", (LABEL_WIDTH + clips * width, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows):
        draw.text((4, number * height + 4), label, fill="black")
        sheet.paste(Image.fromarray(np.concatenate(list(pictures), axis=1)), (LABEL_WIDTH, number * height))
    return sheet


# ---- command line


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options; names of variants are checked here."""
    parser = argparse.ArgumentParser(prog="python dev.py bench ablation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help=f"scenes, from seed {FIRST_SEED} on")
    parser.add_argument("--clips", type=int, default=12, help="clips a video")
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help=f"of: {', '.join(VARIANTS)}; {FULL!r} is always made. By default all",
    )
    parser.add_argument("--processes", type=int, default=1, help="scenes at a time, a thread each")
    parser.add_argument("--sheet", type=Path, help=f"write the first {SHEET_SCENES} scenes' pictures here (png, jpg)")
    parser.add_argument("--out", type=Path, help="write the JSON here too, with every scene's own scores")
    for one in fields(Weights):
        optional = one.name.endswith("overlay")
        note = "self-attention in place of the backbone's, or 'none'" if optional else "file"
        kind = _optional_path if optional else Path
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=f"{note}; %(default)s")
    options = parser.parse_args(arguments)
    chosen = [name.strip() for name in options.variants.split(",")]
    unknown = set(chosen) - set(VARIANTS)
    if unknown:
        parser.error(f"no variant is called {min(unknown)!r}: choose of {', '.join(VARIANTS)}")
    if min(options.seeds, options.processes) < 1 or options.clips < 2:
        parser.error("give at least 1 seed, 1 process and 2 clips")
    options.variants = tuple(name for name in VARIANTS if name in {FULL, *chosen})
    return options


def _optional_path(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def main(arguments: list[str]) -> int:
    """Command line; prints the tables, and everything as JSON in the last line."""
    options = parse(arguments)
    weights = Weights(**{one.name: getattr(options, one.name) for one in fields(Weights)})
    task = Task(weights, SceneSettings(clips=options.clips, first_seed=FIRST_SEED), options.variants)
    try:
        for name in task.variants:
            make_backend(weights, Strengths(), VARIANTS[name].degradation)
    except (FileNotFoundError, ValueError) as error:
        print(f"{error}\nName other files with the options, or leave a variant out with --variants.", file=sys.stderr)
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    results, begun = [], time.perf_counter()
    for result in measure_scenes(task, options.seeds, options.processes):
        results.append(result)
        full = result.variants[FULL]
        line = f"PSNR {np.mean(full['psnr']):.2f} dB, drift {full['drift']:.2f} dB, seam {full['seam']:.2f} of the full method"
        where = f"scene {len(results)} of {options.seeds} (seed {result.seed})"
        print(f"{where}: {line}, {time.perf_counter() - begun:.0f} s so far", file=sys.stderr, flush=True)
    summary = summarise(task, results)
    if options.out:
        options.out.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    if options.sheet:
        draw_sheet(results).save(options.sheet)
    print(report(summary))
    print(json.dumps({key: value for key, value in summary.items() if key != BY_SCENE}))
    return 0
