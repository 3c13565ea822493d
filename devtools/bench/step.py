"""What control costs: one evaluation of the comfy backend against the plain host backbone, interleaved in one process."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from devtools.inprocess import import_host
from devtools.tiny import randomize
from longvie_core.model.conditioning import history_input
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control
from longvie_core.model.wan import WanConfig, WanModel

BACKBONE = WanConfig(dim=512, ffn_dim=1384, num_heads=4, num_layers=8, has_image_input=False)
CONTROL = DualControlConfig(dim=512, control_dim=256, ffn_dim=692, num_heads=2, num_layers=4, image=False)
LATENTS = (6, 24, 40)
HISTORY = 2
TEXT_TOKENS = 512


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Command line; prints the ratios as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python dev.py bench step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=16, help="interleaved rounds, at least 12")
    options = parser.parse_args(arguments)
    if options.rounds < 12:
        parser.error("give at least 12 rounds: single ones are noisy")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    import_host()
    import comfy.model_management
    import comfy.sd

    from longvie_core.backends import comfy as backend

    with tempfile.TemporaryDirectory() as folder:
        control_path = Path(folder) / "control.safetensors"
        save_file(randomize(torch_dual_control(CONTROL), 2).state_dict(), control_path)
        control = backend.load_control(control_path)
    model = comfy.sd.load_diffusion_model_state_dict(randomize(WanModel(BACKBONE), 1).state_dict())
    patched = backend.apply_control(model, control)
    idle = backend.apply_control(model, control, backend.ModalityRange(0.0), backend.ModalityRange(0.0))
    comfy.model_management.load_models_gpu([patched])
    net = model.model.diffusion_model

    generator = torch.Generator().manual_seed(0)
    x, dense, sparse = (torch.randn(1, 36, *LATENTS, generator=generator) for _ in range(3))
    history = torch.randn(1, 16, HISTORY, *LATENTS[1:], generator=generator)
    with_past = torch.cat([history_input(history), x], dim=2)
    text = torch.randn(1, TEXT_TOKENS, BACKBONE.text_dim, generator=generator)
    timestep = torch.tensor([700.0])
    blocks_run = 0

    def count(*_: object) -> None:
        nonlocal blocks_run
        blocks_run += 1

    for block in (*control.model.control_blocks_dense, *control.model.control_blocks_sparse):
        block.register_forward_hook(count)

    def plain(latents: torch.Tensor) -> Callable[[], object]:
        return lambda: net(latents, timestep, text, transformer_options={})

    def controlled(patcher: object, past: list[torch.Tensor] | None) -> Callable[[], object]:
        conds = {backend.DENSE: dense, backend.SPARSE: sparse}
        if past is not None:
            conds[backend.HISTORY] = past
        settings = {**patcher.model_options["transformer_options"], "wrappers": patcher.wrappers}
        return lambda: net(x, timestep, text, transformer_options=dict(settings), **conds)

    pairs = {
        "ratio_no_history": (controlled(patched, None), plain(x)),
        "ratio_history": (controlled(patched, [history]), plain(with_past)),
        "ratio_idle": (controlled(idle, None), plain(x)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    with torch.inference_mode():
        for ours, theirs in pairs.values():
            ours(), theirs()
        blocks_run = 0
        pairs["ratio_idle"][0]()
        if blocks_run:
            print(f"{blocks_run} control blocks ran at zero strength")
            return 1
        for number in range(options.rounds):
            line = []
            for name, (ours, theirs) in pairs.items():
                # Turns change from round to round, so that neither side always runs on the warmer cache.
                if number % 2:
                    bottom, top = seconds(theirs), seconds(ours)
                else:
                    top, bottom = seconds(ours), seconds(theirs)
                ratios[name].append(top / bottom)
                line.append(f"{name} {top:.2f}/{bottom:.2f} s")
            print(f"round {number + 1} of {options.rounds}: {', '.join(line)}", flush=True)
    print("control blocks run at zero strength: 0")
    print(json.dumps({name: round(statistics.median(values), 4) for name, values in ratios.items()}))
    return 0
