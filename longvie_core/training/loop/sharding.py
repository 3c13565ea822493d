"""AdamW whose state is spread over the processes (ZeRO stage 1), in a form that accelerate can save."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer


class SharedAdamW(ZeroRedundancyOptimizer):
    """torch's ZeRO optimiser; asked for its state, which all processes must do, it gathers the shares in the first one."""

    def state_dict(self) -> dict[str, Any]:
        self.consolidate_state_dict(to=0)
        return super().state_dict() if dist.get_rank() == 0 else {}
