"""The main job end to end: a headless ComfyUI, LongVie-Tiny's workflow queued over HTTP, a playable video out.

``python dev.py demo`` films a procedural scene for its controls; ``--clips FOLDER`` takes control clips in the authors' layout.
``--film FOLDER`` only films: give a folder below ComfyUI's ``input`` to queue the workflow there.
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
from longvie_core.control.clips_folder import load_clips_folder
from longvie_core.media.probe import probe
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.scene import make_scene

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / ".host" / "longvie-tiny"
WORKFLOW = ROOT / "workflows" / "api" / "longvie_tiny_from_control_clips.json"

# A scene as LongVie-Tiny's training has filmed them (longvie_core/training/scenes.py), but none that it was trained on.
SCENE = 10_003
WIDTH, HEIGHT, FRAMES, FPS = 96, 64, 17, Fraction(16)
GRID = TrackGrid(8, 8)
SPEED = 3
"""Seconds of the scene in one second of video."""

OF_A_SCENE = """\
LongVie-Tiny made it from the first frame, the depth and the point tracks of a rendered scene that is not among those it was
trained on. The camera and the things should move as the depth and the tracks say; fine detail is lost at this size."""
OF_OTHER_CLIPS = """\
LongVie-Tiny made it. It has seen nothing but rendered scenes, at 96x64 and in clips of 17 frames: of other controls expect the
motion, not a likeness."""


def scene_plan(clips: int) -> ClipPlan:
    """How so many clips of a scene are cut."""
    return ClipPlan(WIDTH, HEIGHT, FRAMES, FPS, source_frames=1 + (FRAMES - 1) * clips)


def film_scene(folder: Path, seed: int, clips: int) -> None:
    """Write control clips of a procedural scene, filmed as in training; made once."""
    if not (folder / "cond.json").is_file():
        print(f"filming procedural scene {seed}: {clips} control clips of {FRAMES} frames …", flush=True)
        write_scene_clips(folder, make_scene(seed), scene_plan(clips), GRID, SPEED)


def controls_for(options: argparse.Namespace) -> Path:
    """The folder of control clips, in the host's input folder.

    Raises:
        FileNotFoundError, ValueError: the clips that were given cannot be used.
    """
    if options.clips:
        return bring_clips(options.clips)
    folder = BASE / "input" / f"scene_{options.scene}_{options.count}_clips"
    film_scene(folder, options.scene, options.count)
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
        self.steps = 0
        self.shown = -1

    def __call__(self, kind: str, data: Any) -> None:
        if kind != "progress" or data["node"] != self.loop:
            return
        self.steps, total = data["value"], data["max"]
        elapsed = time.monotonic() - self.started
        text = f"sampling step {self.steps} of {total}, {elapsed:.0f} s"
        if sys.stdout.isatty():
            print(f"\r{text}   ", end="" if self.steps < total else "\n", flush=True)
        elif self.steps * 10 // total > self.shown:
            self.shown = self.steps * 10 // total
            print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__)
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="control clips in the authors' layout (cond.json ...)")
    parser.add_argument("--out", type=Path, default=Path("longvie_demo.mp4"), help="video to write (longvie_demo.mp4)")
    parser.add_argument("--scene", type=int, default=SCENE, help=f"seed of the procedural scene, without --clips ({SCENE})")
    parser.add_argument("--count", type=int, default=12, help="clips of the procedural scene (12)")
    parser.add_argument("--film", type=Path, metavar="FOLDER", help="only film the scene's control clips into this folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the unified noise (0)")
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".mp4":
        parser.error(f"--out {options.out}: the video needs a name that ends in .mp4")
    if options.film:
        film_scene(options.film, options.scene, options.count)
        print(f"{options.film}: control clips for {WORKFLOW.stem}")
        return 0
    started = time.monotonic()
    try:
        folder = controls_for(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"the control clips cannot be used: {error}", file=sys.stderr)
        return 1
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    run_name = f"{folder.name}_seed_{options.seed}"
    prompt = fill_workflow(workflow, folder, run_name, options.seed)
    progress = Progress(next(node for node, value in prompt.items() if value["class_type"] == "LongVieClipLoop"))
    print("starting ComfyUI …", flush=True)
    try:
        with Host(comfyui=Path(os.environ["COMFYUI_PATH"]), base=BASE, pack=ROOT) as host:
            print(f"ComfyUI is up; queueing {WORKFLOW.name}", flush=True)
            result = host.run(prompt, on_event=progress, timeout=3600)
    except (HostError, PromptRejected) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    if result.status != "success":
        what = f"{result.error.node_type}: {result.error.exception_message}" if result.error else result.status
        print(f"demo failed: {what}\nlog: {BASE / 'host.log'}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    run = BASE / "output" / "longvie" / run_name
    (shown,) = result.outputs[progress.loop]["images"]
    shutil.copyfile(run / shown["filename"], options.out)
    info = probe(options.out)
    made = f"made in {time.monotonic() - started:.0f} s" if progress.steps else f"made before: {run} has all its clips"
    print(
        f"{options.out}: {info.frames} frames, {info.width}x{info.height}, {float(info.frames / info.fps):.1f} s of video, "
        f"{made}\n{OF_OTHER_CLIPS if options.clips else OF_A_SCENE}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
