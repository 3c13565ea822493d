"""The list of nodes that this pack adds to the host."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from ..longvie_core.backends.comfy.host import require_host
from .assemble import LongVieAssemble
from .controls import LongVieControlFromVideo, LongVieControlPreview, LongVieLoadClips
from .depth import LongVieDepthControl
from .guard import guard
from .loop import LongVieClipLoop
from .model import LongVieApplyControl, LongVieAttentionOverlay, LongVieLoadControl
from .noise import LongVieUnifiedNoise
from .normalize import LongVieGlobalNormalize
from .plan import LongVieClipPlan
from .prompts import LongViePromptSchedule
from .sampler import LongVieMultimodalSampler, LongVieSampleClip, LongVieSigmas
from .tracks import LongVieTrackControl

NODES: list[type[io.ComfyNode]] = [
    LongVieClipPlan,
    LongVieLoadClips,
    LongVieControlFromVideo,
    LongVieDepthControl,
    LongVieGlobalNormalize,
    LongVieTrackControl,
    LongVieControlPreview,
    LongVieUnifiedNoise,
    LongVieSigmas,
    LongViePromptSchedule,
    LongVieLoadControl,
    LongVieAttentionOverlay,
    LongVieApplyControl,
    LongVieMultimodalSampler,
    LongVieSampleClip,
    LongVieClipLoop,
    LongVieAssemble,
]

LONGVIE_TINY = Path(__file__).resolve().parent.parent / "models" / "longvie-tiny"
"""The trained model that comes with the pack."""


def register_longvie_tiny() -> None:
    """Let the host's loaders list LongVie-Tiny, behind the folders that it has already."""
    for kind in ("diffusion_models", "vae", "model_patches"):
        folder_paths.add_model_folder_path(kind, str(LONGVIE_TINY / kind))


class LongVieExtension(ComfyExtension):
    """What the host asks for when it loads the pack."""

    async def on_load(self) -> None:
        require_host()
        register_longvie_tiny()
        for node in NODES:
            guard(node)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LongVieExtension:
    """Called by the host."""
    return LongVieExtension()
