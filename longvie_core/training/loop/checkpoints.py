"""Checkpoints of a run: whole or not there, the newest two kept, the weights that are not trained left out."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from ...disk.atomic import write_atomically
from .ema import trainable_parameters

KEPT_CHECKPOINTS = 2
STATE = "step.json"
"""Written last into a checkpoint: one without it was cut off."""


class Checkpoints:
    """Checkpoints of a network in training, as accelerate writes them, in the run's folder.

    Args:
        accelerator: with everything that a checkpoint holds prepared and registered.
        network: as it is without accelerate's wrapping; its trained weights are saved under their own names, so that a compiled
            run may go on uncompiled.
        folder: of the run.
    """

    def __init__(self, accelerator: Accelerator, network: nn.Module, folder: Path) -> None:
        self.accelerator, self.folder = accelerator, folder
        accelerator.register_save_state_pre_hook(partial(_keep_trained, network))
        accelerator.register_load_state_pre_hook(partial(_load_trained, network))

    def save(self, step: int) -> None:
        """Write a checkpoint after ``step`` steps, and delete old ones; in all processes."""
        path = self.folder / f"checkpoint_{step:07d}"
        self.accelerator.save_state(str(path), safe_serialization=True)
        if self.accelerator.is_main_process:
            write_atomically(path / STATE, lambda part: part.write_text(json.dumps({"step": step}), encoding="utf-8"))
            for old in self._complete()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Load the newest complete checkpoint; returns the steps that it has seen, 0 where there is none."""
        complete = self._complete()
        if not complete:
            return 0
        self.accelerator.load_state(str(complete[-1]))
        return int(json.loads((complete[-1] / STATE).read_text(encoding="utf-8"))["step"])

    def _complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"checkpoint_*/{STATE}"))


def _keep_trained(network: nn.Module, _networks: list[nn.Module], weights: list[dict[str, Tensor]], _folder: str) -> None:
    """accelerate's hook before saving: only what is trained. Of a large backbone the rest would be most of a checkpoint."""
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    for state in weights:
        state.clear()
        state.update({name: value for name, value in network.state_dict().items() if name not in frozen})


def _load_trained(network: nn.Module, networks: list[nn.Module], folder: str) -> None:
    """accelerate's hook before loading, the counterpart of :func:`_keep_trained`."""
    weights = load_file(Path(folder) / "model.safetensors")
    missing = sorted({name for name, _ in trainable_parameters(network)} - weights.keys())
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of the weights that are learnt, {missing[0]} for one: start a new run")
    network.load_state_dict(weights, strict=False)
    networks.clear()  # nothing is left for accelerate to load
