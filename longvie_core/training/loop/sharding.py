"""AdamW whose state is divided among the processes (ZeRO stage 1), in a form that accelerate can save."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer


class ShardedAdamW(ZeroRedundancyOptimizer):
    """torch's ZeRO optimizer; asked for its state, which all processes must do, it gathers the shares in the first one."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state in the first process, nothing in the others."""
        self.consolidate_state_dict(to=0)
        return super().state_dict() if dist.get_rank() == 0 else {}


def zero1(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same AdamW with its state divided among the processes; other optimizers stay as they are."""
    if type(optimizer) is not torch.optim.AdamW:
        return optimizer
    (group,) = optimizer.param_groups
    settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    return ShardedAdamW(group["params"], torch.optim.AdamW, **settings)
