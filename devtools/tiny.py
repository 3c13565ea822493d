"""Tiny seeded-random weights in the real layouts: what tests and the demo run on, on any CPU."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from longvie_core.dual_control import DualControlConfig, torch_dual_control
from longvie_core.wan import WanConfig, WanModel

BACKBONE = WanConfig(dim=256, ffn_dim=768, num_heads=2, num_layers=4, has_image_input=False)
CONTROL = DualControlConfig(dim=256, control_dim=128, ffn_dim=384, num_heads=1, num_layers=3, image=False)
VAE_WIDTH = 8
SEED = 20261122

BACKBONE_FILE = "diffusion_models/longvie_tiny.safetensors"
CONTROL_FILE = "model_patches/longvie_tiny_control.safetensors"
VAE_FILE = "vae/longvie_tiny_vae.safetensors"


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
    """Write backbone, control network and VAE below a ComfyUI ``models`` folder, where they are not there yet."""
    nets = {
        BACKBONE_FILE: lambda: WanModel(BACKBONE),
        CONTROL_FILE: lambda: torch_dual_control(CONTROL),
        VAE_FILE: lambda: wan_vae(VAE_WIDTH),
    }
    paths = {file: models / file for file in nets}
    for seed, (file, make) in enumerate(nets.items(), start=SEED):
        if not paths[file].is_file():
            paths[file].parent.mkdir(parents=True, exist_ok=True)
            weights = randomize(make(), seed).state_dict()
            save_file({key: value.half().contiguous() for key, value in weights.items()}, paths[file])
    return paths
