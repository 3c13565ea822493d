"""Half-width interleaved initialisation of the control network from backbone weights (P1 appendix C).

P1 splits a block's weights by index, even to the dense stream, odd to the sparse one, and leaves open how the rows and
columns of a matrix are taken. Here every axis is split by what its index means, so that each half is again a working block:

* *channels* of the residual stream (inputs of q, k, v and the feed-forward; outputs of o and the feed-forward; ``norm3``;
  ``modulation``) and *hidden units* of the feed-forward: index 0, 2, 4, .. to dense, 1, 3, 5, .. to sparse;
* *heads* (outputs of q, k, v and their norms; inputs of o): whole heads, 0, 2, 4, .. to dense, 1, 3, 5, .. to sparse.
  Splitting inside a head would tear the rotary pairs (2i, 2i+1) apart and shift the frequencies of all channels but the first.

Entries are copied as they are: of every matrix one stream gets the even x even quarter, the other the odd x odd one. The
halves are not rescaled, so sums over half the inputs are smaller; for queries and keys the norm behind them undoes that.

``control_text_linear`` and ``control_t_mod`` are shared by both streams, so neither the even nor the odd channels would fit
both: they start as the mean of each pair (2i, 2i+1), of all shared half-width signals the nearest to both in least squares.
All combine linears start at zero, so the controlled backbone begins as the backbone alone.

The two input linears start at zero as well, as in the released initialisation. That has a price: the streams are then zero
where the first block normalises them, so as soon as a combine linear has moved, the gradient of the input linears is
multiplied by 1/sqrt(eps) = 1000 for a step, and an optimizer with momentum or a clipped norm remembers it.
``zero_inputs=False`` gives each stream its own half of the tokens' channels instead, which is what its blocks were cut out
for; the start is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ..model.dual_control import DualControlConfig
from ..weights.control import control_shapes
from ..weights.header import check_shapes

STREAMS = MappingProxyType({"control_blocks_dense": 0, "control_blocks_sparse": 1})
"""Key prefix of each stream's blocks and the indices it takes: 0 = even, 1 = odd."""


def alternate(tensor: Tensor, axis: int, parity: int, group: int = 1) -> Tensor:
    """Every second run of ``group`` indices along ``axis``, from run ``parity`` (0 or 1) on; a view."""
    return tensor.unflatten(axis, (-1, 2, group)).select(axis + 1, parity).flatten(axis, axis + 1)


def head_split_axes(key: str) -> tuple[int, ...]:
    """Axes of a block's tensor that run over heads; all the others run over channels or hidden units.

    Args:
        key: its name in the block, such as ``self_attn.q.weight``.
    """
    module, _, kind = key.rpartition(".")
    attention, _, layer = module.partition(".")
    if attention not in ("self_attn", "cross_attn"):
        return ()
    if layer == "o":
        return (1,) if kind == "weight" else ()
    return (0,)


def split_tensor(key: str, tensor: Tensor, parity: int, head_dim: int) -> Tensor:
    """A stream's share of one tensor of a backbone block, a copy.

    Args:
        key: its name in the block.
        tensor: full width; ``modulation`` [1, 6, D] is split on its last axis only.
        parity: 0 = even, 1 = odd.
        head_dim: width of an attention head.
    """
    heads = head_split_axes(key)
    axes = (2,) if key == "modulation" else range(tensor.ndim)
    for axis in axes:
        tensor = alternate(tensor, axis, parity, head_dim if axis in heads else 1)
    return tensor.clone(memory_format=torch.contiguous_format)


def block_shapes(config: DualControlConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every backbone tensor that is read: the control blocks' own, at twice the width."""
    prefix = "control_blocks_dense."
    return {
        f"blocks.{key.removeprefix(prefix)}": (1, 6, 2 * shape[2])
        if key.endswith("modulation")
        else tuple(2 * size for size in shape)
        for key, shape in control_shapes(config).items()
        if key.startswith(prefix)
    }


def half_width_weights(
    backbone: Mapping[str, Tensor], config: DualControlConfig, *, zero_inputs: bool = True
) -> dict[str, Tensor]:
    """All weights of a control network, initialised from a backbone (P1 appendix C; see the module's docstring).

    Args:
        backbone: Wan weights with the original key names (``blocks.0.self_attn.q.weight``, ..); only the first
            ``config.num_layers`` blocks are read.
        config: the control network, at half the backbone's width with half its heads.
        zero_inputs: start the input linears at zero (P1), or else at the even and the odd channels of the tokens.

    Returns:
        Published key names, in the backbone's dtype and on its device; copies.

    Raises:
        ValueError: a control network that is not half the backbone, or backbone weights missing or of another shape.
    """
    if 2 * config.control_dim != config.dim:
        raise ValueError(f"control width {config.control_dim} is not half of the backbone's {config.dim}")
    shapes = block_shapes(config)
    check_shapes({key: tuple(backbone[key].shape) for key in shapes if key in backbone}, shapes, "the backbone")
    like = backbone["blocks.0.self_attn.q.weight"]
    weights = {
        key: like.new_zeros(shape) for key, shape in control_shapes(config).items() if not key.startswith(tuple(STREAMS))
    }
    every_channel = torch.eye(config.dim, dtype=like.dtype, device=like.device)
    even, odd = (alternate(every_channel, 0, parity).clone() for parity in (0, 1))
    for shared in ("control_text_linear.weight", "control_t_mod.weight"):
        weights[shared] = (even + odd) / 2
    if not zero_inputs:
        weights["control_initial_combine_linear_dense.weight"] = even
        weights["control_initial_combine_linear_sparse.weight"] = odd
    for stream, parity in STREAMS.items():
        for key in shapes:
            layer, _, name = key.removeprefix("blocks.").partition(".")
            weights[f"{stream}.{layer}.{name}"] = split_tensor(name, backbone[key], parity, config.head_dim)
    return weights
