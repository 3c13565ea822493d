"""Muon (Jordan et al. 2024) for matrices and for the kernels of convolutions, those of one shape together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import sqrt

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""a, b, c of ``a X + (b X X^T + c (X X^T)^2) X``, as published."""

NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7
"""Below it a matrix is not scaled up further."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for parameters with two or more axes, each seen as a matrix, a row an output.

    The columns' order is that of the memory, which an orthogonalized update does not depend on; so kernels may lie in any
    memory format that keeps the outputs outermost. torch's own Muon takes matrices alone, one after another; of a small network
    on a GPU that takes longer than everything else, so here matrices of one shape are orthogonalized together.

    Args:
        params: kernels and matrices, or groups of them.
        lr: learning rate; updates have the root mean square of AdamW's (Liu et al. 2025), so its learning rates fit.
        momentum: Nesterov's.

    Raises:
        ValueError: a parameter with fewer than two axes.
    """

    def __init__(self, params: Iterable[nn.Parameter] | Iterable[dict], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict) -> None:
        """Take in further parameters; they have two or more axes."""
        super().add_param_group(param_group)
        for kernel in self.param_groups[-1]["params"]:
            if kernel.ndim < 2:
                raise ValueError(f"a parameter of shape {list(kernel.shape)} is no matrix: leave it to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)
            for kernel in group["params"]:
                if kernel.grad is not None:
                    alike[len(kernel), kernel.numel(), kernel.dtype, kernel.device].append(kernel)
            for kernels in alike.values():
                self._update(kernels, group["lr"], group["momentum"])
        return loss

    def _update(self, kernels: list[nn.Parameter], lr: float, momentum: float) -> None:
        """Update kernels that are matrices of one shape."""
        matrices = [_matrix(kernel.detach()) for kernel in kernels]
        gradients = [_matrix(_laid_out_like(kernel.grad, kernel)) for kernel in kernels]
        for kernel, matrix in zip(kernels, matrices, strict=True):
            if kernel not in self.state:
                self.state[kernel]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[kernel]["momentum_buffer"] for kernel in kernels]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, means, momentum))
        updates = orthogonalize(ahead).to(ahead)
        torch._foreach_add_(matrices, updates.unbind(), alpha=-0.2 * sqrt(max(matrices[0].shape)) * lr)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices bfloat16 [N, rows, columns] by Newton-Schulz steps, of matrices [N, rows, columns]."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _matrix(kernel: Tensor) -> Tensor:
    """A view [outputs, rest] of the kernel's own memory."""
    if kernel.is_contiguous():
        return kernel.view(len(kernel), -1)
    return kernel.movedim(1, -1).view(len(kernel), -1)


def _laid_out_like(gradient: Tensor, kernel: Tensor) -> Tensor:
    """The gradient in the kernel's memory format."""
    return gradient if gradient.stride() == kernel.stride() else torch.empty_like(kernel).copy_(gradient)
