"""Which ComfyUI this is, and whether it has the hooks that the backend stands on."""

from __future__ import annotations

import comfyui_version

MINIMUM_HOST = (0, 30, 0)
"""First ComfyUI whose Wan model calls post-block ``double_block`` patches."""


def require_host() -> None:
    """Refuse a host without the hooks that this file stands on.

    Raises:
        RuntimeError: naming the version found and the version needed.
    """
    found = tuple(int(part) for part in comfyui_version.__version__.split(".")[:3])
    if found < MINIMUM_HOST:
        raise RuntimeError(
            f"LongVie needs ComfyUI {'.'.join(map(str, MINIMUM_HOST))} or newer (the Wan post-block hook); "
            f"this is {comfyui_version.__version__}: update ComfyUI"
        )
