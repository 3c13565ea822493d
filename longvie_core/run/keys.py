"""What a clip depends on, part by part: equal keys mean equal latents and pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..control.control import Control
from ..disk.fingerprints import text_sha256
from ..plan import ClipPlan


@dataclass(frozen=True)
class ClipKey:
    """What a clip depends on, part by part, so that a change can be named.

    Args:
        parts: part (such as ``"prompt"``) -> hash or short text.
    """

    parts: Mapping[str, str]

    def fingerprint(self, previous: str) -> str:
        """Hash of the parts and of the clip before (``""`` for the first)."""
        return text_sha256(json.dumps([previous, sorted(self.parts.items())], separators=(",", ":")))

    def changed(self, old: Mapping[str, str]) -> list[str]:
        """Names of the parts that differ."""
        return sorted(name for name in self.parts.keys() | old.keys() if self.parts.get(name) != old.get(name))


def clip_parts(
    plan: ClipPlan,
    clip: int,
    texts: tuple[str, str],
    seed_offset: int,
    dense: Control | None,
    sparse: Control | None,
    first_frame: np.ndarray,
) -> dict[str, str]:
    """Parts of a clip's key that do not depend on what renders it.

    Args:
        plan, clip: which frames.
        texts: positive and negative prompt of the clip.
        seed_offset: of the clip.
        dense, sparse: controls; ``None`` where the modality is absent.
        first_frame: uint8 [H, W, 3] of the whole video; only the first clip depends on it.
    """
    parts = {
        "plan": f"{plan.width}x{plan.height} {plan.frames} frames overlap {plan.overlap} at {plan.fps} fps",
        "frames taken": f"{plan.kept_frames(clip)}",
        "prompt": text_sha256(texts[0]),
        "negative prompt": text_sha256(texts[1]),
        "seed offset": str(seed_offset),
        "dense control": dense.digest(plan, clip) if dense else "none",
        "sparse control": sparse.digest(plan, clip) if sparse else "none",
    }
    if clip == 0:
        parts["first frame"] = hashlib.sha256(first_frame).hexdigest()
    return parts
