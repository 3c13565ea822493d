"""Weight files without a GPU and without loading them whole: ``python -m longvie_core.checkpoint merge | convert``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .weights.convert import convert
from .weights.overlay import merge_overlay


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longvie_core.checkpoint", description="LongVie weight files.")
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="write a Wan backbone with LongVie's dit.safetensors merged in")
    merge.add_argument("base", type=Path, help="Wan2.1-I2V-14B backbone (.safetensors, not scaled fp8)")
    merge.add_argument("overlay", type=Path, help="LongVie's dit.safetensors")
    merge.add_argument("out", type=Path, help="file to write; put it under ComfyUI's models/diffusion_models")
    convert_command = commands.add_parser("convert", help="turn a Wan backbone or VAE into the diffusers layout, or back")
    convert_command.add_argument("source", type=Path, help="original .safetensors file, or a file or folder of diffusers")
    convert_command.add_argument("out", type=Path, help="folder to write (to diffusers), or .safetensors file (back)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "merge":
            count = merge_overlay(options.base, options.overlay, options.out)
            done = f"{count} self-attention tensors of {options.overlay.name} merged into {options.base.name}"
        else:
            done = convert(options.source, options.out)
    except (ValueError, OSError) as error:
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {done}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
