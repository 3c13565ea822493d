"""The plain Wan 2.1 image-to-video backbone on torch, host-free: float64 parity, training, the block class off the host.

Key names are those of the published Wan checkpoints, so that one state dict loads here and in the host. Inside
ComfyUI the host's own ``WanModel`` is used instead; see :mod:`longvie_core.backends.comfy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_TOKENS = 257
"""CLIP ViT-H tokens that stand in front of the text in the context of an image-to-video backbone."""

IMAGE_FEATURES = 1280
"""Width of the CLIP ViT-H features that ``img_emb`` reads."""


@dataclass(frozen=True)
class WanConfig:
    """Shape of a Wan backbone; the defaults are Wan2.1-I2V-14B."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_dim: int = 36
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    has_image_input: bool = True


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Timestep embedding ``[cos(t w_i), sin(t w_i)]``, ``w_i = 10000^(-2i/dim)``, computed in float64.

    Args:
        timestep: [B], 0 .. 1000.
        dim: even width of the embedding.

    Returns:
        [B, dim] in the dtype of ``timestep``.
    """
    half = dim // 2
    freqs = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = torch.outer(timestep.double(), freqs)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(timestep.dtype)


def rope_frequencies(grid: tuple[int, int, int], head_dim: int, device: torch.device | None = None) -> Tensor:
    """3-D rotary position factors for a grid of (frames, rows, columns) tokens, frame-major.

    Rows and columns get ``2 * (head_dim // 6)`` dimensions each, frames the rest; theta 10000.

    Returns:
        complex128 [frames * rows * columns, head_dim / 2].
    """
    spatial = 2 * (head_dim // 6)
    axes = []
    for axis, (size, dim) in enumerate(zip(grid, (head_dim - 2 * spatial, spatial, spatial), strict=True)):
        freqs = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        angles = torch.outer(torch.arange(size, dtype=torch.float64, device=device), freqs)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        axes.append(torch.polar(torch.ones_like(angles), angles).view(shape).expand(*grid, dim // 2))
    return torch.cat(axes, dim=-1).flatten(0, 2)


def apply_rope(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotate interleaved pairs of ``x`` [B, S, heads, head_dim] by ``freqs`` [S, head_dim / 2], in float64."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs[:, None]).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over [B, S, heads * head_dim], no mask."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Wan self-attention: RMS-normalised queries and keys over the full width, rotary positions."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        q, k = (
            apply_rope(t.unflatten(-1, (self.num_heads, -1)), freqs).flatten(2)
            for t in (self.norm_q(self.q(x)), self.norm_k(self.k(x)))
        )
        return self.o(attention(q, k, self.v(x), self.num_heads))


class CrossAttention(nn.Module):
    """Wan cross-attention: image tokens (where the model has them) and text tokens in two softmaxes, summed."""

    def __init__(self, dim: int, num_heads: int, eps: float, image: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))
        self.image = image
        if image:
            self.k_img, self.v_img = (nn.Linear(dim, dim) for _ in range(2))
            self.norm_k_img = nn.RMSNorm(dim, eps=eps)

    def forward(self, x: Tensor, context: Tensor, image_tokens: int | None) -> Tensor:
        q = self.norm_q(self.q(x))
        text = context[:, image_tokens:] if self.image else context
        out = attention(q, self.norm_k(self.k(text)), self.v(text), self.num_heads)
        if self.image:
            image = context[:, :image_tokens]
            out = out + attention(q, self.norm_k_img(self.k_img(image)), self.v_img(image), self.num_heads)
        return self.o(out)


class WanBlock(nn.Module):
    """One Wan transformer block; called like the host's ``WanAttentionBlock``."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, *, image: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps, elementwise_affine=False) for _ in range(2))
        self.norm3 = nn.LayerNorm(dim, eps)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps, image)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor, context_img_len: int | None) -> Tensor:
        """``x`` [B, S, dim], ``e`` [B, 6, dim] time modulation, ``context`` [B, image + text, dim] -> [B, S, dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).chunk(6, dim=1)
        x = x + gate1 * self.self_attn(self.norm1(x) * (1 + scale1) + shift1, freqs)
        x = x + self.cross_attn(self.norm3(x), context, context_img_len)
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)


class Head(nn.Module):
    """Modulated LayerNorm and the linear to ``out_dim * prod(patch_size)``."""

    def __init__(self, dim: int, out_dim: int, patch_size: tuple[int, int, int], eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out_dim * patch_size[0] * patch_size[1] * patch_size[2])
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.modulation + t.unsqueeze(1)).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class ImageEmbedding(nn.Module):
    """CLIP features [B, 257, 1280] to context tokens [B, 257, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(IMAGE_FEATURES),
            nn.Linear(IMAGE_FEATURES, IMAGE_FEATURES),
            nn.GELU(),
            nn.Linear(IMAGE_FEATURES, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)


class WanModel(nn.Module):
    """The backbone. :func:`longvie_core.model.dual_control.velocity` runs it with history and control."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = c = config
        self.patch_embedding = nn.Conv3d(c.in_dim, c.dim, kernel_size=c.patch_size, stride=c.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, c.dim), nn.GELU(approximate="tanh"), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.img_emb = ImageEmbedding(c.dim) if c.has_image_input else None
        self.blocks = nn.ModuleList(
            WanBlock(c.dim, c.ffn_dim, c.num_heads, image=c.has_image_input, eps=c.eps) for _ in range(c.num_layers)
        )
        self.head = Head(c.dim, c.out_dim, c.patch_size, c.eps)

    @property
    def head_dim(self) -> int:
        return self.config.dim // self.config.num_heads

    def patchify(self, x: Tensor) -> Tensor:
        """[B, in_dim, f, h, w] -> tokens [B, f * h/2 * w/2, dim], frame-major."""
        return self.patch_embedding(x).flatten(2).transpose(1, 2)

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        """Token grid (frames, rows, columns) of latents [B, C, f, h, w]."""
        return tuple(size // patch for size, patch in zip(x.shape[2:], self.config.patch_size, strict=True))

    def embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Timestep [B] -> time embedding [B, dim] and the block modulation e0 [B, 6, dim]."""
        t = self.time_embedding(sinusoidal_embedding(timestep, self.config.freq_dim))
        return t, self.time_projection(t).unflatten(1, (6, self.config.dim))

    def embed_context(self, text: Tensor, clip_features: Tensor | None) -> tuple[Tensor, int | None]:
        """Text [B, L, text_dim] and CLIP features [B, 257, 1280] -> context, image tokens first, and their number.

        Raises:
            ValueError: the model has an image branch and no features were given.
        """
        context = self.text_embedding(text)
        if self.img_emb is None:
            return context, None
        if clip_features is None:
            raise ValueError("this backbone has an image branch (img_emb): give the first frame's CLIP vision features")
        image = self.img_emb(clip_features)
        return torch.cat([image, context], dim=1), image.shape[1]

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Head output [B, S, prod(patch) * out_dim], channel fastest -> [B, out_dim, f, h, w]."""
        pt, ph, pw = self.config.patch_size
        x = tokens.unflatten(1, grid).unflatten(-1, (pt, ph, pw, self.config.out_dim))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        clip_features: Tensor | None = None,
        after_block: Callable[[int, Tensor], Tensor] | None = None,
        history_frames: int = 0,
    ) -> Tensor:
        """Velocity of the clip.

        Args:
            x: [B, in_dim, f_h + f, h, w]: history (see :func:`longvie_core.model.conditioning.history_input`), then the clip.
            timestep: [B], 1000 * sigma.
            text: [B, L, text_dim].
            clip_features: [B, 257, 1280] where the model has an image branch.
            after_block: called as ``(block index, tokens)`` after every block; returns the tokens to go on with.
            history_frames: f_h, latent frames in front that are cut off again before the head.

        Returns:
            [B, out_dim, f, h, w].
        """
        grid = self.grid(x)
        freqs = rope_frequencies(grid, self.head_dim, x.device)
        tokens = self.patchify(x)
        t, e0 = self.embed_time(timestep.to(x.dtype))
        context, image_tokens = self.embed_context(text, clip_features)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, e=e0, freqs=freqs, context=context, context_img_len=image_tokens)
            if after_block is not None:
                tokens = after_block(index, tokens)
        clip_tokens = tokens[:, history_frames * grid[1] * grid[2] :]
        return self.unpatchify(self.head(clip_tokens, t), (grid[0] - history_frames, *grid[1:]))
