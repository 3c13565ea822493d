"""Sigmas, timesteps, noising, Euler steps and training weights against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from devtools.parity.rows import EXACT, Row, difference, read_json, read_tensors
from longvie_core.model.noise import FIRST_FRAME_SIGMA
from longvie_core.model.schedule import add_noise, euler_step, nearest_step, shifted, training_weights


def schedule_rows(golden: Path) -> Iterator[Row]:
    """Sigmas, timesteps, Euler steps, the forward process, training weights, the blend constant."""
    config, tensors = read_json(golden / "scheduler.json"), read_tensors(golden / "scheduler.safetensors")
    for case in config["cases"]:
        name, steps = case["name"], case["steps"]
        shift, strength = (float(part[len(key) :]) for part, key in zip(name.split("_")[1:], ("shift", "d"), strict=True))
        sigmas = shifted(strength * torch.linspace(1, 0, steps + 1), shift)
        get = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        yield Row(f"schedule {name} sigmas", difference(sigmas[:-1], get["sigmas"]), 1e-6)
        yield Row(f"schedule {name} timesteps", difference(1000 * sigmas[:-1], get["timesteps"]), 1e-3)
        for index in case["step_indices"]:
            ours = euler_step(get["sample"], get["model_output"], sigmas[index], sigmas[index + 1])
            yield Row(f"schedule {name} step {index}", difference(ours, get[f"step{index}"]), 1e-6)
        for when, index in (("first", 0), ("mid", steps // 2)):
            ours = add_noise(get["sample"], get["model_output"], sigmas[index])
            yield Row(f"schedule {name} add_noise {when}", difference(ours, get[f"add_noise_{when}"]), 1e-6)
    train = {key.removeprefix("train1000."): value for key, value in tensors.items() if key.startswith("train1000.")}
    sigmas = shifted(torch.linspace(1, 0, 1001)[:-1], config["constructor"]["shift"])
    timesteps = 1000 * sigmas
    weights = training_weights(timesteps)
    nearest = nearest_step(timesteps, timesteps[train["ids"]].bfloat16().float())
    yield Row("schedule training sigmas", difference(sigmas, train["sigmas"]), 1e-6)
    yield Row("schedule training timesteps", difference(timesteps, train["timesteps"]), 1e-3)
    yield Row("schedule training weights", difference(weights, train["weights"]), 1e-5)
    yield Row("schedule nearest step", difference(nearest, train["nearest_id_of_bf16_timestep"]), EXACT)
    yield Row("schedule weight at nearest", difference(weights[nearest], train["weight_of_bf16_timestep"]), 1e-5)
    yield Row("first-frame blend constant", abs(FIRST_FRAME_SIGMA - config["blend_sigma"]["value"]), 1e-6)
