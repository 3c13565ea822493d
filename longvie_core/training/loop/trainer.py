"""The training loop, on ``accelerate``: the same on a laptop CPU and, by ``accelerate launch``, on many GPUs.

A :class:`Task` says what is learnt from what; this file knows steps, checkpoints, averages and logs. Everything random in a
step comes from (seed, step, process), never from a running generator, so a run that was cut off and goes on equals one that
was not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import send_to_device, set_seed
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...disk.atomic import write_atomically
from .ema import EMA, trainable_parameters
from .graphs import GraphedLosses

KEPT_CHECKPOINTS = 2
STATE = "step.json"
"""Written last into a checkpoint: one without it was cut off."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and how carefully, whatever is learnt.

    Args:
        steps: optimiser steps in all.
        seed: of everything random.
        accumulation: batches whose gradients are added up for one step.
        clip_norm: gradients are scaled down to this norm.
        warmup: steps in which the learning rate rises from 0.
        decay: ``"cosine"`` to 0 at the last step, or ``"constant"``.
        average: decay of the running mean of the weights, which is what is exported; 0 = the last weights.
        precision: accelerate's mixed precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        checkpoint_every, sheet_every, log_every: steps.
        workers: processes that make batches ahead, for each process that trains, but no more than there are cores; 0 = it makes
            them itself.
        graphs: record losses and gradients as CUDA graphs (:mod:`.graphs`): one GPU, no accumulation.
        trackers: names of accelerate's trackers beside the file ``log.jsonl``.
        shared_state: of several processes, each keeps its share of AdamW's state alone (ZeRO stage 1).
    """

    steps: int
    seed: int = 0
    accumulation: int = 1
    clip_norm: float = 1.0
    warmup: int = 0
    decay: str = "constant"
    average: float = 0.0
    precision: str = "no"
    checkpoint_every: int = 500
    sheet_every: int = 500
    log_every: int = 20
    workers: int = 0
    graphs: bool = False
    trackers: tuple[str, ...] = ()
    shared_state: bool = False

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "constant"):
            raise ValueError(f"decay {self.decay!r} is unknown: use 'cosine' or 'constant'")
        for name in ("steps", "accumulation", "checkpoint_every", "sheet_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.graphs and self.accumulation > 1:
            raise ValueError(f"graphs with an accumulation of {self.accumulation}: take larger batches instead")

    def rate(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * (0.5 * (1 + cos(pi * step / self.steps)) if self.decay == "cosine" else 1.0)


class Task(Protocol):
    """What is learnt.

    Attributes:
        network: its parameters that require a gradient are learnt.
    """

    network: nn.Module

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimisers of the network's parameters, with their full learning rates."""

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """What one process sees in one step, with everything random in it, on the CPU: tensors, in a named tuple for example.

        It may run in another process (``TrainSettings.workers``), so it must not touch the network.
        """

    def losses(self, network: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Weighted terms; their sum is what a step makes smaller. The batch is on the network's device."""

    def sheet(self, network: nn.Module) -> tuple[np.ndarray, Mapping[str, float]]:
        """A picture uint8 [H, W, 3] and figures that show how far it is."""

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the published files."""


def train(task: Task, settings: TrainSettings, folder: Path, stop_after: int | None = None) -> None:
    """Train, from the newest checkpoint in ``folder`` where there is one, and export.

    Args:
        task: what is learnt.
        settings: how long and how.
        folder: checkpoints, ``log.jsonl``, ``sheets/`` and, at the end, ``export/``.
        stop_after: leave off after this many steps of this call, with a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulation,
        log_with=[JsonLines(folder / "log.jsonl"), *settings.trackers],
    )
    accelerator.init_trackers("longvie")
    set_seed(settings.seed)
    torch.backends.cudnn.benchmark = True  # the shapes of batches repeat
    plain = task.network  # keeps its place inside whatever accelerate wraps around it, and never waits for other processes
    network = accelerator.prepare(plain)
    optimizers = task.optimizers()
    if settings.shared_state and accelerator.num_processes > 1:
        optimizers = [_shared(optimizer) for optimizer in optimizers]
    optimizers = [accelerator.prepare(optimizer, device_placement=[False]) for optimizer in optimizers]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, settings.rate) for optimizer in optimizers]
    average = EMA(plain, settings.average)
    accelerator.register_for_checkpointing(average, *schedules)
    accelerator.register_save_state_pre_hook(partial(_save_learnt, plain))
    accelerator.register_load_state_pre_hook(partial(_load_learnt, plain))
    first = _resume(accelerator, folder)
    last = settings.steps if stop_after is None else min(settings.steps, first + stop_after)
    batches = _batches(task, settings, accelerator, first, last)

    def gradients(batch: Any) -> dict[str, Tensor]:
        """The batch's terms, after adding their gradients."""
        with accelerator.autocast():
            terms = task.losses(network, batch)
        accelerator.backward(torch.stack(list(terms.values())).sum())
        return {name: value.detach() for name, value in terms.items()}

    if settings.graphs and accelerator.device.type == "cuda":
        gradients = GraphedLosses(gradients, [value for _, value in trainable_parameters(plain)])
    for step in range(first, last):
        terms = _step(accelerator, gradients, network, optimizers, settings, step, batches)
        for schedule in schedules:
            schedule.step()
        average.update(plain)
        done = step + 1
        if done % settings.log_every == 0 or done == last:
            accelerator.log({**terms, "rate": settings.rate(step)}, step=done)
        if done % settings.sheet_every == 0 or done == settings.steps:
            _sheet(accelerator, task, average, folder, done)
        if done % settings.checkpoint_every == 0 or done == last:
            _checkpoint(accelerator, folder, done)
    if last == settings.steps and accelerator.is_main_process:
        average.swap(plain)
        task.export(plain, folder / "export")
        average.swap(plain)
    accelerator.end_training()


def generator_for(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers (seed, step, process, ...)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


class _Batches(Dataset):
    """The batches of steps ``first`` .. ``last - 1`` of one process, each from a generator of its own."""

    def __init__(self, task: Task, settings: TrainSettings, process: int, first: int, last: int) -> None:
        self.task, self.settings, self.process, self.first = task, settings, process, first
        self.count = (last - first) * settings.accumulation

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        step, part = divmod(number, self.settings.accumulation)
        step += self.first
        return self.task.batch(step, generator_for(self.settings.seed, step, part, self.process))


def _batches(task: Task, settings: TrainSettings, accelerator: Accelerator, first: int, last: int) -> Iterator[Any]:
    """Batches on the accelerator's device, made ahead by worker processes where there are some."""
    workers = min(settings.workers, os.cpu_count() or 1)
    ahead = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(
        _Batches(task, settings, accelerator.process_index, first, last),
        batch_size=None,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        **ahead,
    )
    return (send_to_device(batch, accelerator.device, non_blocking=True) for batch in loader)


def _step(
    accelerator: Accelerator,
    gradients: Callable[[Any], dict[str, Tensor]],
    network: nn.Module,
    optimizers: list[AcceleratedOptimizer],
    settings: TrainSettings,
    step: int,
    batches: Iterator[Any],
) -> dict[str, float]:
    """One optimiser step; returns the mean of each loss term over the batches."""
    sums: dict[str, float] = {}
    for _ in range(settings.accumulation):
        batch = next(batches)
        with accelerator.accumulate(network):
            terms = gradients(batch)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), settings.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=not settings.graphs)
        for name, value in zip(terms, torch.stack(list(terms.values())).tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + value / settings.accumulation
    if not isfinite(sum(sums.values())):
        raise FloatingPointError(f"step {step + 1}: the loss is {sum(sums.values())}; lower the learning rate")
    return sums


@torch.no_grad()
def _sheet(accelerator: Accelerator, task: Task, average: EMA, folder: Path, step: int) -> None:
    if not accelerator.is_main_process:
        return
    average.swap(task.network)
    with accelerator.autocast():
        picture, figures = task.sheet(task.network)
    average.swap(task.network)
    (folder / "sheets").mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / "sheets" / f"{step:07d}.png")
    accelerator.log(dict(figures), step=step)


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"checkpoint_*/{STATE}"))


def _checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    path = folder / f"checkpoint_{step:07d}"
    accelerator.save_state(str(path), safe_serialization=True)
    if accelerator.is_main_process:
        write_atomically(path / STATE, lambda part: part.write_text(json.dumps({"step": step}), encoding="utf-8"))
        for old in _checkpoints(folder)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest complete checkpoint; returns the steps that it has seen."""
    found = _checkpoints(folder)
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    return int(json.loads((found[-1] / STATE).read_text(encoding="utf-8"))["step"])


def _shared(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same AdamW with its state spread over the processes; others stay as they are."""
    if type(optimizer) is not torch.optim.AdamW:
        return optimizer
    from .sharding import SharedAdamW

    (group,) = optimizer.param_groups
    settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    return SharedAdamW(group["params"], torch.optim.AdamW, **settings)


def _save_learnt(plain: nn.Module, _networks: list[nn.Module], weights: list[dict[str, Tensor]], _folder: str) -> None:
    """Save what is learnt under its own names, however the network is wrapped: a compiled run may go on uncompiled.

    What is not learnt is left out: of a large backbone that would be most of a checkpoint, every time.
    """
    frozen = {name for name, value in plain.named_parameters() if not value.requires_grad}
    for state in weights:
        state.clear()
        state.update({name: value for name, value in plain.state_dict().items() if name not in frozen})


def _load_learnt(plain: nn.Module, networks: list[nn.Module], folder: str) -> None:
    """The counterpart of :func:`_save_learnt`."""
    found = load_file(Path(folder) / "model.safetensors")
    missing = sorted({name for name, _ in trainable_parameters(plain)} - found.keys())
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of the weights that are learnt, {missing[0]} for one: start a new run")
    plain.load_state_dict(found, strict=False)
    networks.clear()  # nothing is left for accelerate to load


class JsonLines(GeneralTracker):
    """accelerate's tracker into a file: one JSON object a line, with its step."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict) -> None:
        self._write(values)

    @on_main_process
    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self._write({"step": step, **values})

    def _write(self, values: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
