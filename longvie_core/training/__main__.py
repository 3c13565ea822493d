"""``python -m longvie_core.training prepare | train``: from videos to a trained control network; see ``docs/training.md``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ..backends.processes import DTYPES, process_group
from ..media.footage import FITS
from .overrides import override
from .prepare import prepare
from .stages import STAGES
from .train import train_stage


def positive(text: str) -> int:
    """A number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def setting(text: str) -> tuple[str, object]:
    """``first_frame.probability=0.3`` -> its name and its value, which is a text where it is no JSON."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parser() -> argparse.ArgumentParser:
    """The options of both commands."""
    root = argparse.ArgumentParser(prog="python -m longvie_core.training", description="Train LongVie.")
    commands = root.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("prepare", "make controls and latents"),
        ("train", "train one stage; goes on where it stopped"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("stage", choices=list(STAGES))
        if name == "train":  # no --run, which torchrun would take for its own
            command.add_argument("run", type=Path, help="folder for checkpoints, log, sheets and the result")
        command.add_argument("--clips", type=Path, required=True, help="folder of videos, or of rendered scenes")
        command.add_argument("--held-out", type=Path, required=True, help="the same, for the sheets")
        command.add_argument("--cache", type=Path, required=True, help="where controls, texts and latents are kept")
        command.add_argument("--vae", type=Path, required=True, help="Wan 2.1 VAE: original file or diffusers folder")
        command.add_argument("--backbone", type=Path, help="pretrained Wan backbone; without it tiny-joint starts from nothing")
        command.add_argument("--overlay", type=Path, help="dit.safetensors to start from")
        command.add_argument("--control", type=Path, help="control.safetensors to start from; half-width weights without it")
        command.add_argument("--text-encoder", type=Path, help="local folder of umT5; without it no text")
        command.add_argument("--image-encoder", type=Path, help="local folder of CLIP vision, where the backbone needs it")
        command.add_argument("--videos", type=int, help="how many rendered scenes, from the first")
        command.add_argument("--mirrored", action="store_true", help="rendered scenes once more with left and right swapped")
        command.add_argument("--width", type=int, default=640)
        command.add_argument("--height", type=int, default=352)
        command.add_argument("--frames", type=int, default=81, help="a clip, 4n+1")
        command.add_argument("--fps", type=Fraction, default=Fraction(16))
        command.add_argument("--fit", choices=FITS, default="crop")
        command.add_argument("--depth", type=Path, help="local depth checkpoint of transformers; without it by parallax")
        command.add_argument("--grid", type=int, default=50, help="tracked points a side")
        command.add_argument(
            "--precision", choices=list(DTYPES), default="bfloat16", help="of the weights that are not trained"
        )
        command.add_argument("--device", help="of this process; by default its own GPU, or the CPU where there is none")
        command.add_argument(
            "--set",
            type=setting,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="a setting of the stage, as training.steps=500",
        )
        if name == "prepare":
            command.add_argument("--batch", type=positive, help="clips at once; by default as many as suit the device")
            command.add_argument("--workers", type=int, default=0, help="processes that read clips ahead (not on Windows)")
        if name == "train":
            command.add_argument("--stop-after", type=int, help="leave off after so many steps")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        stage = override(STAGES[options.stage], dict(options.set))
        with process_group() as state:
            options.device = options.device or str(state.device)
            {"prepare": prepare, "train": train_stage}[options.command](options, stage)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
