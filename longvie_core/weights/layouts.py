"""Key names of Wan's networks: the original ones, what others put in front of them, and those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BACKBONE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "")
"""What may stand in front of a backbone's keys: a ComfyUI checkpoint's, a training's, DiffSynth's, nothing."""

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}

_BLOCK_MODULES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in (_ATTENTION | _IMAGE_ATTENTION).items()},
}

_BACKBONE_MODULES = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}


def _vae_modules() -> dict[str, str]:
    """Every module of the Wan 2.1 VAE that has weights: original name -> diffusers name."""
    residual = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
    resnet = {**residual, "shortcut": "conv_shortcut"}
    resample = {name: name for name in ("resample.1", "time_conv")}
    parts = {f"encoder.downsamples.{i}": (f"encoder.down_blocks.{i}", resnet | resample) for i in range(11)}
    for i in range(15):
        stage, place = divmod(i, 4)  # three residual blocks, then the upsampler
        theirs = f"resnets.{place}" if place < 3 else "upsamplers.0"
        parts[f"decoder.upsamples.{i}"] = (f"decoder.up_blocks.{stage}.{theirs}", resnet if place < 3 else resample)
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        ends = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        names |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in ends.items()}
        parts[f"{half}.middle.0"] = (f"{half}.mid_block.resnets.0", residual)
        parts[f"{half}.middle.1"] = (f"{half}.mid_block.attentions.0", {name: name for name in ("norm", "to_qkv", "proj")})
        parts[f"{half}.middle.2"] = (f"{half}.mid_block.resnets.1", residual)
    for ours, (theirs, modules) in parts.items():
        names |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in modules.items()}
    return names


def backbone_prefix(keys: Iterable[str]) -> str:
    """Which of :data:`BACKBONE_PREFIXES` a file's keys have."""
    keys = list(keys)
    return next(prefix for prefix in BACKBONE_PREFIXES if not prefix or any(key.startswith(prefix) for key in keys))


_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


@dataclass(frozen=True)
class KeyNames:
    """Names of the modules of one kind of network: original -> diffusers, at the top and inside a transformer block."""

    kind: str
    top: Mapping[str, str]
    block: Mapping[str, str]

    def to_diffusers(self, key: str) -> str:
        """An original key in the diffusers layout; ``KeyError`` where this network has no such key."""
        return _renamed(key, self.top, self.block)

    def to_original(self, key: str) -> str:
        """A diffusers key in the original layout; ``KeyError`` where this network has no such key."""
        return _renamed(key, *({theirs: ours for ours, theirs in names.items()} for names in (self.top, self.block)))


def _renamed(key: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    in_block = _BLOCK.fullmatch(key)
    prefix, rest = in_block.groups() if in_block else ("", key)
    names = block if in_block else top
    if rest in names:
        return prefix + names[rest]
    module, _, leaf = rest.rpartition(".")
    return f"{prefix}{names[module]}.{leaf}"


BACKBONE = KeyNames("Wan backbone", _BACKBONE_MODULES, _BLOCK_MODULES)
VAE = KeyNames("Wan 2.1 VAE", _vae_modules(), {})
