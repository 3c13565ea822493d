"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class EMA:
    """Exponential moving average of a network's trainable parameters: ``mean += (1 - decay) * (weights - mean)``, in float32.

    In the first steps the decay is smaller, (1 + n) / (10 + n) after n updates, so that the first weights are soon forgotten.

    Args:
        network: whose parameters are averaged.
        decay: 0 keeps nothing and changes nothing.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.mean = {name: value.detach().clone().float() for name, value in trainable_parameters(network)} if decay else {}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if averaged := self._averaged(network):
            values = [value.detach().float() for _, value in averaged]
            torch._foreach_lerp_([self.mean[name] for name, _ in averaged], values, 1 - decay)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange the network's weights with the means; twice changes nothing."""
        for name, value in self._averaged(network):
            weights = value.detach().clone()
            value.copy_(self.mean[name])
            self.mean[name].copy_(weights)

    def _averaged(self, network: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in trainable_parameters(network) if name in self.mean]

    def state_dict(self) -> dict[str, Any]:
        """For accelerate's checkpoints."""
        return {"updates": self.updates, **self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the means of a checkpoint."""
        self.updates = int(state["updates"])
        self.mean = {name: state[name] for name in self.mean}


def trainable_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and values of the parameters that require a gradient."""
    return [(name, value) for name, value in network.named_parameters() if value.requires_grad]
