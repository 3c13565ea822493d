"""What the loop asks of whatever is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Task(Protocol):
    """What is trained, and of what.

    Attributes:
        network: its parameters that require a gradient are trained.
    """

    network: nn.Module

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers of the network's parameters, with their full learning rates."""

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """What one process sees in one step, with everything random in it, on the CPU: tensors, in a named tuple for example.

        The first axis of its first tensor counts its clips. It may be made in another process (``TrainSettings.workers``), so
        this must not touch the network.
        """

    def losses(self, network: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Weighted terms, whose sum a step makes smaller. The batch is on the network's device."""

    def sheet(self, network: nn.Module) -> tuple[np.ndarray, Mapping[str, float]]:
        """A picture uint8 [H, W, 3] and figures that show how good the network is."""

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the published files."""
