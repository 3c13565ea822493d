"""LongVie's ``dit.safetensors``: self-attention that goes over a base model's, checked and merged."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import safe_open

from .header import Layout, check_shapes, layout_of, read_header
from .layouts import backbone_prefix
from .write import write_safetensors


def overlay_shapes(num_layers: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Every key and shape of a ``dit.safetensors`` overlay: the self-attention of all backbone blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        attention = f"blocks.{layer}.self_attn"
        for name in "qkvo":
            shapes[f"{attention}.{name}.weight"] = (dim, dim)
            shapes[f"{attention}.{name}.bias"] = (dim,)
        for name in ("norm_q", "norm_k"):
            shapes[f"{attention}.{name}.weight"] = (dim,)
    return shapes


def read_overlay(path: str | os.PathLike[str], num_layers: int, dim: int) -> Layout:
    """Read and validate the header of a ``dit.safetensors`` overlay for a backbone of ``num_layers`` blocks of width ``dim``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_header` and :func:`check_shapes`.
    """
    file = read_header(path)
    prefix = backbone_prefix(file.shapes)
    layout = layout_of(file, ((key, key.removeprefix(prefix)) for key in file.shapes))
    check_shapes(
        {key: file.shapes[stored] for key, stored in layout.keys.items()}, overlay_shapes(num_layers, dim), file.path.name
    )
    return layout


def merge_overlay(base: Path, overlay: Path, out: Path) -> int:
    """Write ``base`` with the self-attention of ``overlay`` in place of its own; memory stays at one tensor.

    The result keeps the base's keys, dtypes and metadata, and is renamed into place when complete.

    Returns:
        Number of tensors replaced.

    Raises:
        FileNotFoundError, ValueError: a file is missing, of the wrong kind, or the two do not fit each other.
    """
    base_file = read_header(base)
    prefix = backbone_prefix(base_file.shapes)
    modulation = [key for key in base_file.shapes if re.fullmatch(re.escape(prefix) + r"blocks\.\d+\.modulation", key)]
    if not modulation:
        raise ValueError(f"{base.name} is no Wan backbone: it has no blocks.N.modulation")
    scaled = [key for key in base_file.shapes if key.endswith((".scale_weight", ".weight_scale", "scaled_fp8"))]
    if scaled:
        raise ValueError(
            f"{base.name} holds scaled fp8 weights ({scaled[0]}): merge into the bf16 or fp16 checkpoint, then quantise"
        )
    layout = read_overlay(overlay, len(modulation), base_file.shapes[modulation[0]][-1])
    check_shapes(
        {key: base_file.shapes[prefix + key] for key in layout.keys if prefix + key in base_file.shapes},
        {key: layout.file.shapes[stored] for key, stored in layout.keys.items()},
        base.name,
    )
    for path, role in ((base, "base"), (overlay, "overlay")):
        if out.exists() and out.samefile(path):
            raise ValueError(f"{out.name} is the {role} itself: give another file name")
    replaced = {prefix + key: stored for key, stored in layout.keys.items()}
    with safe_open(base, framework="pt") as source, safe_open(overlay, framework="pt") as patch:
        write_safetensors(
            out,
            ((key, base_file.dtypes[key], shape) for key, shape in base_file.shapes.items()),
            lambda key: patch.get_tensor(replaced[key]) if key in replaced else source.get_tensor(key),
            base_file.metadata,
        )
    return len(replaced)
