"""How long and how carefully a network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal


@dataclass(frozen=True)
class TrainSettings:
    """How long and how carefully, whatever the task.

    Args:
        steps: optimizer steps in all.
        seed: of everything random.
        grad_accum_steps: batches whose gradients are added up for one optimizer step.
        max_grad_norm: gradients are scaled down to this norm.
        warmup: steps in which the learning rate rises from 0.
        decay: ``"cosine"`` to 0 at the last step, or ``"constant"``.
        ema: decay of the exponential moving average of the weights, which is what is exported; 0 = the last weights.
        precision: accelerate's mixed precision.
        checkpoint_every, sheet_every, log_every: steps.
        workers: processes that make batches ahead, for each process that trains, but no more than there are cores; 0 = it makes
            them itself.
        graphs: record losses and gradients as CUDA graphs (:mod:`.graphs`): one GPU, no accumulation.
        trackers: names of accelerate's trackers beside the file ``log.jsonl``.
        zero1: divide AdamW's state among the processes (ZeRO stage 1, Rajbhandari et al. 2020), so that each needs less memory.

    Raises:
        ValueError: a value out of range.
    """

    steps: int
    seed: int = 0
    grad_accum_steps: int = 1
    max_grad_norm: float = 1.0
    warmup: int = 0
    decay: str = "constant"
    ema: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: int = 500
    sheet_every: int = 500
    log_every: int = 20
    workers: int = 0
    graphs: bool = False
    trackers: tuple[str, ...] = ()
    zero1: bool = False

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"decay {self.decay!r} is unknown: use 'cosine' or 'constant'")
        for name in ("steps", "grad_accum_steps", "checkpoint_every", "sheet_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.graphs and self.grad_accum_steps > 1:
            raise ValueError(f"graphs with grad_accum_steps {self.grad_accum_steps}: take larger batches instead")

    def lr_factor(self, step: int) -> float:
        """What the full learning rates are multiplied with at a step, 0 .. 1."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (0.5 * (1 + cos(pi * step / self.steps)) if self.decay == "cosine" else 1.0)
