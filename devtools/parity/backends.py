"""The two backends on the host's and diffusers' own model classes against the reference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from devtools.parity.network import forward_cases
from devtools.parity.rows import F32_TOLERANCE, HOST_TOLERANCE, VAE_TOLERANCE, Row, Tensors, difference, read_json, read_tensors
from longvie_core.model.conditioning import (
    control_condition,
    image_condition,
)


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
