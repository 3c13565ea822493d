"""The clip loop against the reference: each clip from stored conditions, then all of them from pixels alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from devtools.parity.conditioning import FakeVae, PlainCodec
from devtools.parity.network import load_network
from devtools.parity.rows import EXACT, LOOP_TOLERANCE, Row, Tensors, difference, read_json, read_tensors
from longvie_core.model.clip import ClipInputs, HistorySettings
from longvie_core.model.conditioning import (
    frames_to_uint8,
    history_input,
    image_condition,
    pixels_from_uint8,
)
from longvie_core.model.dual_control import DualControl, velocity
from longvie_core.model.noise import UnifiedNoise, gaussian, initial_latents
from longvie_core.model.schedule import sample_euler, shifted
from longvie_core.model.wan import WanModel
from longvie_core.plan import ClipPlan
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, generate


class PlainBackend(PlainCodec):
    """A :class:`longvie_core.model.clip.ClipBackend` on plain torch, for the golden loop."""

    def __init__(self, backbone: WanModel, control: DualControl, tensors: Tensors, sigmas: Tensor, cfg: float) -> None:
        super().__init__(FakeVae(tensors))
        self.backbone, self.control, self.sigmas, self.cfg = backbone, control, sigmas, cfg
        self.u, self.v = tensors["fakeclip.U"], tensors["fakeclip.V"]
        self.texts = {key.removeprefix("context."): value for key, value in tensors.items() if key.startswith("context.")}

    def clip_features(self, frame: np.ndarray) -> Tensor:
        """The fake CLIP of the golden JSON: a fixed wave plus the frame's channel means."""
        means = torch.from_numpy(pixels_from_uint8(frame)).mean(dim=(0, 1))
        i, j = torch.arange(self.u.shape[1])[:, None], torch.arange(self.v.shape[1])[None]
        wave = 0.5 * torch.sin(0.37 * i + 0.011 * j)
        return (wave + torch.einsum("c,ci,cj->ij", means, self.u, self.v))[None]

    def steps(self, inputs: ClipInputs, latents: Tensor) -> Iterator[Tensor]:
        """Latents after every step from given starting latents."""
        features = self.clip_features(inputs.start_frame)
        history = None if inputs.history is None else history_input(inputs.history)
        y = image_condition(inputs.image)

        def model(x: Tensor, timestep: Tensor, positive: bool) -> Tensor:
            text = self.texts[f"prompt {inputs.clip}" if positive else "negative"]
            x = torch.cat([x, y], dim=1)
            return velocity(self.backbone, self.control, x, timestep, text, features, inputs.dense, inputs.sparse, history)

        yield from sample_euler(model, latents, self.sigmas, self.cfg)

    def sample(self, inputs: ClipInputs) -> Tensor:
        *_, latents = self.steps(inputs, initial_latents(inputs.noise, inputs.history))
        return latents


@dataclass(frozen=True)
class StoredControl:
    """Control frames straight from the golden file."""

    tensors: Tensors
    modality: str

    def window(self, plan: ClipPlan, clip: int) -> Iterable[np.ndarray]:
        return self.tensors[f"clip{clip}.{self.modality}_frames_u8"].numpy()


def loop_rows(golden: Path) -> Iterator[Row]:
    """The whole autoregressive loop: each clip from stored conditions, then all of them from pixels alone."""
    config, tensors = read_json(golden / "loop.json")["config"], read_tensors(golden / "loop.safetensors")
    name = "dual_" + read_json(golden / "loop.json")["dit"].split("dual_")[1][0]
    backbone, control = load_network(golden, name, read_json(golden / "dual.json")[name]["config"], torch.float32)
    with torch.no_grad():
        backbone.head.head.weight.mul_(0.25)
        backbone.head.head.bias.mul_(0.25)
    sigmas = shifted(torch.linspace(1, 0, config["steps"] + 1), config["shift"])
    backend = PlainBackend(backbone, control, tensors, sigmas, config["cfg"])
    plan = ClipPlan(
        width=config["W"],
        height=config["H"],
        frames=config["num_frames"],
        source_frames=1 + (config["num_frames"] - 1) * config["clips"],
    )
    shape = (1, 16, plan.latent_frames, *plan.latent_size)
    noise = UnifiedNoise(config["seed"])
    for clip in range(config["clips"]):
        yield from teacher_forced_rows(backend, tensors, clip, noise.for_clip(clip, shape))
    yield Row("loop shared noise untouched", difference(noise.for_clip(0, shape), gaussian(config["seed"], shape)), EXACT)

    dense, sparse = (StoredControl(tensors, modality) for modality in ("dense", "sparse"))
    script = Script(plan, dense, sparse, tensors["first_image_u8"].numpy())
    frames_of_history = next((len(v) for k, v in tensors.items() if k.endswith(".history_frames_u8")), 8)
    settings = LoopSettings(noise, HistorySettings(frames=frames_of_history))
    results = generate(script, range(plan.clips), Carry.before_first(script.first_frame), backend, settings)
    for result in results:
        levels = difference(result.frames.astype(np.int16), tensors[f"clip{result.clip}.video_u8"])
        yield Row(f"loop clip {result.clip} free-running frames (8-bit levels)", levels, 1)


def teacher_forced_rows(backend: PlainBackend, tensors: Tensors, clip: int, noise: Tensor) -> Iterator[Row]:
    """One clip from the stored conditions: start latents, every step, decoded frames."""
    get = {key.removeprefix(f"clip{clip}."): value for key, value in tensors.items() if key.startswith(f"clip{clip}.")}
    inputs = ClipInputs(
        clip=clip,
        start_frame=get["input_image_u8"].numpy(),
        image=get["y"][:, 4:],
        dense=get["dense"],
        sparse=get["sparse"],
        history=get.get("history_latents"),
        noise=noise,
        text=("", ""),
    )
    start = initial_latents(noise, inputs.history)
    yield Row(f"loop clip {clip} noise", difference(noise, get["noise_returned"]), EXACT)
    yield Row(f"loop clip {clip} start latents", difference(start, get["step0.latents_in"]), 1e-6)
    for step, latents in enumerate(backend.steps(inputs, get["step0.latents_in"])):
        error = difference(latents, get[f"step{step}.latents_out"])
        yield Row(f"loop clip {clip} step {step} teacher-forced", error, LOOP_TOLERANCE)
    decoded = get["decoded"][0].permute(1, 2, 3, 0)
    yield Row(f"loop clip {clip} decoded", difference(backend.decode(get["final_latents"]), decoded), LOOP_TOLERANCE)
    yield Row(f"loop clip {clip} 8-bit", difference(frames_to_uint8(decoded.numpy()), get["video_u8"]), EXACT)
