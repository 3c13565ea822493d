"""Flow matching: sigmas, the Euler step, the forward process and the training weights (P2 section 4.1; the reference)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..finite import finite

SHIFT = 5.0
STEPS = 50


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """Time shift ``sigma = shift*u / (1 + (shift-1)*u)`` of u in 0 .. 1."""
    return shift * u / (1 + (shift - 1) * u)


def flow_sigmas(steps: int = STEPS, shift: float = SHIFT) -> Tensor:
    """Sigmas of an Euler run: :func:`shifted` of ``linspace(1, 0, steps + 1)``.

    Args:
        steps: number of model evaluations, at least 1.
        shift: time shift; LongVie uses 5.

    Returns:
        float32 [steps + 1], from 1 down to 0; the timestep is ``1000 * sigma``.

    Raises:
        ValueError: steps or shift out of range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed")
    finite(shift=shift)
    if shift <= 0:
        raise ValueError(f"shift is {shift}: it must be positive (LongVie uses {SHIFT:g})")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float32), shift)


def check_sigmas(sigmas: Tensor) -> None:
    """Refuse what is no schedule, wherever it comes from.

    Raises:
        ValueError: another shape than [steps + 1], no step, or a sigma that is negative or not finite, with its place.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas have the shape {list(sigmas.shape)}: give [steps + 1], at least 2 of them")
    broken = (~sigmas.isfinite() | (sigmas < 0)).nonzero()
    if len(broken):
        place = int(broken[0])
        raise ValueError(
            f"sigmas: number {place + 1} of {len(sigmas)} is {float(sigmas[place])}: they must be finite and not negative "
            "(LongVie Sigmas makes them)"
        )


def timesteps(sigmas: Tensor) -> Tensor:
    """Timesteps of the model evaluations: ``1000 * sigma``, the closing 0 left out."""
    return 1000 * sigmas[:-1]


def euler_step(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """``x + v * (sigma_next - sigma)``."""
    return x + velocity * (sigma_next - sigma)


def add_noise(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Forward process ``(1 - sigma) * data + sigma * noise``."""
    return (1 - sigma) * data + sigma * noise


def training_weights(timesteps: Tensor) -> Tensor:
    """Loss weight of each training timestep: a bell around 500, its minimum subtracted, scaled to a mean of 1.

    Args:
        timesteps: all timesteps of the training schedule, [N] (the reference: 1000).

    Returns:
        [N], summing to N.
    """
    bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    bell = bell - bell.min()
    return bell * (len(timesteps) / bell.sum())


def nearest_step(timesteps: Tensor, timestep: Tensor) -> Tensor:
    """Index of the schedule's timestep nearest to each of ``timestep`` [M]: int64 [M]."""
    return (timesteps[None] - timestep[:, None]).abs().argmin(dim=1)


def sample_euler(
    velocity: Callable[[Tensor, Tensor, bool], Tensor], latents: Tensor, sigmas: Tensor, cfg: float
) -> Iterator[Tensor]:
    """Euler sampling with classifier-free guidance ``v = v_neg + cfg * (v_pos - v_neg)``; at cfg 1 the second call is skipped.

    Args:
        velocity: ``(latents, timestep [1], positive)`` -> velocity.
        latents: starting latents.
        sigmas: [steps + 1], ending in 0.
        cfg: guidance scale.

    Yields:
        Latents after every step.
    """
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        timestep = (1000 * sigma).reshape(1)
        prediction = velocity(latents, timestep, True)
        if cfg != 1:
            negative = velocity(latents, timestep, False)
            prediction = negative + cfg * (prediction - negative)
        latents = euler_step(latents, prediction, sigma, sigma_next)
        yield latents
