"""LongVie on an unmodified ComfyUI. Beside ``nodes/`` this is the only folder that imports the host."""

from ...model.clip import ModalityRange
from .conditioning import (
    DENSE,
    HISTORY,
    SPARSE,
    Conditioning,
    VaeCodec,
    empty_text,
    encode_clip_vision,
    encode_text,
    with_control,
    with_image,
)
from .host import require_host
from .patch import apply_control, check_fit, check_image_branch
from .sampler import ComfyBackend, MultimodalSampler, progress_over_clips
from .weights import apply_overlay, load_control

__all__ = [
    "DENSE",
    "HISTORY",
    "SPARSE",
    "ComfyBackend",
    "Conditioning",
    "ModalityRange",
    "MultimodalSampler",
    "VaeCodec",
    "apply_control",
    "apply_overlay",
    "check_fit",
    "check_image_branch",
    "empty_text",
    "encode_clip_vision",
    "encode_text",
    "load_control",
    "progress_over_clips",
    "require_host",
    "with_control",
    "with_image",
]
