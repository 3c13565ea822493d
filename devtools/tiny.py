"""LongVie-Tiny's place in this repository, and seeded-random weights of its size: what tests run on, on any CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from longvie_core.model.dual_control import torch_dual_control
from longvie_core.model.wan import WanModel
from longvie_core.training.tiny import TINY_BACKBONE, TINY_CONTROL, TINY_VAE_WIDTH

LONGVIE_TINY = Path(__file__).resolve().parent.parent / "models" / "longvie-tiny"
"""The trained model, in folders that are named as in ComfyUI's ``models``; the pack shows them to the host."""

BACKBONE_FILE = "diffusion_models/longvie_tiny.safetensors"
CONTROL_FILE = "model_patches/longvie_tiny_control.safetensors"
VAE_FILE = "vae/longvie_tiny_vae.safetensors"

SEED = 20261122

RANDOM_BACKBONE = "diffusion_models/random_tiny.safetensors"
RANDOM_CONTROL = "model_patches/random_tiny_control.safetensors"
RANDOM_VAE = "vae/random_tiny_vae.safetensors"

LOADERS: Mapping[str, tuple[str, str]] = {
    "UNETLoader": ("unet_name", RANDOM_BACKBONE),
    "LongVieLoadControl": ("file", RANDOM_CONTROL),
    "VAELoader": ("vae_name", RANDOM_VAE),
}
"""Class of a loader -> its input that names a file, and the file of random weights that goes there."""


def randomize(net: nn.Module, seed: int) -> nn.Module:
    """Fill every weight from one seeded generator, at a scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight")):
                value.copy_(1 + 0.1 * noise)
            elif value.ndim > 1:
                value.copy_(noise / math.sqrt(value[0].numel()))
            else:
                value.copy_(0.02 * noise)
    return net


def wan_vae(width: int) -> nn.Module:
    """The host's Wan 2.1 VAE at any width, as the host's loader builds it."""
    from devtools.inprocess import import_host

    import_host()
    import comfy.ldm.wan.vae

    return comfy.ldm.wan.vae.WanVAE(
        dim=width,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )


def write_tiny_weights(models: Path) -> dict[str, Path]:
    """Write random backbone, control network and VAE below a ComfyUI ``models`` folder, where they are not there yet."""
    nets = {
        RANDOM_BACKBONE: lambda: WanModel(TINY_BACKBONE),
        RANDOM_CONTROL: lambda: torch_dual_control(TINY_CONTROL),
        RANDOM_VAE: lambda: wan_vae(TINY_VAE_WIDTH),
    }
    paths = {file: models / file for file in nets}
    for seed, (file, make) in enumerate(nets.items(), start=SEED):
        if not paths[file].is_file():
            paths[file].parent.mkdir(parents=True, exist_ok=True)
            weights = randomize(make(), seed).state_dict()
            save_file({key: value.half().contiguous() for key, value in weights.items()}, paths[file])
    return paths


def load_random(workflow: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A workflow in API form, its loaders set in place to the random weights."""
    for node in workflow.values():
        if node["class_type"] in LOADERS:
            name, file = LOADERS[node["class_type"]]
            node["inputs"][name] = Path(file).name
    return workflow
