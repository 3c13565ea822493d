"""Control networks in every published layout: recognised, checked key by key, and never loaded in part."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from ..model.dual_control import DualControlConfig, torch_dual_control
from .header import DEFAULT_HEAD_DIM, MAX_NAMED, Layout, Shapes, check_shapes, layout_of, metadata_config, read_header
from .layouts import BACKBONE_PREFIXES

OFFICIAL_PREFIX = "pipe.dual_controller."

_REPACKED = re.compile(r"blocks\.(\d+)\.(control_blocks_dense|control_blocks_sparse|control_combine_linears)\.(.+)")


def canonical_control_key(key: str) -> str:
    """A control key of any known layout in the published layout without prefix."""
    key = key.replace(OFFICIAL_PREFIX, "")
    for prefix in BACKBONE_PREFIXES[:-1]:
        key = key.removeprefix(prefix)
    key = key.removeprefix("dual_controller.")
    repacked = _REPACKED.fullmatch(key)
    if repacked:
        layer, module, rest = repacked.groups()
        return f"{module}.{layer}.{rest}"
    return key


def control_config(shapes: Shapes, metadata: Mapping[str, str], name: str) -> DualControlConfig:
    """Shape of the control network in a file, read from its tensors and its metadata.

    Args:
        shapes: canonical keys and shapes.
        metadata: the file's; ``config`` may hold JSON ``{"head_dim": 128}`` (128 where it does not).
        name: file name for errors.

    Raises:
        ValueError: the file holds no LongVie control network, or its metadata is broken.
    """
    try:
        control_dim, dim = shapes["control_text_linear.weight"]
        # Counted, not the highest number: a file could name any, and a network of that size would be made of it.
        layers = len({key.split(".")[1] for key in shapes if key.startswith("control_combine_linears.")})
        ffn_dim = shapes["control_blocks_dense.0.ffn.0.weight"][0]
        if min(control_dim, dim, ffn_dim, layers) < 1:
            raise ValueError("a width or the number of layers is 0")
    except (KeyError, ValueError, IndexError) as error:
        found = ", ".join(sorted(shapes)[:MAX_NAMED]) or "no tensors"
        raise ValueError(
            f"{name} holds no LongVie control network (it has {found}, ...): give control.safetensors of LongVie 2 "
            "or Kijai's LongVie2_dual_controller_controlnet"
        ) from error
    head_dim = _metadata_head_dim(metadata, name)
    if control_dim % head_dim:
        raise ValueError(f"{name}: control width {control_dim} is no multiple of the head width {head_dim}")
    return DualControlConfig(
        dim=dim,
        control_dim=control_dim,
        ffn_dim=ffn_dim,
        num_heads=control_dim // head_dim,
        num_layers=layers,
        image="control_blocks_dense.0.cross_attn.k_img.weight" in shapes,
    )


def _metadata_head_dim(metadata: Mapping[str, str], name: str) -> int:
    head_dim = metadata_config(metadata, name).get("head_dim", DEFAULT_HEAD_DIM)
    if not isinstance(head_dim, int) or head_dim < 6 or head_dim % 2:
        raise ValueError(f"{name}: head_dim {head_dim!r} in its metadata is not an even number of at least 6")
    return head_dim


def control_shapes(config: DualControlConfig) -> dict[str, tuple[int, ...]]:
    """Every key and shape of a control network, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in torch_dual_control(config).state_dict().items()}


def read_control(path: str | os.PathLike[str]) -> tuple[DualControlConfig, Layout]:
    """Read and validate the header of a control file of any known layout.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_header`, :func:`control_config` and :func:`check_shapes`.
    """
    file = read_header(path)
    layout = layout_of(file, ((key, canonical_control_key(key)) for key in file.shapes))
    shapes = {key: file.shapes[stored] for key, stored in layout.keys.items()}
    config = control_config(shapes, file.metadata, file.path.name)
    check_shapes(shapes, control_shapes(config), file.path.name)
    return config, layout
