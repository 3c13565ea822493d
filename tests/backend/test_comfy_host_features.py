"""What the host offers for a MODEL keeps working with control on it: each acts, the control acts, and the result is right."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import comfy.context_windows
import comfy.ops
import comfy.sd
import gguf
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from safetensors.torch import save_file
from torch import Tensor

from longvie_core.backends import comfy as backend
from longvie_core.model.clip import ClipStrengths
from longvie_core.model.dual_control import Strengths
from longvie_core.weights.overlay import merge_overlay
from tests.helpers.harness import (
    HOST_TOLERANCE,
    SEED,
    Forward,
    Rig,
    Sample,
    counted,
    evaluate,
    first_blocks,
    gaussian,
    ksampler,
    largest,
    make_clip,
    make_sample,
    plain_velocity,
    sample_traced,
    shifted,
    wan_model,
    watch_forwards,
    watch_memory_estimates,
)

NO_CONTROL = Strengths(0, 0)


def plain_truth(rig: Rig, weights: dict[str, Tensor], sample: Sample, strengths: Strengths | None = None) -> Tensor:
    """The controlled forward of a backbone of other weights, on plain torch."""
    return plain_velocity(wan_model(rig.plain.config, weights), rig.plain_control, sample, strengths)


def check_with_weights(rig: Rig, model: ModelPatcher, weights: dict[str, Tensor], tolerance: float) -> None:
    """``model`` with control equals plain torch with ``weights``, and neither the weights nor the control are idle."""
    for history in (0, 2):
        sample = make_sample(rig, history=history)
        ours = evaluate(backend.apply_control(model, rig.control), sample)
        assert largest(ours - plain_truth(rig, weights, sample)) < tolerance
        assert largest(ours - rig.velocity(sample)) > 20 * tolerance
        assert largest(ours - plain_truth(rig, weights, sample, NO_CONTROL)) > 0.01


# Weights: LoRA, overlay, quantised


def lora_of(rig: Rig, rank: int = 4) -> dict[str, Tensor]:
    """A LoRA on block layers, and on the embeddings that the control reads as well."""
    lora = {}
    layers = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.2.cross_attn.v", "time_projection.1", "text_embedding.0"]
    for seed, layer in enumerate(layers):
        rows, columns = rig.weights[f"{layer}.weight"].shape
        lora[f"diffusion_model.{layer}.lora_A.weight"] = gaussian(2 * seed, (rank, columns)) / columns**0.5
        lora[f"diffusion_model.{layer}.lora_B.weight"] = gaussian(2 * seed + 1, (rows, rank)) / rank**0.5
    return lora


def merge_lora(weights: dict[str, Tensor], lora: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    merged = {key: value.float() for key, value in weights.items()}
    for key, down in lora.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + strength * lora[key.replace("lora_A", "lora_B")] @ down
    return merged


@pytest.mark.parametrize("lora_first", [True, False])
def test_lora_equals_merged_weights(rig: Rig, lora_first: bool) -> None:
    lora, strength = lora_of(rig), 0.6
    merged = merge_lora(rig.weights, lora, strength)

    def with_lora(model: ModelPatcher) -> ModelPatcher:
        return comfy.sd.load_lora_for_models(model, None, dict(lora), strength, 0)[0]

    if lora_first:
        check_with_weights(rig, with_lora(rig.model), merged, 1e-4)
    else:
        sample = make_sample(rig, history=2)
        assert largest(evaluate(with_lora(rig.controlled()), sample) - plain_truth(rig, merged, sample)) < 1e-4
    sample = make_sample(rig)
    assert largest(evaluate(rig.controlled(), sample) - rig.velocity(sample)) < HOST_TOLERANCE  # the LoRA is off again


def test_lora_on_an_offloaded_model(tiny: Rig) -> None:
    """Where the model does not fit into memory the host patches layers as they run: the embeddings we call included."""
    lora = lora_of(tiny)
    patched = backend.apply_control(comfy.sd.load_lora_for_models(tiny.model, None, dict(lora), 1.0, 0)[0], tiny.control)
    sample = make_sample(tiny, history=2)
    for patcher in (patched, tiny.control):
        patcher.patch_model(device_to=patcher.load_device, lowvram_model_memory=1)
    assert patched.model.model_lowvram and tiny.control.model.model_lowvram
    options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
    ours = patched.model.diffusion_model(
        sample.x,
        sample.timestep,
        sample.text,
        transformer_options=options,
        **{backend.DENSE: sample.dense, backend.SPARSE: sample.sparse, backend.HISTORY: [sample.history]},
    )
    for patcher in (patched, tiny.control):
        patcher.unpatch_model(device_to=patcher.offload_device)
    assert largest(ours - plain_truth(tiny, merge_lora(tiny.weights, lora, 1.0), sample)) < 1e-4


def write_overlay(rig: Rig, path, prefix: str = "") -> dict[str, Tensor]:
    """A ``dit.safetensors`` with a self-attention of its own, in the reference's bfloat16."""
    attention = [key for key in rig.weights if ".self_attn." in key]
    overlay = {}
    for seed, key in enumerate(attention, start=900):
        weight = rig.weights[key].float()
        overlay[key] = (weight + 0.3 * weight.std() * gaussian(seed, tuple(weight.shape))).bfloat16()
    save_file({prefix + key: value for key, value in overlay.items()}, path)
    return overlay


@pytest.mark.parametrize("prefix", ["", "pipe.dit.", "diffusion_model."])
def test_overlay_equals_the_merged_checkpoint(rig: Rig, tmp_path, prefix: str) -> None:
    file, merged_file = tmp_path / "dit.safetensors", tmp_path / "merged.safetensors"
    overlay = write_overlay(rig, file, prefix)
    assert merge_overlay(rig.backbone_file, file, merged_file) == len(overlay)
    on_the_fly, merged = backend.apply_overlay(rig.model, file), comfy.sd.load_diffusion_model(str(merged_file))
    sample = make_sample(rig, history=2)
    ours = evaluate(backend.apply_control(on_the_fly, rig.control), sample)
    # The merged checkpoint keeps the base's float16, the overlay on the fly its bfloat16.
    assert largest(ours - evaluate(backend.apply_control(merged, rig.control), sample)) < 1e-3
    check_with_weights(rig, on_the_fly, {**rig.weights, **overlay}, 1e-4)


def test_overlay_of_the_same_dtype_equals_the_merged_checkpoint_exactly(tiny: Rig, tmp_path) -> None:
    file, merged_file = tmp_path / "dit.safetensors", tmp_path / "merged.safetensors"
    overlay = {key: value.half() for key, value in write_overlay(tiny, file).items()}
    save_file(overlay, file)
    merge_overlay(tiny.backbone_file, file, merged_file)
    sample = make_sample(tiny, history=2)
    ours, merged = (
        evaluate(backend.apply_control(model, tiny.control), sample)
        for model in (backend.apply_overlay(tiny.model, file), comfy.sd.load_diffusion_model(str(merged_file)))
    )
    assert torch.equal(ours, merged)


def test_overlay_leaves_the_model_given_as_it_is(tiny: Rig, tmp_path) -> None:
    write_overlay(tiny, tmp_path / "dit.safetensors")
    sample = make_sample(tiny)
    before = evaluate(tiny.controlled(), sample)
    overlaid = backend.apply_overlay(tiny.model, tmp_path / "dit.safetensors")
    assert largest(evaluate(backend.apply_control(overlaid, tiny.control), sample) - before) > 0.01
    assert torch.equal(evaluate(tiny.controlled(), sample), before)
    assert not tiny.model.patches


def test_lora_goes_on_top_of_the_overlay(tiny: Rig, tmp_path) -> None:
    overlay = write_overlay(tiny, tmp_path / "dit.safetensors")
    lora = lora_of(tiny)
    model = backend.apply_overlay(tiny.model, tmp_path / "dit.safetensors")
    model = comfy.sd.load_lora_for_models(model, None, dict(lora), 0.6, 0)[0]
    check_with_weights(tiny, model, merge_lora({**tiny.weights, **overlay}, lora, 0.6), 1e-4)


def test_fp8_backbone_equals_its_rounded_weights(rig: Rig) -> None:
    model = comfy.sd.load_diffusion_model(str(rig.backbone_file), model_options={"dtype": torch.float8_e4m3fn})
    stored = model.model.diffusion_model.state_dict()
    assert stored["blocks.0.self_attn.q.weight"].dtype == torch.float8_e4m3fn
    rounded = {key: value.to(stored[key].dtype).float() for key, value in rig.weights.items()}
    check_with_weights(rig, model, rounded, 1e-4)


class GgufOperations(comfy.ops.manual_cast):
    """What GGUF loaders give the host: linears that hold quantised blocks and dequantise them whenever they run."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
            super()._load_from_state_dict(state_dict, prefix, *args)
            self.blocks = q8_0(state_dict[f"{prefix}weight"])
            self.weight = None

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, dequantise(self.blocks).to(x), self.bias.to(x))


def q8_0(weight: Tensor) -> np.ndarray:
    return gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0)


def dequantise(blocks: np.ndarray) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))


def test_gguf_backbone_equals_its_dequantised_weights(rig: Rig) -> None:
    model = comfy.sd.load_diffusion_model_state_dict(rig.weights, model_options={"custom_operations": GgufOperations})
    linears = {
        f"{name}.weight"
        for name, module in model.model.diffusion_model.named_modules()
        if isinstance(module, GgufOperations.Linear)
    }
    assert "text_embedding.0.weight" in linears and "patch_embedding.weight" not in linears
    weights = {key: dequantise(q8_0(value)) if key in linears else value.float() for key, value in rig.weights.items()}
    check_with_weights(rig, model, weights, 1e-4)


# EasyCache


def easycache(model: ModelPatcher, threshold: float) -> ModelPatcher:
    return EasyCacheNode.execute(model, threshold, 0.1, 0.95, False).result[0]


def with_easycache(rig: Rig, threshold: float, cache_first: bool) -> ModelPatcher:
    model = shifted(rig.model)
    if cache_first:
        return backend.apply_control(easycache(model, threshold), rig.control)
    return easycache(backend.apply_control(model, rig.control), threshold)


@pytest.mark.parametrize("cache_first", [True, False])
def test_easycache_skips_our_streams_too(tiny: Rig, cache_first: bool) -> None:
    clip, steps = make_clip(history=2), 16
    full = ksampler(backend.apply_control(shifted(tiny.model), tiny.control), clip, 3.0, steps)
    with counted(**first_blocks(tiny)) as calls:
        ours = ksampler(with_easycache(tiny, 1.0, cache_first), clip, 3.0, steps)
    assert 2 < calls["backbone"] < steps - 2  # a call holds positive and negative
    assert calls["dense"] == calls["sparse"] == calls["backbone"]
    assert 0 < (ours - full).std() / full.std() < 0.3
    plain = ksampler(easycache(shifted(tiny.model), 1.0), clip, 3.0, steps)
    assert largest(ours - plain) > 0.05
    assert torch.equal(ksampler(with_easycache(tiny, 0.0, cache_first), clip, 3.0, steps), full)


@pytest.mark.parametrize("cache_first", [True, False])
def test_easycache_is_not_taken_for_a_replaced_forward(tiny: Rig, cache_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is what the warning recommends."""
    with caplog.at_level(logging.WARNING), counted(**first_blocks(tiny)) as calls:
        ksampler(with_easycache(tiny, 1.0, cache_first), make_clip(), steps=16)
    assert calls["backbone"] < 14
    assert "without calling LongVie's control" not in caplog.text


# Context windows


def context_windows(model: ModelPatcher, frames: int, overlap: int, freenoise: bool = False) -> ModelPatcher:
    """The host's Wan node, in frames of the video."""
    schedule, fuse = comfy.context_windows.ContextSchedules.STATIC_STANDARD, comfy.context_windows.ContextFuseMethods.PYRAMID
    return WanContextWindowsManualNode.execute(model, frames, overlap, schedule, 1, False, fuse, freenoise).result[0]


def check_windows(rig: Rig, outer: list[Forward], inner: list[Forward], clip, starts: list[int], steps: int) -> None:
    """Every window's forward equals plain torch on the slices of its frames; history stands in front of the first alone."""
    assert [forward.window[0] for forward in outer] == starts * steps
    for seen, inside in zip(outer, inner, strict=True):
        frames = seen.window if seen.anchor is None else [seen.anchor, *seen.window]
        assert (seen.anchor is None) == (seen.window[0] == 0)
        dense, sparse = clip.dense[:, :, frames], clip.sparse[:, :, frames]
        assert torch.equal(seen.conds[backend.DENSE], dense)
        assert torch.equal(seen.conds[backend.SPARSE], sparse)
        history = clip.history if seen.window[0] == 0 else None
        past = 0 if history is None else history.shape[2]
        assert inside.x.shape[2] == past + len(frames)
        if past:
            assert torch.equal(inside.x[:, 20:, :past], history)
            assert torch.equal(inside.x[:, :20, :past], torch.ones_like(inside.x[:, :20, :past]))
        sample = Sample(seen.x, seen.timestep, seen.text, None, dense, sparse, history)
        assert largest(seen.output - rig.velocity(sample)) < HOST_TOLERANCE


@pytest.mark.parametrize(
    ("frames", "history", "window", "overlap", "starts"),
    [(9, 2, 17, 8, [0, 3, 4]), (9, 0, 17, 8, [0, 3, 4]), (5, 5, 9, 4, [0, 2])],
    ids=["history", "no history", "history as long as the clip"],
)
@pytest.mark.parametrize("windows_first", [True, False])
def test_context_windows(
    tiny: Rig, frames: int, history: int, window: int, overlap: int, starts: list[int], windows_first: bool
) -> None:
    clip, steps = make_clip((frames, 4, 6), history), 3
    model = shifted(tiny.model)
    outer = watch_forwards(model)
    if windows_first:
        model = context_windows(model, window, overlap)
    model = backend.apply_control(model, tiny.control)
    inner = watch_forwards(model)
    if not windows_first:
        model = context_windows(model, window, overlap)
    sample_traced(model, clip, steps)
    check_windows(tiny, outer, inner, clip, starts, steps)


@pytest.mark.parametrize("windows_first", [True, False])
def test_freenoise_does_not_spread_the_history(tiny: Rig, windows_first: bool) -> None:
    """FreeNoise copies noise frames to later windows; the history's blend belongs to frame 0 alone, whatever the order."""
    clip = make_clip((9, 4, 6), history=2)
    noise = comfy.context_windows.apply_freenoise(clip.noise, 2, 5, 2, SEED)
    model = shifted(tiny.model)
    if windows_first:
        model = backend.apply_control(context_windows(model, 17, 8, freenoise=True), tiny.control)
    else:
        model = context_windows(backend.apply_control(model, tiny.control), 17, 8, freenoise=True)
    _, trace = sample_traced(model, clip, 1)
    assert torch.equal(trace[0][:, :, 1:], noise[:, :, 1:])
    assert largest(trace[0][:, :, 0] - (clip.history[:, :, 1] * 2 / 27 + noise[:, :, 0] * 25 / 27)) < 1e-6


@pytest.mark.parametrize("windows_first", [True, False])
def test_memory_is_budgeted_for_a_window_and_the_history(
    tiny: Rig, windows_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shifted(tiny.model)
    if windows_first:
        model = backend.apply_control(context_windows(model, 17, 8), tiny.control)
    else:
        model = context_windows(backend.apply_control(model, tiny.control), 17, 8)
    shapes = watch_memory_estimates(monkeypatch)
    sample_traced(model, make_clip((9, 4, 6), history=2), 1)
    assert shapes == [[1, 16, 5 + 2, 4, 6]]


# torch.compile


@dataclass(frozen=True)
class CompiledRuns:
    """Sampling runs on compiled and on plain models, how many graphs there were after each, and how many attentions ran in
    compiled code."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    graphs: dict[str, int]
    attentions: int
    expected_attentions: int


@pytest.fixture(scope="module")
def compiled_runs(tiny: Rig) -> Iterator[CompiledRuns]:
    """The host's TorchCompileModel with a backend that runs the traced graphs as they are.

    Its guards do not look at ``transformer_options``, where control, history and strengths live: the runs share what was
    compiled for the first of them.
    """
    steps, ran, compilations, graphs = 2, [], [], {}

    def graph_backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        compilations.append(graph)
        attentions = sum("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes)

        def run(*args):
            ran.append(attentions)
            return graph.forward(*args)

        return run

    def compiled(patched: ModelPatcher) -> ModelPatcher:
        model = patched.clone()
        options = {"guard_filter_fn": skip_torch_compile_dict}
        set_torch_compile_wrapper(model=model, backend=graph_backend, options=options)
        return model

    torch.compiler.reset()
    first = make_clip(history=2)
    full = backend.apply_control(shifted(tiny.model), tiny.control)
    weak = backend.apply_control(
        shifted(tiny.model), tiny.control, backend.ModalityRange(0.3, 0.0, 0.4), backend.ModalityRange(1.5), 0.5
    )
    off = backend.apply_control(shifted(tiny.model), tiny.control, backend.ModalityRange(0.0), backend.ModalityRange(0.0))
    once = compiled(full)
    runs = {
        "first": (once, full, first),
        "other control and history": (once, full, make_clip(history=2, seed=60)),
        "the clip's own strengths": (once, full, replace(first, strengths=ClipStrengths(0.3, 1.5))),
        "the clip's own strengths, other ones": (once, full, replace(first, strengths=ClipStrengths(2.0, 0.6))),
        "one modality": (once, full, replace(first, dense=None)),
        "other strengths and ranges": (compiled(weak), weak, first),
        "control off": (compiled(off), off, first),
        "no history": (once, full, replace(first, history=None)),
        "first again": (once, full, first),
    }
    with torch.inference_mode():
        pairs = {}
        for name, (ours, plain, clip) in runs.items():
            pairs[name] = (ksampler(ours, clip, steps=steps), ksampler(plain, clip, steps=steps))
            graphs[name] = len(compilations)
    # Self- and cross-attention of every backbone block, every step.
    expected = 2 * len(tiny.model.model.diffusion_model.blocks) * steps * len(runs)
    yield CompiledRuns(pairs, graphs, sum(ran), expected)
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_equals_uncompiled_and_bakes_nothing_in(compiled_runs: CompiledRuns) -> None:
    for name, (ours, plain) in compiled_runs.pairs.items():
        assert torch.equal(ours, plain), name
    results = [ours for name, (ours, _) in compiled_runs.pairs.items() if name != "first again"]
    assert all(not torch.equal(a, b) for index, a in enumerate(results) for b in results[:index])


def test_a_clips_own_strengths_compile_nothing_anew(compiled_runs: CompiledRuns) -> None:
    graphs = compiled_runs.graphs
    assert graphs["first"] > 0
    assert graphs["other control and history"] == graphs["the clip's own strengths, other ones"]


def test_the_backbone_runs_compiled(compiled_runs: CompiledRuns) -> None:
    """Our wrapper and patch may break the graph between blocks; the blocks themselves have to be compiled code."""
    assert compiled_runs.attentions >= compiled_runs.expected_attentions
