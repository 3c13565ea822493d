"""Muon for matrices and for the kernels of convolutions; matrices of one shape are orthogonalised together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor, nn


class MatrixMuon(torch.optim.Muon):
    """torch's Muon on parameters with two or more axes, each seen as a matrix of one row an output.

    The columns' order is that of the memory, which an orthogonalised update does not depend on; so kernels may lie in any
    memory format that keeps the outputs outermost. torch's own step goes matrix by matrix; of a small network on a GPU that
    takes longer than everything else.

    Args:
        kernels: what is learnt.
        lr: learning rate; updates have the root mean square of AdamW's.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float) -> None:
        self.kernels = list(kernels)
        matrices = [_matrix(kernel.detach()) for kernel in self.kernels]
        super().__init__(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; the gradients are those of the kernels."""
        (group,) = self.param_groups
        alike = defaultdict(list)
        for kernel, matrix in zip(self.kernels, group["params"], strict=True):
            matrix.data = _matrix(kernel.detach())
            if kernel.grad is not None:
                alike[matrix.shape].append((matrix, _matrix(_laid_out_like(kernel.grad, kernel))))
        for (rows, columns), pairs in alike.items():
            matrices, gradients = zip(*pairs, strict=True)
            means = [self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix)) for matrix in matrices]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"]))  # Nesterov
            updates = orthogonalised(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(ahead)
            torch._foreach_add_(matrices, updates.unbind(), alpha=-0.2 * sqrt(max(rows, columns)) * group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        for kernel in self.kernels:
            if set_to_none:
                kernel.grad = None
            elif kernel.grad is not None:
                kernel.grad.zero_()


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Nearly orthogonal matrices bfloat16 [N, rows, columns] by Newton-Schulz steps (Jordan et al. 2024, Muon).

    Args:
        matrices: [N, rows, columns].
        coefficients: a, b, c of ``a X + (b X X^T + c (X X^T)^2) X``.
        steps: how many.
        eps: smallest norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
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
