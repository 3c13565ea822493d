"""One clip on several GPUs: its tokens divided among processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor

from ...model.dual_control import DualControl

# Several GPUs


def enable_context_parallel(backbone: WanTransformer3DModel, control: DualControl, **degrees: object) -> None:
    """Divide the tokens of one clip among the processes of the default group (start them with ``torchrun``).

    The backbone goes the way of diffusers' ``enable_parallelism``; the control network divides its tokens alike, and each of
    its self-attentions gathers the keys and values. For generation: gradients are not summed over the processes.

    Args:
        backbone, control: on this process's device.
        degrees: of diffusers' ``ContextParallelConfig``, such as ``ulysses_degree=8`` (the numbers of heads and of tokens must
            be divisible by it, or ``ulysses_anything=True`` added).
    """
    from diffusers import ContextParallelConfig

    backbone.enable_parallelism(config=ContextParallelConfig(**degrees))
    for block in (*control.control_blocks_dense, *control.control_blocks_sparse):
        block.self_attn.mesh = token_mesh(backbone)


def token_mesh(backbone: WanTransformer3DModel) -> dist.DeviceMesh | None:
    """Processes that share the backbone's tokens; ``None`` where it is not divided."""
    parallel = backbone._parallel_config
    return None if parallel is None else parallel.context_parallel_config._flattened_mesh


def own_part(tokens: Tensor, mesh: dist.DeviceMesh | None, dim: int) -> Tensor:
    """This process's share of the tokens, divided as diffusers does it."""
    return tokens if mesh is None else tokens.tensor_split(mesh.size(), dim=dim)[dist.get_rank(mesh.get_group())]


def gathered(tokens: Tensor, mesh: dist.DeviceMesh | None) -> Tensor:
    """All processes' tokens [B, S, ...], from the share of each."""
    if mesh is None:
        return tokens
    # Not by diffusers' own sharder: it exchanges the sizes on the GPU that torch was built for, even where there is none.
    size = torch.tensor([tokens.shape[1]], device=tokens.device)
    sizes = [torch.empty_like(size) for _ in range(mesh.size())]
    dist.all_gather(sizes, size, mesh.get_group())
    shares = [tokens.new_empty(tokens.shape[0], int(size), *tokens.shape[2:]) for size in sizes]
    dist.all_gather(shares, tokens.contiguous(), mesh.get_group())
    return torch.cat(shares, dim=1)
