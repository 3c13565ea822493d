"""A comparison with the reference as a row, and the reference's tensors read from their files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

# Largest absolute difference that is allowed, by what is compared.
F64_TOLERANCE = 1e-9
F32_TOLERANCE = 2e-5
HOST_TOLERANCE = 5e-5
LOOP_TOLERANCE = 5e-5
VAE_TOLERANCE = 2e-5
EXACT = 0.0

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison: the largest absolute difference and what is allowed."""

    case: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN fails

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.case:<58} {self.error:10.3e}  (<= {self.tolerance:.0e})"


def difference(ours: Tensor | np.ndarray, theirs: Tensor | np.ndarray) -> float:
    """Largest absolute difference in float64; infinite where the shapes differ."""
    ours, theirs = (torch.as_tensor(array) for array in (ours, theirs))
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item()


def read_tensors(path: Path) -> Tensors:
    """All tensors of a safetensors file; int8 weights are expanded to float64 by their exponents ``k``."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        exponents = json.loads((file.metadata() or {}).get("k", "{}"))
    return {key: value.double() * 2.0 ** -exponents[key] if key in exponents else value for key, value in tensors.items()}


def read_json(path: Path) -> dict:
    """A JSON file of the reference."""
    return json.loads(path.read_text())
