"""Control network and overlay as objects that the host loads, offloads and patches."""

from __future__ import annotations

import os

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.wan.model import WanAttentionBlock, WanModel

from ...model.dual_control import DualControl, DualControlConfig
from ...weights.control import read_control
from ...weights.overlay import read_overlay

# Weights


def load_control(path: str | os.PathLike[str]) -> comfy.model_patcher.ModelPatcher:
    """Load a control network as a MODEL_PATCH that the host loads and offloads with the model it is applied to.

    Args:
        path: control file of any known layout (:mod:`longvie_core.checkpoint`).

    Raises:
        FileNotFoundError, ValueError: naming missing, unexpected or wrongly shaped keys.
    """
    config, layout = read_control(path)
    stored = comfy.utils.load_torch_file(str(path), safe_load=True)
    weights = {key: stored[name] for key, name in layout.keys.items()}
    offload_device = comfy.model_management.unet_offload_device()
    net = host_dual_control(config, offload_device, comfy.utils.weight_dtype(weights))
    patcher = comfy.model_patcher.CoreModelPatcher(
        net, load_device=comfy.model_management.get_torch_device(), offload_device=offload_device
    )
    net.load_state_dict(weights, assign=patcher.is_dynamic())
    return patcher


def host_dual_control(config: DualControlConfig, device: torch.device, dtype: torch.dtype) -> DualControl:
    """The control network on the host's own Wan block and ``operations``."""
    operations = comfy.ops.manual_cast
    settings = {"operations": operations, "device": device, "dtype": dtype}
    attention = "i2v_cross_attn" if config.image else "t2v_cross_attn"

    def block() -> WanAttentionBlock:
        return WanAttentionBlock(
            attention,
            config.control_dim,
            config.ffn_dim,
            config.num_heads,
            cross_attn_norm=True,
            eps=config.eps,
            operation_settings=settings,
        )

    def linear(in_features: int, out_features: int) -> torch.nn.Module:
        return operations.Linear(in_features, out_features, device=device, dtype=dtype)

    return DualControl(config, block, linear).requires_grad_(False).eval()


def apply_overlay(model: comfy.model_patcher.ModelPatcher, path: str | os.PathLike[str]) -> comfy.model_patcher.ModelPatcher:
    """MODEL with the self-attention of LongVie's ``dit.safetensors`` set over its own.

    Raises:
        FileNotFoundError, ValueError: the file is missing or does not fit this backbone.
    """
    backbone = wan_backbone(model)
    layout = read_overlay(path, len(backbone.blocks), backbone.dim)
    stored = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{key}": ("set", (stored[name],)) for key, name in layout.keys.items()})
    return patched


def wan_backbone(model: comfy.model_patcher.ModelPatcher) -> WanModel:
    """The Wan transformer inside a MODEL.

    Raises:
        ValueError: it is another architecture, or not an image-to-video one.
    """
    backbone = model.get_model_object("diffusion_model")
    if not isinstance(backbone, WanModel):
        raise ValueError(
            f"this MODEL is a {type(backbone).__name__}: LongVie controls Wan 2.1 image-to-video models (Wan2.1-I2V-14B)"
        )
    if backbone.in_dim != 36:
        raise ValueError(
            f"this Wan model takes {backbone.in_dim} input channels: LongVie needs an image-to-video backbone with 36 "
            "(noise 16, mask 4, image 16), such as Wan2.1-I2V-14B-480P"
        )
    return backbone
