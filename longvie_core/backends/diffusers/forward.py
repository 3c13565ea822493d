"""The controlled forward pass on diffusers' Wan backbone.

:func:`velocity` builds a graph like any module, so the trainer uses it too. History joins the clip on the frame axis, forward
hooks on ``blocks`` add the control network's residuals; diffusers' classes are used as they are, so their gradient
checkpointing, offloading, attention backends and context parallelism go on working.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...model.conditioning import history_input
from ...model.dual_control import ControlNetwork, Streams, Strengths
from ...model.wan import rope_frequencies
from .parallel import gathered, own_part, token_mesh

# The controlled forward


def velocity(
    backbone: WanTransformer3DModel,
    control: ControlNetwork | None,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    condition: Tensor,
    dense: Tensor | None = None,
    sparse: Tensor | None = None,
    history: Tensor | None = None,
    clip_features: Tensor | None = None,
    strengths: Strengths | None = None,
) -> Tensor:
    """One evaluation of the controlled backbone (P2 section 3.2), differentiable in everything that is a tensor here.

    With ``backbone.enable_gradient_checkpointing()`` the control layers are checkpointed too. Everything is taken in the dtype
    that it comes in: give latents, text and features in the backbone's, ``timestep`` in float32.

    Args:
        backbone: from :func:`load_backbone`, or through :func:`adapt_backbone`.
        control: control network, or ``None`` for the backbone alone.
        latents: noisy latents [B, 16, f, h, w].
        timestep: [B], 1000 * sigma.
        text: [B, L, text_dim].
        condition: [B, 20, f, h, w], mask and image latents (:func:`longvie_core.model.conditioning.image_condition`).
        dense, sparse: control latents [B, 36, f, h, w]; ``None`` leaves the modality out.
        history: normalised latents [B, 16, f_h, h, w], or ``None``.
        clip_features: [B, 257, 1280] where the backbone has an image branch.
        strengths: of the two streams, 1 each by default.

    Returns:
        Velocity (noise - data) [B, 16, f, h, w].

    Raises:
        ValueError: the backbone has an image branch and no features were given.
    """
    if backbone.config.image_dim is not None and clip_features is None:
        raise ValueError("this backbone has an image branch: give the first frame's CLIP vision features")
    strengths = strengths or Strengths()
    strengths = Strengths(0 if dense is None else strengths.dense, 0 if sparse is None else strengths.sparse)
    clip = torch.cat([latents, condition], dim=1)
    past = clip[:, :, :0] if history is None else history_input(history)
    with ExitStack() as stack:
        if control is not None and strengths.active:
            streams = _start(backbone, control, timestep, text, dense, sparse, clip_features, strengths)
            checkpointed = backbone.gradient_checkpointing and torch.is_grad_enabled()
            residuals = _residuals(control, streams, checkpointed)
            # A block that is checkpointed must not record the control network's own graph: it has to be there before.
            residuals = iter(list(residuals)) if checkpointed else residuals
            stack.enter_context(_added_after_blocks(backbone, control.config.num_layers, residuals, past))
        full = torch.cat([past, clip], dim=2)
        (out,) = backbone(full, timestep, text, clip_features, return_dict=False)
    return out[:, :, past.shape[2] :]


def _start(
    backbone: WanTransformer3DModel,
    control: ControlNetwork,
    timestep: Tensor,
    text: Tensor,
    dense: Tensor | None,
    sparse: Tensor | None,
    clip_features: Tensor | None,
    strengths: Strengths,
) -> Streams:
    """The control streams before the first layer, from the backbone's own embeddings."""
    _, e0, context, image = backbone.condition_embedder(timestep, text, clip_features)
    mesh = token_mesh(backbone)

    def tokens(latents: Tensor) -> Tensor:
        return own_part(backbone.patch_embedding(latents).flatten(2).transpose(1, 2), mesh, dim=1)

    control_latents = next(latents for latents in (dense, sparse) if latents is not None)
    sizes = zip(control_latents.shape[2:], backbone.config.patch_size, strict=True)
    grid = tuple(size // patch for size, patch in sizes)
    return control.embed(
        tokens(dense) if strengths.dense else None,
        tokens(sparse) if strengths.sparse else None,
        context if image is None else torch.cat([image, context], dim=1),
        e0.unflatten(1, (6, -1)),
        own_part(rope_frequencies(grid, backbone.config.attention_head_dim, control_latents.device), mesh, dim=0),
        None if image is None else image.shape[1],
        strengths,
    )


def _residuals(control: ControlNetwork, streams: Streams, checkpointed: bool) -> Iterator[Tensor]:
    """What the controlled blocks get added, in order: [B, S, dim] of the clip's tokens."""
    for layer in range(control.config.num_layers):
        if checkpointed:
            residual, streams = checkpoint(_layer, control, layer, streams, use_reentrant=False)
        else:
            residual, streams = _layer(control, layer, streams)
        yield residual


def _layer(control: ControlNetwork, layer: int, streams: Streams) -> tuple[Tensor, Streams]:
    """One layer that leaves the streams given as they are, so that it can be run again."""
    streams = replace(streams)
    return control.residual(layer, streams), streams


@contextmanager
def _added_after_blocks(
    backbone: WanTransformer3DModel, layers: int, residuals: Iterator[Tensor], past: Tensor
) -> Iterator[None]:
    """Forward hooks on the first ``layers`` blocks that add the residuals to the clip's tokens, the history's left alone.

    The addition saves nothing for the backward pass, so a checkpointed block is recomputed rightly without its hook.
    """
    _, rows, columns = backbone.config.patch_size
    history_tokens = past.shape[2] * (past.shape[3] // rows) * (past.shape[4] // columns)
    mesh = token_mesh(backbone)

    def add(_block: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        residual = next(residuals)
        if history_tokens:  # then the processes' shares of the clip lie elsewhere than their shares of the whole
            residual = own_part(F.pad(gathered(residual, mesh), (0, 0, history_tokens, 0)), mesh, dim=1)
        return tokens + residual

    hooks = [block.register_forward_hook(add) for block in backbone.blocks[:layers]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
