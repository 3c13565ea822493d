"""NaN and infinities on the real host: refused by the widget's name, or stopped before anything of the clip is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.host import Host, PromptRejected
from devtools.tiny import RANDOM_BACKBONE, RANDOM_VAE
from tests.helpers.workflow import (
    FRAMES,
    HEIGHT,
    REPORT,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    failure,
    node_id,
    rendered_clips,
    run,
    set_inputs,
    tiny_workflow,
)

BROKEN = {"NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def float_widgets(host: Host) -> Iterator[tuple[str, str]]:
    """(node, widget) of every float widget of the pack, by the host's own description of its nodes."""
    for node, info in host.object_info().items():
        if node.startswith("LongVie"):
            for inputs in info["input"].values():
                for name, description in inputs.items():
                    if description[0] == "FLOAT":
                        yield node, name


def graph_with(node: str) -> Prompt:
    """A graph that runs a node of the pack with good inputs."""
    prompt = tiny_workflow("broken numbers")
    clips, sampler = node_id(prompt, "LongVieLoadClips"), node_id(prompt, "LongVieMultimodalSampler")
    linked = prompt[sampler]["inputs"]
    if node not in {entry["class_type"] for entry in prompt.values()}:
        # The loop does not need this node, and would not wait for its refusal.
        for key in (node_id(prompt, "LongVieClipLoop"), REPORT):
            del prompt[key]
    if node == "LongVieClipPlan":
        plan = add(prompt, "plan", node, width=WIDTH, height=HEIGHT, frames_per_clip=FRAMES, fps=16.0, overlap=1, tail="drop")
        prompt["plan"]["inputs"]["source_frames"] = 0
        add(prompt, "shown", "TestShow", value=plan)
    elif node == "LongVieGlobalNormalize":
        signal = add(prompt, "signal", "TestSignal", file="none.npy", kind="depth", frames=FRAMES, height=4, width=4)
        dense = add(prompt, "dense", node, signal=signal, plan=[clips, 0], low_percentile=5.0, high_percentile=95.0)
        add(prompt, "shown", "TestShow", value=dense)
    elif node == "LongVieApplyControl":
        text = add(prompt, "text encoder", "TestTextEncoder", log="texts.txt")
        words = add(prompt, "words", "CLIPTextEncode", clip=text, text="")
        ranges = {f"{kind}_{name}": value for kind in ("dense", "sparse") for name, value in DEFAULTS.items()}
        model = add(
            prompt,
            "apply",
            node,
            model=linked["model"],
            control=linked["control"],
            positive=words,
            negative=words,
            vae=linked["vae"],
            plan=[clips, 0],
            start_image=[clips, 4],
            clip=1,
            dense=[clips, 1],
            first_frame_sigma=0.925926,
            **ranges,
        )
        add(prompt, "shown", "TestShow", value=model)
    return prompt


DEFAULTS = {"strength": 1.0, "start": 0.0, "end": 1.0}


def refusal(host: Host, prompt: Prompt) -> str:
    try:
        node, text = failure(host, prompt)
    except PromptRejected as rejected:
        return str(rejected)
    return f"node {node}: {text}"


def test_every_float_widget_refuses_broken_numbers_by_its_name(tiny_host: Host) -> None:
    widgets = list(float_widgets(tiny_host))
    assert {"cfg", "shift", "alpha", "fps", "low_percentile", "first_frame_sigma", "anchor_strength"} <= {w for _, w in widgets}
    accepted = []
    for node, widget in widgets:
        for word, value in BROKEN.items():
            prompt = graph_with(node)
            set_inputs(prompt, node, **{widget: value})
            text = refusal(tiny_host, prompt)
            if node not in text or widget not in text:
                accepted.append((node, widget, word, text))
    assert not accepted
    assert len(widgets) >= 20


@pytest.mark.parametrize("word", BROKEN)
def test_a_link_that_brings_a_broken_number(tiny_host: Host, word: str) -> None:
    prompt = tiny_workflow("broken link")
    number = add(prompt, "number", "TestNumber", text=word)
    set_inputs(prompt, "LongVieMultimodalSampler", cfg=number)
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert text.strip() == f"cfg is {float(word)}: give a finite number"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_broken_strength_of_one_clip(tiny_host: Host, value: str) -> None:
    prompts = '[{"prompt": "a", "dense_strength": ' + value + "}]"
    prompt = tiny_workflow("broken strength", PromptSchedule={"prompts": prompts})
    text = refusal(tiny_host, prompt)
    assert "LongViePromptSchedule" in text and "prompt 1: 'dense_strength' must be a number" in text


def test_sigmas_with_a_broken_number(tiny_host: Host) -> None:
    prompt = tiny_workflow("broken sigmas")
    set_inputs(prompt, "LongVieMultimodalSampler", sigmas=add(prompt, "sigmas", "ManualSigmas", sigmas=f"1.0, {10**40}, 0.0"))
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieMultimodalSampler"
    assert "sigmas: number 2 of 3 is inf" in text


def test_a_first_frame_with_a_broken_number(tiny_host: Host) -> None:
    prompt = tiny_workflow("broken picture")
    set_inputs(prompt, "LongVieClipLoop", first_frame=add(prompt, "picture", "TestPicture", text="NaN", size=32))
    node, text = failure(tiny_host, prompt)
    assert node == "LongVieClipLoop"
    assert "a picture of an IMAGE has 1 of 3072 values that are not finite" in text


# ---- weights


def spoilt(host: Host, kind: str, name: str, change: dict[str, torch.Tensor]) -> str:
    """A copy of a weight file of the host with some tensors replaced; its name for the loader."""
    folder = host.base / "models" / kind
    weights = load_file(folder / name)
    assert change.keys() <= weights.keys()
    save_file({**weights, **change}, folder / f"spoilt_{name}")
    return f"spoilt_{name}"


def stopped(host: Host, prompt: Prompt, run_name: str, finished: int) -> str:
    """Run a prompt that must stop in the loop by name; its text. So many clips are finished, and nothing else is written."""
    result = host.run(prompt, timeout=120)
    assert (result.status, result.error.node_type) == ("error", "LongVieClipLoop"), result.error
    assert result.error.exception_type == "ValueError"
    folder = RunFolder.of(host, run_name)
    assert len(list(folder.path.glob("**/*.mp4"))) == finished
    clips = folder.manifest["clips"] if (folder.path / "run.json").exists() else []
    assert len(clips) == finished
    return result.error.exception_message


def test_one_nan_in_the_head(tiny_host: Host) -> None:
    kind, name = Path(RANDOM_BACKBONE).parent.name, Path(RANDOM_BACKBONE).name
    head = load_file(tiny_host.base / "models" / RANDOM_BACKBONE)["head.head.bias"].clone()
    head[3] = torch.nan
    prompt = tiny_workflow("a NaN in the head")
    set_inputs(prompt, "UNETLoader", unet_name=spoilt(tiny_host, kind, name, {"head.head.bias": head}))
    text = stopped(tiny_host, prompt, "a NaN in the head", 0)
    assert text.startswith("clip 1: sampling gave") and "are not finite" in text
    assert "float16" in text and "damaged" in text and "cfg" in text


def test_a_vae_that_decodes_to_infinities(tiny_host: Host) -> None:
    kind, name = Path(RANDOM_VAE).parent.name, Path(RANDOM_VAE).name
    key = "decoder.head.2.weight"
    weight = load_file(tiny_host.base / "models" / RANDOM_VAE)[key]
    prompt = tiny_workflow("an infinite VAE")
    set_inputs(prompt, "VAELoader", vae_name=spoilt(tiny_host, kind, name, {key: torch.full_like(weight, torch.inf)}))
    text = stopped(tiny_host, prompt, "an infinite VAE", 0)
    assert text.startswith("clip 1: decoding gave") and "VAE" in text


@pytest.mark.parametrize("factor", [1e4, 3e38])
def test_a_vae_that_decodes_to_numbers_that_are_cut_off(tiny_host: Host, factor: float) -> None:
    kind, name = Path(RANDOM_VAE).parent.name, Path(RANDOM_VAE).name
    key = "decoder.head.2.weight"
    weights = load_file(tiny_host.base / "models" / RANDOM_VAE)
    change = {key: (weights[key].float() * factor).clamp(-3e38, 3e38)}
    prompt = tiny_workflow(f"a VAE times {factor:g}")
    set_inputs(prompt, "VAELoader", vae_name=spoilt(tiny_host, kind, name, change))
    text = stopped(tiny_host, prompt, f"a VAE times {factor:g}", 0)
    assert text.startswith("clip 1: decoding gave") and "VAE" in text


def test_clips_before_the_broken_one_stay(tiny_host: Host) -> None:
    """The first clip is rendered with good weights; then they break."""
    name = "breaks in the middle"
    run(tiny_host, tiny_workflow(name, ClipLoop={"clips": "1"}))
    folder = RunFolder.of(tiny_host, name)
    before = folder.state(1)
    kind, file = Path(RANDOM_VAE).parent.name, Path(RANDOM_VAE).name
    key = "encoder.conv1.bias"
    bias = load_file(tiny_host.base / "models" / RANDOM_VAE)[key].clone()
    bias[0] = torch.nan
    prompt = tiny_workflow(name, ClipLoop={"clips": "2-"})
    set_inputs(prompt, "VAELoader", vae_name=spoilt(tiny_host, kind, file, {key: bias}))
    result = tiny_host.run(prompt, timeout=120)
    assert result.status == "error"
    assert result.error.exception_message.startswith("clip 2: encoding its dense control gave")
    assert folder.state(1) == before
    good = tiny_workflow(name)
    assert rendered_clips(good, run(tiny_host, good)) == 2
    assert folder.state(1) == before
