"""Which ComfyUI the tests run against, where nobody named one."""

from __future__ import annotations

import os
from pathlib import Path

PINNED = Path(__file__).resolve().parents[1] / ".host" / "ComfyUI-0.30.0"

os.environ.setdefault("COMFYUI_PATH", str(PINNED))
