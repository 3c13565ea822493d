"""Backbone, control network and VAE opened as diffusers' own classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from ...model.dual_control import DualControl
from ...weights.backbone import diffusers_backbone_config, read_backbone
from ...weights.control import read_control
from ...weights.files import Weights
from ...weights.header import Layout
from ...weights.layouts import BACKBONE, VAE
from ...weights.overlay import read_overlay
from ...weights.vae import read_vae
from .blocks import adapt_backbone, control_network

# Weights


def load_backbone(
    path: Path, overlay: Path | None = None, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> WanTransformer3DModel:
    """A Wan image-to-video backbone from an original file or from a diffusers folder.

    Args:
        path: see :func:`longvie_core.weights.files.read_weights`.
        overlay: LongVie's ``dit.safetensors``, whose self-attention goes in place of the backbone's.
        dtype: of the weights; those that diffusers keeps in float32 (norms, modulation, time embedding) stay so.
        device: where they go, one tensor at a time.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.weights.backbone.read_backbone` and ``read_overlay``.
    """
    config, weights = read_backbone(path)
    replaced = None if overlay is None else read_overlay(overlay, config.num_layers, config.dim)
    with torch.device("meta"):
        net = WanTransformer3DModel(**diffusers_backbone_config(config))
    state = {}
    for key, value in _tensors(weights, replaced):
        name = BACKBONE.to_diffusers(key)
        keep = not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))
        state[name] = value.to(device, torch.float32 if keep else dtype)
    net.load_state_dict(state, assign=True)
    # Not in the checkpoint: a model made on the meta device has none yet.
    rope = net.rope
    net.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(device)
    return adapt_backbone(net).eval()


def _tensors(weights: Weights, replaced: Layout | None) -> Iterator[tuple[str, Tensor]]:
    """(original key, tensor) one at a time, those of the overlay in place of the backbone's."""
    kept = weights.where.keys() - (replaced.keys.keys() if replaced else set())
    with weights.reader() as read:
        yield from ((key, read(key)) for key in sorted(kept))
    if replaced:
        yield from replaced.tensors()


def original_state(net: WanTransformer3DModel | AutoencoderKLWan) -> dict[str, Tensor]:
    """A state dict under the original key names; the tensors are the network's own."""
    names = VAE if isinstance(net, AutoencoderKLWan) else BACKBONE
    return {names.to_original(key): value for key, value in net.state_dict().items()}


def load_control(path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> DualControl:
    """The control network from a file of any known layout.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.weights.control.read_control`.
    """
    config, layout = read_control(path)
    with torch.device("meta"):
        net = control_network(config)
    net.load_state_dict({key: value.to(device, dtype) for key, value in layout.tensors()}, assign=True)
    return net.eval()


def load_vae(path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> AutoencoderKLWan:
    """The Wan 2.1 VAE from an original file or from a diffusers folder.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.weights.vae.read_vae`.
    """
    width, weights = read_vae(path)
    with torch.device("meta"):
        net = AutoencoderKLWan(base_dim=width)
    with weights.reader() as read:
        state = {VAE.to_diffusers(key): read(key).to(device, dtype) for key in weights.where}
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval()
