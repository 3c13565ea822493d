"""Where the networks compute: the processes that work together, the device of each, and number formats by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Number formats that networks run in, by the names that the command lines take."""


def gpu_count() -> int:
    """GPUs that torch can use on this machine; 0 too where torch was built for GPUs and there is no driver."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def this_process() -> PartialState:
    """This process among those that ``torchrun`` or ``accelerate launch`` started with it, and the device of each.

    They join one group: by NCCL where every process has a GPU of its own, by gloo on CPUs and where several share a GPU, which
    NCCL refuses. A process that was started alone joins none.
    """
    from accelerate import PartialState  # not needed by who works alone

    gpus = gpu_count()
    if not gpus:
        return PartialState(cpu=True)
    if gpus < int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        return PartialState(backend="gloo")
    return PartialState()


@contextmanager
def process_group() -> Iterator[PartialState]:
    """:func:`this_process`; leaves the group at the end, however it ends."""
    state = this_process()
    try:
        yield state
    finally:
        state.destroy_process_group()


def release_memory() -> None:
    """Give memory of networks that are gone back to the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
