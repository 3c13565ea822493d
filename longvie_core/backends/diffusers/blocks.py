"""What diffusers' Wan blocks compute differently from the published weights' code, set right."""

from __future__ import annotations

from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from ...model.dual_control import DualControl, DualControlConfig
from ...model.wan import IMAGE_TOKENS, SelfAttention, WanBlock, apply_rope, attention, sinusoidal_embedding
from .parallel import gathered


def adapt_backbone(net: WanTransformer3DModel) -> WanTransformer3DModel:
    """Make a backbone of diffusers compute what the published weights were made for, in place.

    Cross-attention finds the image tokens at any text length (diffusers counts on 512 text tokens), and the sinusoid of the
    timestep is taken in float64. What ``from_pretrained`` gives needs this once; :func:`load_backbone` has done it.
    """
    if net.config.image_dim is not None:
        for block in net.blocks:
            block.attn2.set_processor(CrossAttentionProcessor())
    net.condition_embedder.timesteps_proj = TimestepSinusoid(net.config.freq_dim)
    return net


class TimestepSinusoid(nn.Module):
    """:func:`longvie_core.model.wan.sinusoidal_embedding` as a module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        return sinusoidal_embedding(timestep, self.dim)


class CrossAttentionProcessor:
    """Cross-attention of a backbone with image branch: image tokens first, then any number of text tokens."""

    _attention_backend = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        image, text = encoder_hidden_states[:, :IMAGE_TOKENS], encoder_hidden_states[:, IMAGE_TOKENS:]
        query = attn.norm_q(attn.to_q(hidden_states))
        from_text = self._attend(attn.heads, query, attn.norm_k(attn.to_k(text)), attn.to_v(text))
        image_key = attn.norm_added_k(attn.add_k_proj(image))
        from_image = self._attend(attn.heads, query, image_key, attn.add_v_proj(image))
        return attn.to_out[0](from_text + from_image)

    def _attend(self, heads: int, *tensors: Tensor) -> Tensor:
        query, key, value = (tensor.unflatten(2, (heads, -1)) for tensor in tensors)
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2, 3).type_as(query)


def control_network(config: DualControlConfig) -> DualControl:
    """The control network, uninitialised, on blocks that several processes can share."""

    def block() -> WanBlock:
        made = WanBlock(config.control_dim, config.ffn_dim, config.num_heads, image=config.image, eps=config.eps)
        made.self_attn = ControlSelfAttention(config.control_dim, config.num_heads, config.eps)
        return made

    return DualControl(config, block)


class ControlSelfAttention(SelfAttention):
    """Self-attention of a control block; under context parallelism of this process's tokens to everybody's."""

    mesh = None

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        query, key = (
            apply_rope(tokens.unflatten(-1, (self.num_heads, -1)), freqs).flatten(2)
            for tokens in (self.norm_q(self.q(x)), self.norm_k(self.k(x)))
        )
        key, value = (gathered(tokens, self.mesh) for tokens in (key, self.v(x)))
        return self.o(attention(query, key, value, self.num_heads))
