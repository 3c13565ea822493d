"""The training loop in two processes: gradients are averaged, and each may keep its share of AdamW's state alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.places import ROOT

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save_file

from longvie_core.training.loop.settings import TrainSettings
from longvie_core.training.loop.trainer import train


class Task:
    def __init__(self):
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        self.network[0].bias.requires_grad_(False)
        self.network.register_buffer("constant", torch.ones(1))  # processes that are wrapped together exchange buffers

    def optimizers(self):
        return [torch.optim.AdamW([value for value in self.network.parameters() if value.requires_grad], lr=0.01)]

    def batch(self, step, generator):
        return torch.randn(8, 4, generator=generator)

    def losses(self, network, batch):
        return {"error": (network(batch) - batch[:, :2]).square().mean()}

    def sheet(self, network):
        return np.zeros((1, 1, 3), np.uint8), {"mean": float(network(torch.ones(1, 4)).mean())}

    def export(self, network, folder):
        folder.mkdir()
        save_file(network.state_dict(), folder / "weights.safetensors")


PartialState(cpu=True)
settings = TrainSettings(steps=12, ema=0.5, checkpoint_every=4, sheet_every=4, zero1=sys.argv[2] == "shared")
train(Task(), settings, Path(sys.argv[1]), int(sys.argv[3]) or None)
"""


def run_in_two_processes(folder: Path, state: str, stop_after: int = 0, compiled: bool = False) -> None:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["ACCELERATE_DYNAMO_BACKEND"] = "EAGER" if compiled else "NO"
    done = subprocess.run(
        [*command, folder, state, str(stop_after)], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torch's gloo processes are started by torchrun, which Windows lacks")
def test_two_processes_with_shared_state_learn_the_same(tmp_path: Path) -> None:
    run_in_two_processes(tmp_path / "plain", "own")
    run_in_two_processes(tmp_path / "parts", "shared", stop_after=5)
    run_in_two_processes(tmp_path / "parts", "shared")
    plain, parts = (load_file(tmp_path / name / "export" / "weights.safetensors") for name in ("plain", "parts"))
    for key, value in plain.items():
        assert value.equal(parts[key])
    checkpoint = tmp_path / "parts" / "checkpoint_0000012"
    assert (checkpoint / "random_states_1.pkl").is_file()  # there were two
    assert not [name for name in load_file(checkpoint / "model.safetensors") if name.endswith("0.bias")]  # it is frozen


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torch's gloo processes are started by torchrun, which Windows lacks")
def test_compiled_processes_make_sheets_and_go_on_uncompiled(tmp_path: Path) -> None:
    run_in_two_processes(tmp_path / "plain", "own")
    run_in_two_processes(tmp_path / "parts", "own", stop_after=5, compiled=True)
    run_in_two_processes(tmp_path / "parts", "own")
    plain, parts = (load_file(tmp_path / name / "export" / "weights.safetensors") for name in ("plain", "parts"))
    for key, value in plain.items():
        assert value.equal(parts[key])
