"""The training loop, on ``accelerate``: the same on a laptop CPU and, by ``accelerate launch``, on many GPUs.

A :class:`~longvie_core.training.loop.task.Task` says what is trained on what; this file knows steps, checkpoints, averages and
logs. Everything random in a step comes from (seed, step, process), never from a running generator, so a run that was cut off
and goes on equals one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import find_batch_size, set_seed
from PIL import Image
from torch import Tensor, nn

from .batches import device_batches
from .checkpoints import Checkpoints
from .ema import EMA, trainable_parameters
from .graphs import GraphedLosses
from .log import JsonLines, Progress
from .settings import TrainSettings
from .task import Task


def train(task: Task, settings: TrainSettings, folder: Path, stop_after: int | None = None) -> None:
    """Train, from the newest checkpoint in ``folder`` where there is one, and export.

    Args:
        task: what is trained.
        settings: how long and how.
        folder: checkpoints, ``log.jsonl``, ``sheets/`` and, at the end, ``export/``.
        stop_after: leave off after this many steps of this call, with a checkpoint.

    Raises:
        ValueError: the checkpoint is of another network.
        FloatingPointError: the loss is NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.grad_accum_steps,
        log_with=[JsonLines(folder / "log.jsonl"), *settings.trackers],
    )
    accelerator.init_trackers("longvie")
    set_seed(settings.seed)
    torch.backends.cudnn.benchmark = True  # the shapes of batches repeat
    plain = task.network  # keeps its place inside whatever accelerate wraps around it, and never waits for other processes
    network = accelerator.prepare(plain)
    optimizers = task.optimizers()
    names = [f"lr {type(optimizer).__name__.lower()}" for optimizer in optimizers]
    if settings.zero1 and accelerator.num_processes > 1:
        from .sharding import zero1

        optimizers = [zero1(optimizer) for optimizer in optimizers]
    optimizers = [accelerator.prepare(optimizer, device_placement=[False]) for optimizer in optimizers]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, settings.lr_factor) for optimizer in optimizers]
    ema = EMA(plain, settings.ema)
    accelerator.register_for_checkpointing(ema, *schedules)
    checkpoints = Checkpoints(accelerator, plain, folder)
    first = checkpoints.resume()
    last = settings.steps if stop_after is None else min(settings.steps, first + stop_after)
    batches = device_batches(task, settings, accelerator, first, last)
    progress = Progress(first, last, settings.steps)

    def gradients(batch: Any) -> dict[str, Tensor]:
        """The batch's terms, after adding their gradients."""
        with accelerator.autocast():
            terms = task.losses(network, batch)
        accelerator.backward(torch.stack(list(terms.values())).sum())
        return {name: value.detach() for name, value in terms.items()}

    if settings.graphs and accelerator.device.type == "cuda":
        gradients = GraphedLosses(gradients, [value for _, value in trainable_parameters(plain)])
    for step in range(first, last):
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in zip(names, optimizers, strict=True)}
        terms, clips = _step(accelerator, gradients, network, optimizers, settings, batches)
        _require_finite(terms, step, settings)
        progress.count(clips * accelerator.num_processes)
        for schedule in schedules:
            schedule.step()
        ema.update(plain)
        done = step + 1
        if done % settings.log_every == 0 or done == last:
            accelerator.log({**terms, **rates}, step=done)
            if accelerator.is_main_process:
                print(progress.line(done, sum(terms.values()), rates), flush=True)
        if done % settings.sheet_every == 0 or done == settings.steps:
            _sheet(accelerator, task, ema, folder, done)
        if done % settings.checkpoint_every == 0 or done == last:
            checkpoints.save(done)
    if last == settings.steps and accelerator.is_main_process:
        ema.swap(plain)
        task.export(plain, folder / "export")
        ema.swap(plain)
    accelerator.end_training()


def _step(
    accelerator: Accelerator,
    gradients: Callable[[Any], dict[str, Tensor]],
    network: nn.Module,
    optimizers: list[AcceleratedOptimizer],
    settings: TrainSettings,
    batches: Iterator[Any],
) -> tuple[dict[str, float], int]:
    """One optimizer step; returns the mean of each loss term over the batches, and how many clips these had."""
    means: dict[str, float] = {}
    clips = 0
    for _ in range(settings.grad_accum_steps):
        batch = next(batches)
        clips += find_batch_size(batch)
        with accelerator.accumulate(network):
            terms = gradients(batch)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=not settings.graphs)
        for name, value in zip(terms, torch.stack(list(terms.values())).tolist(), strict=True):
            means[name] = means.get(name, 0.0) + value / settings.grad_accum_steps
    return means, clips


def _require_finite(terms: Mapping[str, float], step: int, settings: TrainSettings) -> None:
    """Stop a training whose loss is NaN or infinite, with what to look for."""
    wrong = [name for name, value in terms.items() if not isfinite(value)]
    if not wrong:
        return
    if step == 0:
        mend = "nothing is trained yet, so look for NaN or infinity in the weights that it starts from and in the latents"
    else:
        mend = (
            "if log.jsonl shows that it grew, lower the learning rate or max_grad_norm and go on from the newest checkpoint; "
            "if it came all at once, look for NaN or infinity in the latents"
        )
    if settings.precision == "fp16":
        mend += "; float16 ends at 65504, so try precision bf16 too"
    raise FloatingPointError(f"step {step + 1}: the loss is {sum(terms.values())} (in {', '.join(wrong)}): {mend}")


@torch.no_grad()
def _sheet(accelerator: Accelerator, task: Task, ema: EMA, folder: Path, step: int) -> None:
    """Write the task's picture and figures, with the averaged weights."""
    if not accelerator.is_main_process:
        return
    ema.swap(task.network)
    with accelerator.autocast():
        picture, figures = task.sheet(task.network)
    ema.swap(task.network)
    (folder / "sheets").mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / "sheets" / f"{step:07d}.png")
    accelerator.log(dict(figures), step=step)
