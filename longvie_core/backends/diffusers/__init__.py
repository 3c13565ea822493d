"""LongVie on diffusers' own Wan classes: training, generation without ComfyUI, several GPUs."""

from .encoders import ImageEncoder, TextEncoder, VaeCodec
from .forward import velocity
from .parallel import enable_context_parallel
from .sampler import DiffusersBackend, SamplingSettings
from .weights import load_backbone, load_control, load_vae

__all__ = [
    "DiffusersBackend",
    "ImageEncoder",
    "SamplingSettings",
    "TextEncoder",
    "VaeCodec",
    "enable_context_parallel",
    "load_backbone",
    "load_control",
    "load_vae",
    "velocity",
]
