"""Batches of a run, each from a generator of its own, made ahead by worker processes where there are some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from ..draws import generator_for
from .settings import TrainSettings
from .task import Task


class Batches(Dataset):
    """The batches of steps ``first`` .. ``last - 1`` of one process, each from a generator of its own."""

    def __init__(self, task: Task, settings: TrainSettings, process: int, first: int, last: int) -> None:
        self.task, self.settings, self.process, self.first = task, settings, process, first
        self.count = (last - first) * settings.grad_accum_steps

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        step, part = divmod(number, self.settings.grad_accum_steps)
        step += self.first
        return self.task.batch(step, generator_for(self.settings.seed, step, part, self.process))


def device_batches(task: Task, settings: TrainSettings, accelerator: Accelerator, first: int, last: int) -> Iterator[Any]:
    """The batches of steps ``first`` .. ``last - 1`` on the accelerator's device."""
    workers = min(settings.workers, os.cpu_count() or 1)
    ahead = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(
        Batches(task, settings, accelerator.process_index, first, last),
        batch_size=None,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        **ahead,
    )
    return (send_to_device(batch, accelerator.device, non_blocking=True) for batch in loader)
