"""The dual-control network (P2 section 3.2, figure 3): dense and sparse streams at half the backbone's width.

It has no patch, time or text embedding of its own: it reads the backbone's. Its block class comes from the caller, so that the
same code runs on the host's ``WanAttentionBlock`` with the host's ``operations`` and on
:class:`longvie_core.model.wan.WanBlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..finite import finite
from .wan import WanBlock, WanModel, rope_frequencies


@dataclass(frozen=True)
class DualControlConfig:
    """Shape of a control network; the defaults are LongVie 2's for Wan2.1-I2V-14B.

    Args:
        dim: width of the backbone.
        control_dim: width of each stream, half of ``dim`` in the published weights.
        ffn_dim: hidden width of a control block's feed-forward.
        num_heads: attention heads of a control block; the head width must equal the backbone's (shared rotary positions).
        num_layers: controlled backbone blocks, counted from the first.
        image: whether the control blocks attend to CLIP vision tokens.
    """

    dim: int = 5120
    control_dim: int = 2560
    ffn_dim: int = 6912
    num_heads: int = 20
    num_layers: int = 12
    image: bool = True
    eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.control_dim // self.num_heads

    def check_backbone(self, dim: int, head_dim: int, image: bool, num_layers: int) -> None:
        """Refuse a backbone that this control network was not made for.

        Args:
            dim, head_dim: width of the backbone and of its attention heads.
            image: whether it attends to CLIP vision tokens.
            num_layers: its blocks.

        Raises:
            ValueError: naming the numbers that differ.
        """
        pairs = {"width": (self.dim, dim), "head width": (self.head_dim, head_dim), "image branch": (self.image, image)}
        wrong = [f"{name} {ours} against {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
        if self.num_layers > num_layers:
            wrong.append(f"{self.num_layers} controlled blocks against {num_layers} in all")
        if wrong:
            raise ValueError(f"control network and backbone do not fit: {', '.join(wrong)}. Use the pair that belongs together")


@dataclass(frozen=True)
class Strengths:
    """Weights of the two streams before the shared linear: ``Combine_b(s_d * dense + s_s * sparse)`` (lambda in P1 eq. 3)."""

    dense: float = 1.0
    sparse: float = 1.0

    def __post_init__(self) -> None:
        finite(dense_strength=self.dense, sparse_strength=self.sparse)

    @property
    def active(self) -> bool:
        """Whether anything is added at all; with both at 0 nothing is computed, the shared linear's bias included."""
        return self.dense != 0 or self.sparse != 0


class ControlNetwork(Protocol):
    """A control network as the controlled forward pass uses it: :class:`DualControl`, or one that weighs its streams."""

    @property
    def config(self) -> DualControlConfig:
        """Its shape."""

    def embed(self, *inputs: Any, **named: Any) -> Streams:
        """:meth:`DualControl.embed`."""

    def residual(self, layer: int, streams: Streams) -> Tensor:
        """:meth:`DualControl.residual`."""


@dataclass
class Streams:
    """The control streams of one model evaluation, on their way through the layers.

    ``dense`` and ``sparse`` [B, S, control_dim]; a stream at strength 0 is ``None`` and never computed. The rest is what the
    blocks read: control context [B, image + text, control_dim], time modulation, rotary positions 0 .. f-1 (the history does
    not shift them) and the number of image tokens.
    """

    dense: Tensor | None
    sparse: Tensor | None
    context: Tensor
    e: Tensor
    freqs: Tensor
    image_tokens: int | None
    strengths: Strengths
    block_options: Mapping[str, object] = field(default_factory=dict)


class DualControl(nn.Module):
    """The control network with the published key names.

    Args:
        config: its shape.
        block: makes one control block of width ``config.control_dim``.
        linear: makes a linear layer ``(in, out)``; ``torch.nn.Linear`` or one of the host's ``operations``.
    """

    def __init__(
        self,
        config: DualControlConfig,
        block: Callable[[], nn.Module],
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.config = config
        dim, half, layers = config.dim, config.control_dim, config.num_layers
        self.control_initial_combine_linear_dense = linear(dim, half)
        self.control_initial_combine_linear_sparse = linear(dim, half)
        self.control_text_linear = linear(dim, half)
        self.control_t_mod = linear(dim, half)
        self.control_blocks_dense = nn.ModuleList(block() for _ in range(layers))
        self.control_blocks_sparse = nn.ModuleList(block() for _ in range(layers))
        self.control_combine_linears = nn.ModuleList(linear(half, dim) for _ in range(layers))

    def embed(
        self,
        dense: Tensor | None,
        sparse: Tensor | None,
        context: Tensor,
        e0: Tensor,
        freqs: Tensor,
        image_tokens: int | None,
        strengths: Strengths,
        block_options: Mapping[str, object] | None = None,
    ) -> Streams:
        """Start an evaluation.

        Args:
            dense, sparse: control latents as backbone tokens [B, S, dim]; not read where the strength is 0.
            context: the backbone's embedded context [B, image + text, dim].
            e0: the backbone's time modulation [..., 6, dim].
            freqs: rotary positions of the clip, as the block class reads them.
            image_tokens: how many of the context's first tokens are image tokens.
            strengths: of this evaluation.
            block_options: further keyword arguments of the block class.
        """
        return Streams(
            dense=self.control_initial_combine_linear_dense(dense) if strengths.dense else None,
            sparse=self.control_initial_combine_linear_sparse(sparse) if strengths.sparse else None,
            context=self.control_text_linear(context),
            e=self.control_t_mod(e0),
            freqs=freqs,
            image_tokens=image_tokens,
            strengths=strengths,
            block_options=block_options or {},
        )

    def residual(self, layer: int, streams: Streams) -> Tensor:
        """Advance both streams by one layer and return what backbone block ``layer`` gets added: [B, S, dim]."""
        weighted = []
        for name, blocks in (("dense", self.control_blocks_dense), ("sparse", self.control_blocks_sparse)):
            tokens = getattr(streams, name)
            if tokens is None:
                continue
            tokens = blocks[layer](
                tokens,
                e=streams.e,
                freqs=streams.freqs,
                context=streams.context,
                context_img_len=streams.image_tokens,
                **streams.block_options,
            )
            setattr(streams, name, tokens)
            strength = getattr(streams.strengths, name)
            weighted.append(tokens if strength == 1 else tokens * strength)
        return self.control_combine_linears[layer](weighted[0] if len(weighted) == 1 else weighted[0] + weighted[1])


def torch_dual_control(config: DualControlConfig) -> DualControl:
    """The control network on plain torch, freshly initialised: combine and input linears at zero (P1 appendix C)."""
    net = DualControl(
        config,
        lambda: WanBlock(config.control_dim, config.ffn_dim, config.num_heads, image=config.image, eps=config.eps),
    )
    for linear in (
        net.control_initial_combine_linear_dense,
        net.control_initial_combine_linear_sparse,
        *net.control_combine_linears,
    ):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return net


def velocity(
    backbone: WanModel,
    control: DualControl | None,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    clip_features: Tensor | None = None,
    dense: Tensor | None = None,
    sparse: Tensor | None = None,
    history: Tensor | None = None,
    strengths: Strengths | None = None,
) -> Tensor:
    """One evaluation of the controlled backbone (P2 section 3.2; ``spec``: forward pass), on plain torch.

    Args:
        backbone: Wan backbone.
        control: control network, or ``None`` for the backbone alone.
        x: clip input [B, 36, f, h, w]: noisy latent 16, mask 4, image latent 16.
        timestep: [B], 1000 * sigma.
        text: [B, L, text_dim].
        clip_features: [B, 257, 1280] or ``None``.
        dense, sparse: control latents [B, 36, f, h, w].
        history: [B, 36, f_h, h, w] as :func:`longvie_core.model.conditioning.history_input` makes it, or ``None``.
        strengths: of the streams, 1 each by default.

    Returns:
        Velocity (noise - data) [B, 16, f, h, w].
    """
    strengths = strengths or Strengths()
    history_frames = 0 if history is None else history.shape[2]
    full = x if history is None else torch.cat([history, x], dim=2)
    if control is None or not strengths.active:
        return backbone(full, timestep, text, clip_features, history_frames=history_frames)

    grid = backbone.grid(x)
    _, e0 = backbone.embed_time(timestep.to(x.dtype))
    context, image_tokens = backbone.embed_context(text, clip_features)
    streams = control.embed(
        backbone.patchify(dense) if strengths.dense else None,
        backbone.patchify(sparse) if strengths.sparse else None,
        context,
        e0,
        rope_frequencies(grid, backbone.head_dim, x.device),
        image_tokens,
        strengths,
    )
    history_tokens = history_frames * grid[1] * grid[2]

    def add_control(index: int, tokens: Tensor) -> Tensor:
        if index >= control.config.num_layers:
            return tokens
        residual = control.residual(index, streams)
        return torch.cat([tokens[:, :history_tokens], tokens[:, history_tokens:] + residual], dim=1)

    return backbone(full, timestep, text, clip_features, add_control, history_frames)
