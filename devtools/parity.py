"""Compare the project with tensors that the reference computed.

``python dev.py parity --golden FOLDER`` prints one row a case with its error and exits non-zero if any misses. Configurations,
shapes and seeds come from the folder's JSON files. ``--only network,loop`` picks groups.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longvie_core.control.normalize import normalize, to_uint8
from longvie_core.control.percentiles import global_percentiles
from longvie_core.control.tracks.draw import render_tracks
from longvie_core.control.tracks.point_depth import cover_resize, depth_to_z
from longvie_core.model.clip import ClipInputs, HistorySettings
from longvie_core.model.conditioning import (
    control_condition,
    encoded_history_frames,
    first_frame_then_grey,
    frames_to_uint8,
    history_input,
    image_condition,
    pixels_from_uint8,
)
from longvie_core.model.dual_control import DualControl, DualControlConfig, torch_dual_control, velocity
from longvie_core.model.noise import FIRST_FRAME_SIGMA, UnifiedNoise, gaussian, initial_latents
from longvie_core.model.schedule import add_noise, euler_step, nearest_step, sample_euler, shifted, training_weights
from longvie_core.model.wan import WanConfig, WanModel
from longvie_core.plan import ClipPlan
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, generate

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
    return json.loads(path.read_text())


# Network


def backbone_config(dit: dict) -> WanConfig:
    return WanConfig(**{**dit, "patch_size": tuple(dit["patch_size"])})


def network_config(control: dict) -> DualControlConfig:
    return DualControlConfig(
        dim=control["dim"],
        control_dim=control["dim"] // 2,
        ffn_dim=control["ffn_dim"] // 2,
        num_heads=control["num_heads"] // 2,
        num_layers=control["control_layers"],
        image=control["has_image_input"],
        eps=control["eps"],
    )


def load_network(golden: Path, name: str, config: dict, dtype: torch.dtype) -> tuple[WanModel, DualControl]:
    """Backbone and control network of a golden configuration in ``dtype``."""
    backbone = WanModel(backbone_config(config["dit"])).to(dtype)
    control = torch_dual_control(network_config(config["control"])).to(dtype)
    for net, file in ((backbone, "dit"), (control, "control")):
        weights = read_tensors(golden / f"{name}_{file}.int8.safetensors")
        net.load_state_dict({key: value.to(dtype) for key, value in weights.items()})
    return backbone.eval(), control.eval()


Forward = Callable[[Tensors, float, Tensor | None, bool], Tensor]


def network_rows(golden: Path, name: str, dtype: torch.dtype, tolerance: float) -> Iterator[Row]:
    """The forward of ``longvie_core.model.wan`` with and without history, control and batch."""
    config = read_json(golden / "dual.json")[name]["config"]
    backbone, control = load_network(golden, name, config, dtype)
    suffix = {torch.float64: "f64", torch.float32: "f32"}[dtype]
    inputs = {key: value.to(dtype) for key, value in read_tensors(golden / f"{name}_inputs.safetensors").items()}
    outputs = read_tensors(golden / f"{name}_out_{suffix}.safetensors")

    def forward(sample: Tensors, timestep: float, history: Tensor | None, controlled: bool) -> Tensor:
        return velocity(
            backbone,
            control if controlled else None,
            torch.cat([sample["latents"], sample["y"]], dim=1),
            torch.tensor([timestep], dtype=dtype),
            sample["context"],
            sample.get("clip_feature"),
            sample["dense"],
            sample["sparse"],
            None if history is None else history_input(history),
        )

    for case, ours in forward_cases(inputs, outputs, forward):
        yield Row(f"{name} {suffix} {case}", difference(ours, outputs[case]), tolerance)
    if suffix == "f32":
        yield from intermediate_rows(golden, name, config, backbone, control, inputs, forward, tolerance)


def forward_cases(inputs: Tensors, outputs: Iterable[str], forward: Forward) -> Iterator[tuple[str, Tensor]]:
    """(golden name, our output) for every output that the inputs allow."""
    for case in outputs:
        if case.startswith("out_batch2_"):
            yield case, batch_forward(inputs, case, forward)
            continue
        what, timestep = case.removeprefix("out_").rsplit("_t", 1)
        history = None
        if what.startswith("history_"):
            history = inputs[what]
        elif what.startswith("hist"):
            history = inputs["history"]
        yield case, forward(inputs, float(timestep), history, not what.endswith("backbone_only"))


def batch_forward(inputs: Tensors, case: str, forward: Forward) -> Tensor:
    """Two independent samples, one call each."""
    outs = []
    for index, timestep in enumerate(inputs["batch2_timestep"].tolist()):
        sample = {
            key.removeprefix("batch2_"): value[index : index + 1] for key, value in inputs.items() if key.startswith("batch2_")
        }
        outs.append(forward(sample, timestep, sample["history"] if case.endswith("_hist") else None, True))
    return torch.cat(outs)


def intermediate_rows(golden, name, config, backbone, control, inputs, forward, tolerance) -> Iterator[Row]:
    """Every embedding, block output and control residual, captured by forward hooks."""
    expected = read_tensors(golden / f"{name}_intermediates_f32.safetensors")
    for prefix, history in (("nohist", None), ("hist", inputs["history"])):
        captured: dict[str, list[Tensor]] = {}
        hooks = [
            module.register_forward_hook(_capture(captured, key, take_input))
            for key, module, take_input in observed_modules(backbone, control)
        ]
        forward(inputs, config["inter_t"], history, True)
        for hook in hooks:
            hook.remove()
        ours = name_captures(captured, history is not None)
        for case, theirs in expected.items():
            if case.startswith(f"{prefix}."):
                key = case.removeprefix(f"{prefix}.")
                error = difference(ours[key], theirs) if key in ours else float("inf")
                yield Row(f"{name} f32 {case}", error, tolerance)


def _capture(captured: dict[str, list[Tensor]], key: str, take_input: bool):
    def hook(module, args, output):
        captured.setdefault(key, []).append(args[0] if take_input else output)

    return hook


def observed_modules(backbone: WanModel, control: DualControl) -> Iterator[tuple[str, torch.nn.Module, bool]]:
    """(name, module, whether its input is wanted)."""
    yield "t", backbone.time_embedding, False
    yield "t_proj", backbone.time_projection, False
    yield "text_emb", backbone.text_embedding, False
    if backbone.img_emb is not None:
        yield "img_emb", backbone.img_emb, False
    yield "patch", backbone.patch_embedding, False
    yield "block0_in", backbone.blocks[0], True
    for index, block in enumerate(backbone.blocks):
        yield f"block{index}_out", block, False
    yield "head_in", backbone.head, True
    yield "head_out", backbone.head, False
    yield "dense_in", control.control_initial_combine_linear_dense, False
    yield "sparse_in", control.control_initial_combine_linear_sparse, False
    yield "control_context", control.control_text_linear, False
    yield "control_t_mod", control.control_t_mod, False
    for index, linear in enumerate(control.control_combine_linears):
        yield f"dense{index}_out", control.control_blocks_dense[index], False
        yield f"sparse{index}_out", control.control_blocks_sparse[index], False
        yield f"residual{index}", linear, False


def name_captures(captured: dict[str, list[Tensor]], history: bool) -> Tensors:
    """Captures by golden name; the patch embedding runs for dense, sparse, then (history and) the clip."""
    dense, sparse, clip = captured.pop("patch")
    ours = {key: values[-1] for key, values in captured.items()}
    ours |= {"patch_dense": dense, "patch_sparse": sparse}
    frames = dense.shape[2]
    ours["patch_x"] = clip[:, :, -frames:]
    if history:
        ours["patch_history"] = clip[:, :, :-frames]
    return ours


def write_networks(golden: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """Backbone and control network of a golden configuration as float32 files, for the backends' own loaders."""
    dit = read_json(golden / "dual.json")[name]["config"]["dit"]
    paths = []
    for kind, metadata in (
        ("dit", {"transformer": {"num_heads": dit["num_heads"], "text_dim": dit["text_dim"]}}),
        ("control", {"head_dim": dit["dim"] // dit["num_heads"]}),
    ):
        weights = read_tensors(golden / f"{name}_{kind}.int8.safetensors")
        paths.append(folder / f"{kind}.safetensors")
        tensors = {key: value.float().contiguous() for key, value in weights.items()}
        save_file(tensors, paths[-1], {"config": json.dumps(metadata)})
    return paths[0], paths[1]


# The host's own model


def host_rows(golden: Path, name: str) -> Iterator[Row]:
    """The comfy backend on the host's own ``WanModel``, weights loaded by the host's and our loaders."""
    from devtools.inprocess import import_host

    import_host()
    import comfy.sd
    import comfy.utils

    from longvie_core.backends import comfy as backend

    with tempfile.TemporaryDirectory() as folder:
        dit, control_file = write_networks(golden, name, Path(folder))
        model = comfy.sd.load_diffusion_model(str(dit))
        control = backend.load_control(control_file)
    patched = backend.apply_control(model, control)
    comfy.model_management.load_models_gpu([patched])
    options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
    net = patched.model.diffusion_model
    inputs = {key: value.float() for key, value in read_tensors(golden / f"{name}_inputs.safetensors").items()}
    outputs = read_tensors(golden / f"{name}_out_f64.safetensors")

    def forward(sample: Tensors, timestep: float, history: Tensor | None, controlled: bool) -> Tensor:
        conds = {}
        if controlled:
            conds = {backend.DENSE: sample["dense"], backend.SPARSE: sample["sparse"]}
        if history is not None:
            conds[backend.HISTORY] = [history]
        return net(
            torch.cat([sample["latents"], sample["y"]], dim=1),
            torch.tensor([timestep]),
            sample["context"],
            clip_fea=sample.get("clip_feature"),
            transformer_options=dict(options),
            **conds,
        )

    with torch.inference_mode():
        for case, ours in forward_cases(inputs, outputs, forward):
            yield Row(f"{name} comfy backend {case}", difference(ours, outputs[case]), HOST_TOLERANCE)


# diffusers' own models


def diffusers_rows(golden: Path, name: str) -> Iterator[Row]:
    """The diffusers backend on ``WanTransformer3DModel``, weights converted by our loader."""
    from longvie_core.backends import diffusers as backend

    with tempfile.TemporaryDirectory() as folder:
        dit, control_file = write_networks(golden, name, Path(folder))
        backbone, control = backend.load_backbone(dit), backend.load_control(control_file)
    inputs = {key: value.float() for key, value in read_tensors(golden / f"{name}_inputs.safetensors").items()}
    outputs = read_tensors(golden / f"{name}_out_f64.safetensors")

    def forward(sample: Tensors, timestep: float, history: Tensor | None, controlled: bool) -> Tensor:
        return backend.velocity(
            backbone,
            control if controlled else None,
            sample["latents"],
            torch.tensor([timestep]),
            sample["context"],
            sample["y"],
            sample["dense"],
            sample["sparse"],
            history,
            sample.get("clip_feature"),
        )

    for case, ours in forward_cases(inputs, outputs, forward):
        yield Row(f"{name} diffusers backend {case}", difference(ours, outputs[case]), F32_TOLERANCE)


def diffusers_vae_rows(golden: Path) -> Iterator[Row]:
    """The tiny official VAE in ``AutoencoderKLWan``, weights converted by our loader."""
    from longvie_core.backends import diffusers as backend

    config, tensors = read_json(golden / "embed.json"), read_tensors(golden / "embed.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.safetensors"
        weights = read_tensors(golden / config["weights"])
        save_file({key: value.float().contiguous() for key, value in weights.items()}, path)
        codec = backend.VaeCodec(backend.load_vae(path))
    given = {name: tensors[f"in.{name}_u8"].numpy() for name in ("dense_frames", "image", "history_frames")}
    frames = given["dense_frames"]
    dense = control_condition(codec.encode(frames), codec.encode_first_frame(frames[0], len(frames)))
    yield Row("diffusers VAE dense", difference(dense, tensors["tiny.dense"]), VAE_TOLERANCE)
    y = image_condition(codec.encode_first_frame(given["image"], config["config"]["n"]))
    yield Row("diffusers VAE image", difference(y, tensors["tiny.y"]), VAE_TOLERANCE)
    history = codec.encode(given["history_frames"])
    yield Row("diffusers VAE history", difference(history, tensors["tiny.history_latents"]), VAE_TOLERANCE)
    decoded = codec.decode_pixels(tensors["tiny.history_latents"])
    yield Row("diffusers VAE decode", difference(decoded, tensors["tiny.decode_of_history"]), VAE_TOLERANCE)


# Schedule


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


# Conditioning


class FakeVae:
    """The linear VAE that the golden JSON defines: 8x8 means, a 16x6 matrix, groups of four frames."""

    def __init__(self, tensors: Tensors) -> None:
        self.p, self.c, self.q, self.k = (tensors[f"fakevae.{name}"] for name in "PcQK")

    def encode(self, pixels: Tensor) -> Tensor:
        """[T, H, W, 3] in [-1, 1] -> [1, 16, f, h, w]."""
        frames = pixels.permute(3, 0, 1, 2)
        means = frames.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).mean(dim=(-1, -3))
        groups = torch.cat([means[:, :1].repeat(1, 4, 1, 1), means[:, 1 : encoded_history_frames(means.shape[1])]], dim=1)
        groups = groups.unflatten(1, (-1, 4))
        weighted = torch.einsum("cfjhw,j->cfhw", groups, torch.tensor([0.1, 0.2, 0.3, 0.4]))
        features = torch.cat([weighted, groups[:, :, 3] - groups[:, :, 0]])
        return (torch.einsum("zc,cfhw->zfhw", self.p, features) + self.c[:, None, None, None])[None]

    def decode(self, latents: Tensor) -> Tensor:
        """[1, 16, f, h, w] -> [T, H, W, 3] in [-1, 1]."""
        means = torch.einsum("cz,zfhw->cfhw", self.q, latents[0])
        frames = [means[:, 0]]
        for index in range(1, means.shape[1]):
            for j in range(4):
                past = 0.05 * (3 - j)
                frames.append((1 - past) * means[:, index] + past * means[:, index - 1])
        video = torch.stack(frames, dim=1).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
        tile = self.k.repeat(1, video.shape[-2] // 8, video.shape[-1] // 8)
        return (video + tile[:, None]).clamp(-1, 1).permute(1, 2, 3, 0)


class HostVae:
    """The tiny official VAE in the host's own VAE class, normalised by the host's Wan latent format."""

    def __init__(self, weights: Tensors) -> None:
        from devtools.inprocess import import_host

        import_host()
        import comfy.latent_formats
        import comfy.sd

        self.vae = comfy.sd.VAE(sd={key: value.float() for key, value in weights.items()})
        self.format = comfy.latent_formats.Wan21()

    def encode(self, pixels: Tensor) -> Tensor:
        return self.format.process_in(self.vae.encode((pixels + 1) / 2).float())

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.format.process_out(latents))[0] * 2 - 1


def conditioning_rows(golden: Path) -> Iterator[Row]:
    """Controls, image condition, history and decoding, on the fake VAE and on the tiny official one."""
    config, tensors = read_json(golden / "embed.json"), read_tensors(golden / "embed.safetensors")
    frames = config["config"]["n"]
    given = {name: tensors[f"in.{name}_u8"].numpy() for name in ("dense_frames", "sparse_frames", "image", "history_frames")}
    preprocessed = torch.from_numpy(pixels_from_uint8(given["dense_frames"])).permute(3, 0, 1, 2)[None]
    yield Row("conditioning pixel scaling", difference(preprocessed, tensors["preprocess.dense"]), 1e-6)
    fake, tiny = FakeVae(tensors), HostVae(read_tensors(golden / config["weights"]))
    for name, vae, tolerance in (("fake", fake, 1e-5), ("tiny", tiny, VAE_TOLERANCE)):
        backend = PlainCodec(vae)
        for modality in ("dense", "sparse"):
            pictures = given[f"{modality}_frames"]
            ours = control_condition(backend.encode(pictures), backend.encode_first_frame(pictures[0], frames))
            yield Row(f"conditioning {name} {modality}", difference(ours, tensors[f"{name}.{modality}"]), tolerance)
        y = image_condition(backend.encode_first_frame(given["image"], frames))
        yield Row(f"conditioning {name} image", difference(y, tensors[f"{name}.y"]), tolerance)
        past = given["history_frames"]
        history = backend.encode(past[: encoded_history_frames(len(past))])
        yield Row(f"conditioning {name} history", difference(history, tensors[f"{name}.history_latents"]), tolerance)
        decoded = backend.decode(tensors[f"{name}.history_latents"])
        golden_decoded = tensors[f"{name}.decode_of_history"][0].permute(1, 2, 3, 0)
        yield Row(f"conditioning {name} decode", difference(decoded, golden_decoded), tolerance)
        levels = difference(frames_to_uint8(golden_decoded.numpy()), tensors[f"{name}.decode_of_history_u8"])
        yield Row(f"conditioning {name} 8-bit truncation", levels, EXACT)


class PlainCodec:
    """uint8 frames to normalised latents and back over a VAE on pixels in [-1, 1]."""

    def __init__(self, vae: FakeVae | HostVae) -> None:
        self.vae = vae

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        return self.vae.encode(torch.from_numpy(pixels_from_uint8(np.stack(list(frames)))))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        return self.vae.encode(torch.from_numpy(first_frame_then_grey(frame, frames)))

    encode_image = encode_first_frame

    def decode(self, latents: Tensor) -> np.ndarray:
        return self.vae.decode(latents).numpy()


# The autoregressive loop


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


# Depth rule


def depth_rows(golden: Path) -> Iterator[Row]:
    """Global percentile normalisation and the 8-bit chunks, byte for byte."""
    config = read_json(golden / "depth_track.json")
    with np.load(golden / "depth_track.npz") as arrays:
        for frames, case in config["cases"].items():
            plan = ClipPlan(width=16, height=16, source_frames=case["frames_in"], tail="pad")
            whole = (int(frames) - 1) // plan.stride
            cut = arrays[f"depth{frames}.in"][: plan.stitched_frames(whole) or 1]
            low, high = global_percentiles(lambda cut=cut: iter(cut))
            ours = normalize(cut, low, high)
            yield Row(f"depth {frames} frames p5", abs(low - case["p5"]), EXACT)
            yield Row(f"depth {frames} frames p95", abs(high - case["p95"]), EXACT)
            yield Row(f"depth {frames} frames normalised", difference(ours, arrays[f"depth{frames}.out"]), EXACT)
            for chunk in range(case["n_chunks"]):
                window = to_uint8(ours[plan.stride * chunk : plan.stride * chunk + plan.frames])
                theirs = arrays[f"depth{frames}.chunk{chunk}_u8"]
                yield Row(f"depth {frames} frames chunk {chunk} bytes", difference(window, theirs), EXACT)


def track_rows(golden: Path) -> Iterator[Row]:
    """The tracks' z and their drawn frames, byte for byte."""
    height, width = read_json(golden / "depth_track.json")["track_target_hw"]
    with np.load(golden / "depth_track.npz") as arrays:
        for case in ("track_depth", "track_depth_rgbdiff"):
            ours = depth_to_z(arrays[f"{case}.in_u8"], (width, height))
            yield Row(f"tracks {case}", difference(ours, arrays[f"{case}.out"][:, 0]), 1e-6)
        pixels = arrays["track_video.in_u8"].astype(np.float32).transpose(0, 3, 1, 2)
        ours = cover_resize(pixels, (width, height))
        yield Row("tracks track_video", difference(ours, arrays["track_video.out"][0]), 1e-4)
        for case, frames in (("vis", "frames_u8"), ("vis", "frames_all_visible_u8"), ("vis_z0", "frames_u8")):
            theirs = arrays[f"{case}.{frames}"]
            drawn = np.stack(list(render_tracks(arrays[f"{case}.tracks"], None, theirs.shape[2], theirs.shape[1])))
            yield Row(f"tracks drawn {case} {frames}", difference(drawn, theirs), EXACT)


def all_rows(golden: Path, groups: Iterable[str]) -> Iterator[Row]:
    """Every row of the groups asked for."""
    for group in groups:
        yield from GROUPS[group](golden)


def _networks(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from network_rows(golden, name, torch.float64, F64_TOLERANCE)
        yield from network_rows(golden, name, torch.float32, F32_TOLERANCE)


def _hosts(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from host_rows(golden, name)


def _diffusers(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from diffusers_rows(golden, name)
    if (golden / "embed.json").is_file():  # not in the small set
        yield from diffusers_vae_rows(golden)


GROUPS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "network": _networks,
    "comfy": _hosts,
    "diffusers": _diffusers,
    "schedule": schedule_rows,
    "conditioning": conditioning_rows,
    "loop": loop_rows,
    "depth": depth_rows,
    "tracks": track_rows,
}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python dev.py parity", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="folder with the reference's tensors")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups, comma-separated: {', '.join(GROUPS)}")
    options = parser.parse_args(arguments)
    groups = options.only.split(",")
    if unknown := set(groups) - GROUPS.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}: choose from {', '.join(GROUPS)}")
    if not (options.golden / "dual.json").is_file():
        parser.error(f"{options.golden} holds no dual.json: name the folder with the reference's tensors")
    torch.set_grad_enabled(False)
    failed = total = 0
    for row in all_rows(options.golden, groups):
        print(row, flush=True)
        total += 1
        failed += not row.passed
    print(f"parity: {total - failed} of {total} cases within tolerance" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
