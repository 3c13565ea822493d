"""The papers' four answers to drift, each switched off in turn, on held-out scenes whose true pictures are known.

Videos come from the real clip loop, without ComfyUI, in float32, on one thread a process; scenes are filmed as in training.
The exit code says whether it ran, not what came out. docs/ablation.md explains the measures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

from devtools.bench.ablation.make import FULL, VARIANTS, Weights, make_backend
from devtools.bench.ablation.measure import SHEET_SCENES, Task, measure_scenes
from devtools.bench.ablation.report import BY_SCENE, draw_sheet, summarise, tables
from longvie_core.model.dual_control import Strengths
from longvie_core.training.data.scenes import SceneSettings

FIRST_SEED = 10_000
"""First held-out scene; those of the training start at 100,000."""


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
    print(tables(summary))
    print(json.dumps({key: value for key, value in summary.items() if key != BY_SCENE}))
    return 0
