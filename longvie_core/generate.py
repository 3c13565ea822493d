"""A whole video without ComfyUI: ``python -m longvie_core.generate RUN --backbone ... --vae ... --control ... --clips FOLDER``.

The run is kept on disk as ComfyUI's loop keeps it (:mod:`longvie_core.run.store`), so that the same command goes on where it
stopped. Under ``torchrun`` all processes sample one clip together; the first alone writes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image, UnidentifiedImageError

from .backends.processes import DTYPES, gpu_count, process_group
from .control.check import check_controls
from .control.clips_folder import load_clips_folder
from .control.control import Control
from .control.normalize import write_control
from .control.raw_depth import KINDS, RawDepth
from .disk.fingerprints import files_fingerprint, text_sha256
from .disk.seal import is_sealed, seal
from .finite import finite
from .media.read import stretch
from .model.clip import HistorySettings
from .model.dual_control import Strengths
from .model.noise import NOISE_MODES, UnifiedNoise
from .model.schedule import SHIFT, STEPS
from .plan import TAIL_RULES, ClipPlan
from .run.colour_anchor import ANCHOR_SPACES, AnchorSettings
from .run.diffusers_networks import (
    DiffusersNetworks,
    ModelFiles,
    Sampling,
    is_first_process,
    processes,
    sample_along,
)
from .run.job import Job, LoopSettings, Script
from .run.prompts import REFERENCE_NEGATIVE, ClipPrompt, PromptSchedule, parse_prompts
from .run.render import render
from .run.store import Run


@contextmanager
def own_device() -> Iterator[str]:
    """Join the other processes of ``torchrun``, if any; gives the device of this one.

    Raises:
        ValueError: several processes without a GPU for each.
    """
    local, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpus = gpu_count()
    if world == 1:
        yield "cuda" if gpus else "cpu"
        return
    if local >= gpus:
        raise ValueError(f"{world} processes were started, but this machine has {gpus} GPUs: start one for each GPU")
    with process_group() as state:
        yield str(state.device)


def script_of(options: argparse.Namespace) -> Script:
    """The video that the command line describes.

    Raises:
        FileNotFoundError, ValueError: naming the file or option that is missing or wrong.
    """
    videos = {"--dense": options.dense, "--raw-depth": options.raw_depth, "--sparse": options.sparse}
    given = [name for name, path in videos.items() if path is not None]
    if options.clips is not None and given:
        raise ValueError(f"--clips brings its own controls: leave out {', '.join(given)}, or --clips")
    folder = None if options.clips is None else load_clips_folder(options.clips)
    frames = folder.dense.frames if folder else options.frames
    plan = ClipPlan(
        options.width, options.height, frames, options.fps, options.overlap, options.tail, source_frames=options.source_frames
    )
    dense = folder.dense if folder else _dense(options, plan)
    sparse = folder.sparse if folder else None
    if options.sparse is not None:
        sparse = Control.from_video(options.sparse, "sparse")
    plan = check_controls(plan, dense, sparse)
    first = options.first_frame or (folder.first_frame if folder else None)
    if first is None:
        raise ValueError("no first frame is given: name a picture with --first-frame, or a folder with --clips")
    texts = folder.prompts if folder else [""]
    prompts = parse_prompts(_text_of(options.prompts)) if options.prompts else tuple(ClipPrompt(text) for text in texts)
    return Script(plan, dense, sparse, read_picture(first, plan), PromptSchedule(prompts, options.negative))


def _dense(options: argparse.Namespace, plan: ClipPlan) -> Control | None:
    """The dense control: a finished video, or raw depth normalised over the whole video (P1) into the run's folder."""
    if options.raw_depth is None:
        return None if options.dense is None else Control.from_video(options.dense, "dense")
    raw_depth = open_raw_depth(options.raw_depth, options.raw_depth_kind, plan.fps)
    made_from = json.dumps([files_fingerprint(options.raw_depth), raw_depth.kind, str(plan)])
    path = options.run / f"dense_{text_sha256(made_from)[:16]}.mkv"
    if is_first_process() and not is_sealed(path, options.run):
        options.run.mkdir(parents=True, exist_ok=True)
        write_control(raw_depth, plan, path)
        seal(path, options.run)
    if processes() > 1:
        dist.barrier()
    return Control.from_video(path, "dense")


def open_raw_depth(path: Path, kind: str, fps: Fraction) -> RawDepth:
    """Raw depth from a ``.npy`` of float32 [frames, height, width].

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file: {error}") from error
    if len(shape) != 3:
        raise ValueError(f"{path} has the shape {list(shape)}: raw depth is [frames, height, width]")
    frames, height, width = shape
    return RawDepth(path, kind, frames, height, width, fps)


def read_picture(path: Path, plan: ClipPlan) -> np.ndarray:
    """A picture file -> uint8 [height, width, 3], stretched as the reference does."""
    try:
        with Image.open(path) as picture:
            return stretch(np.array(picture.convert("RGB")), (plan.width, plan.height))
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error})") from error


def _number(text: str) -> float:
    try:
        finite(number=float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number such as 0.5") from error
    return float(text)


def _fraction(text: str) -> Fraction:
    # Checked before it is read: Fraction would work out "1e999999999" to the last digit.
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}|/0*[1-9][0-9]{0,8})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate such as 16 or 24000/1001")
    return Fraction(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m longvie_core.generate", description="Generate a long video clip by clip, without ComfyUI."
    )
    parser.add_argument("run", type=Path, help="folder that keeps the run; the same one goes on where it stopped")
    add = parser.add_argument_group("networks (local files; nothing is downloaded)").add_argument
    add("--backbone", type=Path, required=True, help="Wan2.1-I2V-14B: original .safetensors, or a diffusers folder")
    add("--vae", type=Path, required=True, help="Wan 2.1 VAE: original .safetensors, or a diffusers folder")
    add("--control", type=Path, required=True, help="LongVie's control.safetensors")
    add("--overlay", type=Path, help="LongVie's dit.safetensors")
    add("--text-encoder", type=Path, help="folder with umt5-xxl and its tokenizer, or a diffusers pipeline; none = no text")
    add("--image-encoder", type=Path, help="folder with CLIP ViT-H, or a diffusers pipeline; for backbones that want it")
    add = parser.add_argument_group("what the video shows").add_argument
    add("--clips", type=Path, help="folder in the authors' layout (cond.json, depth_XX.mp4, track_XX.mp4, first.png)")
    depth = parser.add_mutually_exclusive_group().add_argument
    depth("--dense", type=Path, help="instead: one control video of depth, near = black")
    depth("--raw-depth", type=Path, help="instead: raw depth, .npy of float32 [frames, height, width], normalised here")
    add("--raw-depth-kind", choices=KINDS, default=KINDS[0], help="what its numbers are (%(default)s: larger = nearer)")
    add("--sparse", type=Path, help="one control video of tracks")
    add("--first-frame", type=Path, help="picture that the video starts from, stretched to the size (with --clips: first.png)")
    add("--prompts", type=Path, help="text file: one prompt a line, a line a clip; or a JSON list, also for strengths")
    add("--negative", default=REFERENCE_NEGATIVE, help="negative prompt (Wan's own)")
    add = parser.add_argument_group("clips").add_argument
    add("--width", type=int, default=640)
    add("--height", type=int, default=352)
    add("--frames", type=int, default=81, help="frames a clip, 4n+1 (%(default)s; with --clips as many as its videos have)")
    add("--fps", type=_fraction, default=Fraction(16))
    add("--overlap", type=int, default=1, help="frames that neighbouring clips share (%(default)s)")
    add("--tail", choices=TAIL_RULES, default=TAIL_RULES[0], help="what becomes of frames that fill no whole clip")
    add("--source-frames", type=int, default=0, help="use only so many control frames (0 = all)")
    add("--only", default="", metavar="RANGE", help="clips to render, counted from 1: 3, 3-5, 4- (all)")
    add("--pause-after", type=int, default=0, metavar="N", help="render at most so many clips, then stop (0 = do not pause)")
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=int, default=STEPS)
    add("--shift", type=_number, default=SHIFT)
    add("--cfg", type=_number, default=5.0, help="guidance scale; 1 = none, at half the time")
    add("--seed", type=int, default=0)
    add("--noise", choices=NOISE_MODES, default=NOISE_MODES[0])
    add("--dense-strength", type=_number, default=1.0)
    add("--sparse-strength", type=_number, default=1.0)
    add("--history-frames", type=int, default=HistorySettings().frames)
    add("--first-frame-sigma", type=_number, default=HistorySettings().first_frame_sigma)
    add(
        "--anchor",
        choices=ANCHOR_SPACES,
        default=ANCHOR_SPACES[0],
        help="hold later clips to the first one's colours (%(default)s)",
    )
    add("--anchor-strength", type=_number, default=0.0, help="how strongly: 0 = not at all, 1 = fully")
    add("--dtype", choices=DTYPES, help="of the networks (bfloat16 on a GPU, float32 on a CPU); the VAE stays in float32")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    models = ModelFiles(**{name: getattr(options, name) for name in ModelFiles.__dataclass_fields__})
    try:
        with own_device() as device:
            history = HistorySettings(options.history_frames, options.first_frame_sigma)
            anchor = AnchorSettings(options.anchor, options.anchor_strength)
            loop = LoopSettings(UnifiedNoise(options.seed, options.noise), history, anchor)
            sampling = Sampling(
                steps=options.steps,
                shift=options.shift,
                cfg=options.cfg,
                strengths=Strengths(options.dense_strength, options.sparse_strength),
                first_frame_sigma=history.first_frame_sigma,
                dtype=options.dtype or ("float32" if device == "cpu" else "bfloat16"),
                device=device,
            )
            job = Job(script_of(options), loop, options.only, options.pause_after)
            networks = DiffusersNetworks(models, sampling, options.run / "control_latents")
            if is_first_process():
                rendered = render(Run(options.run), job, networks, print)
                print(*rendered.closing, rendered.video, sep="\n")
            else:
                sample_along(options.run, job, networks)
    except (ValueError, OSError) as error:
        print(f"generate failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
