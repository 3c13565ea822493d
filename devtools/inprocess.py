"""ComfyUI imported into this process, on the CPU: for parity and benchmarks that need its model classes, not its server."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def import_host() -> None:
    """Put the host (``COMFYUI_PATH``) on the path and switch it to the CPU; later ``import comfy...`` is the real one.

    Raises:
        SystemExit: no host named.
    """
    if "comfy.cli_args" in sys.modules:
        return
    host = os.environ.get("COMFYUI_PATH")
    if not host or not (Path(host) / "main.py").is_file():
        raise SystemExit("COMFYUI_PATH does not name a ComfyUI folder: run this through dev.py")
    sys.path.insert(0, host)
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args
    finally:
        sys.argv = arguments
    args.cpu = True
    args.use_pytorch_cross_attention = True
