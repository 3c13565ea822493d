"""Weights turned from the original layout to that of diffusers, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..disk.atomic import write_atomically
from .backbone import diffusers_backbone_config, read_backbone
from .files import DIFFUSERS_CONFIG, DIFFUSERS_WEIGHTS, Weights, read_weights
from .header import DEFAULT_HEAD_DIM
from .layouts import BACKBONE
from .vae import read_vae
from .write import write_safetensors


def convert(source: Path, out: Path) -> str:
    """Turn a Wan backbone or VAE from one layout into the other; tensors keep their bits and dtypes.

    An original file becomes a folder that diffusers opens (``config.json`` and one safetensors file); a file or folder of
    diffusers becomes one file with the original keys. Memory stays at one tensor.

    Returns:
        What was converted, in words.

    Raises:
        FileNotFoundError, ValueError: the source is missing or neither network, or ``out`` is of the wrong kind.
    """
    weights = read_weights(source)
    if weights.names is BACKBONE:
        shape, _ = read_backbone(source)
        model_class, settings = "WanTransformer3DModel", diffusers_backbone_config(shape)
    else:
        width, _ = read_vae(source)
        model_class, settings = "AutoencoderKLWan", {"base_dim": width}
    if (out.suffix == ".safetensors") != weights.diffusers:
        wanted = "a file name that ends in .safetensors" if weights.diffusers else "the name of a folder"
        raise ValueError(f"{source.name} has the {'diffusers' if weights.diffusers else 'original'} layout: give {wanted}")
    metadata = weights.metadata
    if weights.diffusers:
        if out.exists() and any(out.samefile(path) for path, _ in weights.where.values()):
            raise ValueError(f"{out.name} is the source itself: give another name")
        if weights.names is BACKBONE and shape.num_heads * DEFAULT_HEAD_DIM != shape.dim:
            metadata = {"config": json.dumps({"transformer": {"num_heads": shape.num_heads}}), **metadata}
        _write_layout(weights, out, lambda key: key, metadata)
    else:
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty: what lies there could be taken for a part of the network; give a new folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_layout(weights, out / DIFFUSERS_WEIGHTS, weights.names.to_diffusers, metadata)
        text = json.dumps({"_class_name": model_class, **settings}, indent=2) + "\n"
        write_atomically(out / DIFFUSERS_CONFIG, lambda part: part.write_text(text, encoding="utf-8"))
    layouts = ("diffusers", "original") if weights.diffusers else ("original", "diffusers")
    return f"{len(weights.where)} tensors of a {weights.names.kind}, {layouts[0]} layout to {layouts[1]}"


def _write_layout(weights: Weights, out: Path, rename: Callable[[str], str], metadata: dict[str, str]) -> None:
    original = {rename(key): key for key in weights.where}
    with weights.reader() as tensor:
        write_safetensors(
            out,
            ((name, weights.dtypes[key], weights.shapes[key]) for name, key in original.items()),
            lambda name: tensor(original[name]),
            metadata,
        )
