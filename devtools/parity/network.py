"""The plain torch network against the reference: outputs, every block, every residual."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from devtools.parity.rows import Row, Tensors, difference, read_json, read_tensors
from longvie_core.model.conditioning import (
    history_input,
)
from longvie_core.model.dual_control import DualControl, DualControlConfig, torch_dual_control, velocity
from longvie_core.model.wan import WanConfig, WanModel


def backbone_config(dit: dict) -> WanConfig:
    """Shape of a recorded backbone."""
    return WanConfig(**{**dit, "patch_size": tuple(dit["patch_size"])})


def network_config(control: dict) -> DualControlConfig:
    """Shape of a recorded control network; the reference halves the backbone's widths and heads."""
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
