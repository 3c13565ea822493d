"""Losses and gradients as CUDA graphs, for networks so small that starting their kernels takes longer than running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

WARM_UP = 3
"""Times that a computation runs before it is recorded: what libraries set up at first must not be part of it."""

Terms = dict[str, Tensor]


class Recording(NamedTuple):
    """A graph, the memory it reads its batch from, and the memory it writes the loss terms to."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    terms: Terms


class GraphedLosses:
    """Loss terms of a batch, with their gradients in the parameters; recorded once for every shape of batch.

    Args:
        compute: a batch -> its terms, after adding the gradients; it may not wait for the GPU nor copy from the host.
        parameters: those that are trained; their gradients keep their memory: zero them after each call, never drop them.
    """

    def __init__(self, compute: Callable[[Any], Terms], parameters: Iterable[nn.Parameter]) -> None:
        self.compute = compute
        self.recordings: dict[tuple, Recording] = {}
        self.parameters = list(parameters)
        for value in self.parameters:
            value.grad = torch.zeros_like(value)

    def __call__(self, batch: Any) -> Terms:
        """The terms; they are overwritten by the next call."""
        values, structure = tree_flatten(batch)
        tensors = [value for value in values if isinstance(value, Tensor)]
        kind = (structure, *((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in values))
        if kind not in self.recordings:
            self.recordings[kind] = self._record(values, structure)
        recording = self.recordings[kind]
        for kept, value in zip(recording.inputs, tensors, strict=True):
            kept.copy_(value)
        recording.graph.replay()
        return recording.terms

    def _record(self, values: list[Any], structure: Any) -> Recording:
        kept = [value.clone() if isinstance(value, Tensor) else value for value in values]
        batch = tree_unflatten(kept, structure)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.compute(batch)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Batches are being pinned in another thread meanwhile, which would spoil a recording of the whole process.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            terms = self.compute(batch)
        for value in self.parameters:
            value.grad.zero_()
        return Recording(graph, [value for value in kept if isinstance(value, Tensor)], terms)
