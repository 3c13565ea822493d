"""The Wan 2.1 VAE in either layout."""

from __future__ import annotations

from pathlib import Path

import torch

from .files import Weights, read_weights
from .header import check_shapes
from .layouts import VAE


def read_vae(path: Path) -> tuple[int, Weights]:
    """Read and validate the header of a Wan 2.1 VAE in either layout.

    Returns:
        Its width (96 in the published one; everything else of it is fixed) and its weights.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weights` and :func:`check_shapes`.
    """
    weights = read_weights(path)
    if weights.names is not VAE:
        raise ValueError(f"{path.name} is a {weights.names.kind}, not a Wan 2.1 VAE")
    width = weights.shapes["decoder.head.0.gamma"][0]
    check_shapes(weights.shapes, vae_shapes(width), path.name)
    return width, weights


def vae_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Every original key and shape of a Wan 2.1 VAE, without allocating it."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        net = AutoencoderKLWan(base_dim=width)
    return {VAE.to_original(key): tuple(value.shape) for key, value in net.state_dict().items()}
