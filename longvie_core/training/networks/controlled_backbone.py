"""Backbone and control network as one module: how they start, which weights are trained, how clips are sampled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from ...backends.diffusers.blocks import adapt_backbone, control_network
from ...backends.diffusers.forward import velocity
from ...backends.diffusers.sampler import check_fit
from ...backends.diffusers.weights import original_state
from ...model.dual_control import DualControl, DualControlConfig, Streams
from ...model.noise import initial_latents
from ...model.schedule import flow_sigmas, sample_euler
from ...model.wan import CrossAttention, WanConfig
from ...weights.backbone import diffusers_backbone_config
from ..initialise import half_width_weights
from ..stages import CONTROL_ONLY, EVERYTHING, WITH_SELF_ATTENTION

SAMPLING_STEPS = 8
"""Euler steps of sheets; at the tiny model's size more of them change nothing."""


@dataclass(frozen=True)
class WeightedControl:
    """A control network whose streams are weighed clip by clip; for :func:`longvie_core.backends.diffusers.forward.velocity`.

    Args:
        control: the network.
        dense, sparse: weights [B]; where both are 0 nothing is added, the shared linear's bias included.
    """

    control: DualControl
    dense: Tensor
    sparse: Tensor

    @property
    def config(self) -> DualControlConfig:
        """The network's own."""
        return self.control.config

    def embed(self, *inputs: Any, **named: Any) -> Streams:
        """:meth:`DualControl.embed`."""
        return self.control.embed(*inputs, **named)

    def residual(self, layer: int, streams: Streams) -> Tensor:
        """:meth:`DualControl.residual`, with ``phi_b(lambda * dense + sparse)`` (P1 eq. 3) for each clip."""
        shared = {"e": streams.e, "freqs": streams.freqs, "context": streams.context, "context_img_len": streams.image_tokens}
        streams.dense = self.control.control_blocks_dense[layer](streams.dense, **shared)
        streams.sparse = self.control.control_blocks_sparse[layer](streams.sparse, **shared)
        dense, sparse = (weight[:, None, None] for weight in (self.dense, self.sparse))
        added = self.control.control_combine_linears[layer](dense * streams.dense + sparse * streams.sparse)
        return ((dense + sparse) > 0) * added


class ControlledBackbone(nn.Module):
    """Backbone and control network as one module, so that processes average the gradients of all trained weights at once.

    Raises:
        ValueError: the two do not fit.
    """

    def __init__(self, backbone: WanTransformer3DModel, control: DualControl) -> None:
        super().__init__()
        check_fit(backbone, control)
        self.backbone, self.control = backbone, control
        self.bypassed: list[nn.Module] = []

    def bypass_text_attention(self) -> None:
        """For training without text, which is one zero token: attention to one token is that token's value, so skip the rest.

        The velocity stays the same, a seventh faster at the tiny model's size. Queries, keys and the norms before them have no
        influence then and are not trained.

        Raises:
            ValueError: the backbone attends to pictures too.
        """
        if self.backbone.config.image_dim is not None:
            raise ValueError("this backbone has an image branch: its cross-attention has more to read than one token")
        for block in self.backbone.blocks:
            block.attn2.set_processor(OneToken())
            attention = block.attn2
            self.bypassed += [block.norm2, attention.to_q, attention.to_k, attention.norm_q, attention.norm_k]
        for block in (*self.control.control_blocks_dense, *self.control.control_blocks_sparse):
            attention = block.cross_attn
            attention.forward = partial(_one_token, attention)
            self.bypassed += [block.norm3, attention.q, attention.k, attention.norm_q, attention.norm_k]

    def forward(self, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (noise - data) of noisy latents [B, 16, f, h, w] at ``timestep`` [B]."""
        return velocity(
            self.backbone,
            WeightedControl(self.control, conditions.dense_strength, conditions.sparse_strength),
            latents,
            timestep,
            conditions.text,
            conditions.image,
            conditions.dense,
            conditions.sparse,
            conditions.history,
            conditions.vision,
        )


class OneToken:
    """Cross-attention to a single token, as a processor of diffusers."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object) -> Tensor:
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def _one_token(attention: CrossAttention, x: Tensor, context: Tensor, _image_tokens: None) -> Tensor:
    """Cross-attention to a single token, in a block of the control network."""
    return attention.o(attention.v(context)).expand_as(x)


@dataclass(frozen=True)
class Conditions:
    """What a batch of clips is conditioned on.

    Args:
        image: [B, 20, f, h, w].
        dense, sparse: [B, 36, f, h, w].
        dense_strength, sparse_strength: [B].
        history: [B, 16, f_h, h, w], or ``None``.
        text: [B, L, text_dim].
        vision: [B, 257, 1280] where the backbone has an image branch.
    """

    image: Tensor
    dense: Tensor
    sparse: Tensor
    dense_strength: Tensor
    sparse_strength: Tensor
    history: Tensor | None
    text: Tensor
    vision: Tensor | None


def sample_clips(network: ControlledBackbone, noise: Tensor, conditions: Conditions, steps: int = SAMPLING_STEPS) -> Tensor:
    """Latents [B, 16, f, h, w] of clips from noise of that shape, in float32 on the network's device."""
    backbone = network.backbone
    device, dtype = backbone.device, backbone.patch_embedding.weight.dtype
    history = None if conditions.history is None else conditions.history.to(device)
    moved = {name: None if value is None else value.to(device, dtype) for name, value in vars(conditions).items()}
    conditions, noise = Conditions(**moved), noise.to(device)

    def predict(latents: Tensor, timestep: Tensor, _positive: bool) -> Tensor:
        return network(latents.to(dtype), timestep.expand(len(latents)), conditions).float()

    *_, latents = sample_euler(predict, initial_latents(noise, history), flow_sigmas(steps).to(noise), cfg=1)
    return latents


def tiny_network(backbone: WanConfig, control: DualControlConfig) -> ControlledBackbone:
    """Fresh weights for joint training: torch's usual ones, and zero where the control network meets the backbone.

    The input linears are not zero as in P1, where a trained backbone has to be kept: the streams learn from the start.
    """
    base = adapt_backbone(WanTransformer3DModel(**diffusers_backbone_config(backbone)))
    streams = control_network(control)
    for linear in streams.control_combine_linears:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return ControlledBackbone(base, streams)


def half_width_config(backbone: WanTransformer3DModel) -> DualControlConfig:
    """The published control network for a backbone: half as wide, on its first 12 blocks (3 of the tiny one's 4)."""
    config = backbone.config
    heads, width = config.num_attention_heads // 2, config.attention_head_dim
    return DualControlConfig(
        dim=2 * heads * width,
        control_dim=heads * width,
        ffn_dim=config.ffn_dim // 2,
        num_heads=heads,
        num_layers=min(12, config.num_layers - 1),
        image=config.image_dim is not None,
    )


def control_from_backbone(backbone: WanTransformer3DModel, config: DualControlConfig) -> DualControl:
    """A control network that starts as the interleaved halves of the backbone's first blocks (P1 appendix C)."""
    with torch.device("meta"):
        net = control_network(config)
    weights = half_width_weights(original_state(backbone), config)
    net.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return net


def require_gradients(network: ControlledBackbone, trainable: str) -> None:
    """Let the stage's weights require gradients, and no others (P2: the control network; in stage 3 self-attention too).

    Args:
        network: changed in place.
        trainable: which weights, one of :data:`longvie_core.training.stages.TRAINABLE`.
    """
    network.backbone.requires_grad_(trainable == EVERYTHING)
    network.control.requires_grad_(True)
    if trainable == WITH_SELF_ATTENTION:
        for block in network.backbone.blocks:
            block.attn1.requires_grad_(True)
    for module in network.bypassed:
        module.requires_grad_(False)


def published_files(network: ControlledBackbone, trainable: str) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """What a stage has trained, as it is published: file name -> weights under their published keys, and metadata."""
    config = network.control.config
    files = {"control.safetensors": (network.control.state_dict(), {"config": json.dumps({"head_dim": config.head_dim})})}
    if trainable == CONTROL_ONLY:
        return files
    backbone = original_state(network.backbone)
    if trainable == WITH_SELF_ATTENTION:
        return files | {"dit.safetensors": ({key: value for key, value in backbone.items() if ".self_attn." in key}, {})}
    heads = network.backbone.config.num_attention_heads
    return files | {"backbone.safetensors": (backbone, {"config": json.dumps({"transformer": {"num_heads": heads}})})}
