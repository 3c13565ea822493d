"""The main job end to end: a headless ComfyUI, the tiny workflow queued over HTTP, a playable video out.

``python dev.py demo`` films a procedural scene for its controls; ``--clips FOLDER`` takes control clips in the authors' layout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from devtools.host import Host, HostError, PromptRejected
from devtools.tiny import write_tiny_weights
from longvie_core.clips import ClipPlan
from longvie_core.control.signal import load_clips_folder
from longvie_core.video import probe
from longvie_core.world import make_scene
from longvie_core.world_clips import TrackGrid, write_scene_clips

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / ".host" / "demo"
WORKFLOW = ROOT / "workflows" / "api" / "longvie_tiny_from_control_clips.json"
WIDTH, HEIGHT, FRAMES = 96, 64, 17
SCENE_GRID = TrackGrid(12, 8)
SCENE_SPEED = 3.0
"""At 96x64 a clip of 17 frames is so short that the scene has to move faster to show anything."""


def film_scene(seed: int, clips: int) -> Path:
    """Control clips of a procedural scene, in the host's input folder; made once."""
    folder = BASE / "input" / f"scene_{seed}_{clips}_clips"
    if not (folder / "cond.json").is_file():
        print(f"filming procedural scene {seed}: {clips} control clips of {FRAMES} frames …", flush=True)
        plan = ClipPlan(WIDTH, HEIGHT, FRAMES, Fraction(16), source_frames=1 + (FRAMES - 1) * clips)
        write_scene_clips(folder, make_scene(seed), plan, SCENE_GRID, SCENE_SPEED)
    return folder


def bring_clips(source: Path) -> Path:
    """Copy a folder in the authors' layout into the host's input folder, where ComfyUI may read it."""
    load_clips_folder(source)
    folder = BASE / "input" / source.resolve().name
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def fill_workflow(workflow: dict, folder: Path, run_name: str, seed: int) -> dict:
    """The workflow with this folder, run name and seed in place."""
    values = {
        "LongVieLoadClips": {"folder": folder.name},
        "LongVieClipLoop": {"run_name": run_name},
        "LongVieUnifiedNoise": {"seed": seed},
    }
    for node in workflow.values():
        node["inputs"].update(values.get(node["class_type"], {}))
    return workflow


class Progress:
    """Prints the loop's progress, one line that is rewritten on a terminal and a line per tenth elsewhere."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self.started = time.monotonic()
        self.shown = -1

    def __call__(self, kind: str, data: Any) -> None:
        if kind != "progress" or data["node"] != self.loop:
            return
        value, total = data["value"], data["max"]
        elapsed = time.monotonic() - self.started
        text = f"sampling step {value} of {total}, {elapsed:.0f} s"
        if sys.stdout.isatty():
            print(f"\r{text}   ", end="" if value < total else "\n", flush=True)
        elif value * 10 // total > self.shown:
            self.shown = value * 10 // total
            print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__)
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="control clips in the authors' layout (cond.json ...)")
    parser.add_argument("--out", type=Path, default=Path("longvie_demo.mp4"), help="video to write (longvie_demo.mp4)")
    parser.add_argument("--scene", type=int, default=10, help="seed of the procedural scene, without --clips")
    parser.add_argument("--count", type=int, default=12, help="clips of the procedural scene")
    parser.add_argument("--seed", type=int, default=0, help="seed of the unified noise")
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".mp4":
        parser.error(f"--out {options.out}: the video needs a name that ends in .mp4")
    started = time.monotonic()
    try:
        folder = bring_clips(options.clips) if options.clips else film_scene(options.scene, options.count)
    except (ValueError, FileNotFoundError) as error:
        print(f"the control clips cannot be used: {error}", file=sys.stderr)
        return 1
    write_tiny_weights(BASE / "models")
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    run_name = f"{folder.name}_seed_{options.seed}"
    prompt = fill_workflow(workflow, folder, run_name, options.seed)
    loop = next(node for node, value in prompt.items() if value["class_type"] == "LongVieClipLoop")
    print("starting ComfyUI …", flush=True)
    try:
        with Host(comfyui=Path(os.environ["COMFYUI_PATH"]), base=BASE, pack=ROOT) as host:
            print(f"ComfyUI is up; queueing {WORKFLOW.name}", flush=True)
            result = host.run(prompt, on_event=Progress(loop), timeout=3600)
    except (HostError, PromptRejected) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    if result.status != "success":
        what = f"{result.error.node_type}: {result.error.exception_message}" if result.error else result.status
        print(f"demo failed: {what}\nlog: {BASE / 'host.log'}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(BASE / "output" / "longvie" / run_name / "video.mp4", options.out)
    info = probe(options.out)
    print(
        f"{options.out}: {info.frames} frames, {info.width}x{info.height}, {float(info.frames / info.fps):.1f} s of video, "
        f"made in {time.monotonic() - started:.0f} s\n"
        "The tiny weights are seeded random numbers, not trained yet: the video shows the machinery at work, not a picture."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
