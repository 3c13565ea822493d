"""The Wan backbone in either layout: its configuration is read from its shapes."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model.wan import IMAGE_FEATURES, WanConfig, WanModel
from .files import Weights, read_weights
from .header import DEFAULT_HEAD_DIM, check_shapes, metadata_config
from .layouts import BACKBONE


def read_backbone(path: Path) -> tuple[WanConfig, Weights]:
    """Read and validate the header of a Wan backbone in either layout.

    The head width is 128 unless a diffusers ``config.json`` or the file's metadata (``config``: ``{"transformer":
    {"num_heads": ...}}``) says otherwise.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weights` and :func:`check_shapes`.
    """
    weights = read_weights(path)
    if weights.names is not BACKBONE:
        raise ValueError(f"{path.name} is a {weights.names.kind}, not a Wan backbone")
    config = backbone_config(weights)
    check_shapes(weights.shapes, backbone_shapes(config), path.name)
    return config, weights


def backbone_config(weights: Weights) -> WanConfig:
    """Shape of a backbone, read from its tensors.

    Raises:
        ValueError: tensors that give the shape are missing, or the number of heads does not fit.
    """
    shapes = weights.shapes
    try:
        dim, in_dim, *patch_size = shapes["patch_embedding.weight"]
        depth, height, width = patch_size
        ffn_dim = shapes["blocks.0.ffn.0.weight"][0]
        text_dim, freq_dim = (shapes[f"{name}_embedding.0.weight"][1] for name in ("text", "time"))
        out_dim = shapes["head.head.weight"][0] // (depth * height * width)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{weights.name} is an incomplete Wan backbone ({error}): fetch it again") from error
    heads = _heads(weights, dim)
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise ValueError(f"{weights.name}: {heads!r} attention heads do not divide its width {dim}")
    return WanConfig(
        dim=dim,
        ffn_dim=ffn_dim,
        num_heads=heads,
        num_layers=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        in_dim=in_dim,
        out_dim=out_dim,
        text_dim=text_dim,
        freq_dim=freq_dim,
        patch_size=(depth, height, width),
        has_image_input="img_emb.proj.0.weight" in shapes,
    )


def _heads(weights: Weights, dim: int) -> object:
    if "num_attention_heads" in weights.config:
        return weights.config["num_attention_heads"]
    config = metadata_config(weights.metadata, weights.name).get("transformer")
    return config.get("num_heads", dim // DEFAULT_HEAD_DIM) if isinstance(config, dict) else dim // DEFAULT_HEAD_DIM


def backbone_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Every original key and shape of a backbone, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in WanModel(config).state_dict().items()}


def diffusers_backbone_config(config: WanConfig) -> dict[str, object]:
    """What ``WanTransformer3DModel`` of diffusers is made from."""
    return {
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "eps": config.eps,
        "image_dim": IMAGE_FEATURES if config.has_image_input else None,
        "added_kv_proj_dim": config.dim if config.has_image_input else None,
    }
