"""Muon for the kernels of convolutions, as torch's own optimiser knows it for matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MatrixMuon(torch.optim.Muon):
    """torch's Muon on parameters with two or more axes, each seen as a matrix of one row an output.

    The columns' order is that of the memory, which an orthogonalised update does not depend on; so kernels may lie in any
    memory format that keeps the outputs outermost.

    Args:
        kernels: what is learnt.
        settings: of :class:`torch.optim.Muon`.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], **settings: Any) -> None:
        self.kernels = list(kernels)
        super().__init__([_matrix(kernel.detach()) for kernel in self.kernels], **settings)

    def step(self, closure: None = None) -> None:
        """One update; the gradients are those of the kernels."""
        (group,) = self.param_groups
        for kernel, matrix in zip(self.kernels, group["params"], strict=True):
            matrix.data = _matrix(kernel.detach())
            matrix.grad = None if kernel.grad is None else _matrix(torch.empty_like(kernel).copy_(kernel.grad))
        super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for kernel in self.kernels:
            kernel.grad = None


def _matrix(kernel: Tensor) -> Tensor:
    """A view [outputs, rest] of the kernel's own memory."""
    if kernel.is_contiguous():
        return kernel.view(len(kernel), -1)
    return kernel.movedim(1, -1).view(len(kernel), -1)
