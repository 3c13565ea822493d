"""Where the tests find what is not theirs: the repository, the host, recorded tensors of the reference, examples."""

from __future__ import annotations

import os
from pathlib import Path

import dev

ROOT = dev.ROOT
"""The repository."""

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or dev.HOST)
"""The ComfyUI to test with: the one that COMFYUI_PATH names, else the one that dev.py fetches."""

NO_COMFYUI = f"there is no ComfyUI at {COMFYUI}: run 'python dev.py test' once, or name one in COMFYUI_PATH"

RECORDED = ROOT / "tests" / "parity" / "data"
"""Tensors of the reference implementation that are small enough to lie in the repository."""

SHARED = ROOT.parent / "shared"
"""Beside the repository, where somebody has put them there: ``golden``, all of the reference's tensors, and ``examples``."""


def comfyui_is_there() -> bool:
    """Whether :data:`COMFYUI` is a ComfyUI folder."""
    return (COMFYUI / "main.py").is_file()
