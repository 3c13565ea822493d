"""Which device a process computes on, and how several processes find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longvie_core.backends.processes import gpu_count, this_process

SCRIPT = """
import os

import torch
import torch.distributed as dist

from longvie_core.backends.processes import process_group

with process_group() as state:
    total = torch.tensor([1.0 + state.process_index])
    dist.all_reduce(total)
    line = f"{state.num_processes} {state.device.type} {dist.get_backend()} {total.item()}"
    os.write(1, f"{line}\\n".encode())  # at once, so that the lines of two processes do not mix
assert not dist.is_initialized()
"""


def test_gpus_are_not_asked_for_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> int:
        raise RuntimeError("Found no NVIDIA driver on your system")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", no_driver)
    assert gpu_count() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_one_process_without_a_gpu_computes_on_the_cpu_alone() -> None:
    state = this_process()
    assert (state.device.type, state.num_processes) == ("cpu", 1)
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(os.name == "nt", reason="torch's gloo processes are started by torchrun, which Windows lacks")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_two_processes_without_gpus_join_by_gloo_and_part(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["2 cpu gloo 3.0"] * 2
