"""What the scores of all scenes say: paired differences with intervals, verdicts, tables, a sheet of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageDraw

from devtools.bench.ablation.make import (
    FULL,
    STEPS,
    VARIANTS,
)
from devtools.bench.ablation.measure import (
    BOTH,
    DENSE,
    INVERTED,
    NONE,
    SPARSE,
    SceneResult,
    Scores,
    Task,
)
from longvie_core.bench.metrics import bootstrap_interval

BY_SCENE = "by_scene"
"""Part of the summary that is written to a file, but too long to be printed."""

ROLLED_OUT = 10
"""Scenes that the figures of drift and seam are asked of."""

LABEL_WIDTH = 150
"""Pixels to the left of the sheet's pictures."""


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
        requirement(f"one clip, {all_of_them}: PSNR over no control, dB", ">= 2", gain, gain.mean >= 2),
        requirement(
            f"one clip: PSNR of both over {single} only, dB", "interval not below 0", over_single, over_single.low >= 0
        ),
        requirement("one clip: share of scenes with better depth adherence than no control", ">= 0.9", follows, follows >= 0.9),
        requirement(
            "one clip: PSNR of inverted depth less that of right depth, dB", "interval below 0", inverted, inverted.high < 0
        ),
        requirement(f"{few}: PSNR of the first clip less that of the last, dB", "<= 4", drift, drift <= 4),
        requirement(f"{few}: seam score", "<= 2.5", seam, seam <= 2.5),
    ]


def requirement(what: str, wanted: str, figure: Difference | float, holds: bool) -> dict:
    """One required figure, what is wanted of it in words, and whether it holds."""
    numbers = asdict(figure) if isinstance(figure, Difference) else {"mean": figure}
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


def tables(summary: Mapping) -> str:
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
    rows = [(f"{result.seed}\n{name}", pictures) for result in results for name, pictures in result.pictures.items()]
    clips, height, width = rows[0][1].shape[:3]
    sheet = Image.new("RGB", (LABEL_WIDTH + clips * width, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows):
        draw.text((4, number * height + 4), label, fill="black")
        sheet.paste(Image.fromarray(np.concatenate(list(pictures), axis=1)), (LABEL_WIDTH, number * height))
    return sheet
