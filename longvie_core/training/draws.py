"""Random choices, each read from a generator that is made for it, so that equal numbers give equal draws in any process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def generator_for(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers (seed, step, process, ...)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A float from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def chance(probability: float, generator: torch.Generator) -> bool:
    """True with ``probability``; one draw, whatever the outcome."""
    return uniform(0, 1, generator) < probability


def choose(values: Sequence[T], weights: Sequence[float], generator: torch.Generator) -> T:
    """One of ``values`` with probability proportional to its weight."""
    return values[torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator).item()]


def draw_seed(generator: torch.Generator) -> int:
    """A seed of 63 bits, for noise that is made when its shape is known."""
    return torch.randint(2**63 - 1, (), generator=generator).item()


def require_probabilities(**named: float) -> None:
    """Raise ValueError, naming it, where one of these is outside 0 .. 1."""
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: a probability lies in 0 .. 1")


def require_weights(values: str, count: int, names: str, weights: Sequence[float]) -> None:
    """Raise ValueError unless :func:`choose` can draw with these weights.

    Args:
        values, count: name of what is drawn from, and how many there are.
        names, weights: name of the weights, and the weights.
    """
    if not count or count != len(weights):
        raise ValueError(f"{values} has {count} values and {names} {len(weights)}: give both, one weight for each value")
    for place, weight in enumerate(weights):
        if weight < 0:
            raise ValueError(f"{names}[{place}] is {weight}: give weights of 0 or more")
    if not any(weights):
        raise ValueError(f"{names} are all 0: at least one weight must be above 0")
