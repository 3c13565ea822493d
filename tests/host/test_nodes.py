"""Every node of the pack on the real host: listed, described, and doing what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from devtools.host import Host, RunResult
from devtools.tiny import RANDOM_BACKBONE, RANDOM_CONTROL, RANDOM_VAE
from longvie_core.media.write import VideoWriter
from longvie_core.training.tiny import TINY_BACKBONE
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from tests.helpers.workflow import (
    CLIPS,
    FRAMES,
    HEIGHT,
    SCENE,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    copy_scene,
    decode,
    latent,
    pictures,
    preview,
    rendered_clips,
    run,
    shown,
    stitched,
    tiny_workflow,
)

NODES = {
    "LongVieClipPlan",
    "LongVieLoadClips",
    "LongVieControlFromVideo",
    "LongVieGlobalNormalize",
    "LongVieControlPreview",
    "LongVieUnifiedNoise",
    "LongVieSigmas",
    "LongViePromptSchedule",
    "LongVieLoadControl",
    "LongVieAttentionOverlay",
    "LongVieApplyControl",
    "LongVieMultimodalSampler",
    "LongVieSampleClip",
    "LongVieClipLoop",
}
PROMPTS = ["a grey cube", "a red ball", "a grey cube"]
NEGATIVE = "blurry"
SEED = 5
STEPS = 4
"""Divides 1000, so that the host's scheduler "simple" gives LongVie's sigmas."""


# ---- what the host knows of the nodes


def test_the_host_lists_every_node(host: Host) -> None:
    # Workflows depend on these ids; nodes that come later are welcome.
    assert NODES - host.object_info().keys() == set()


def test_every_node_says_what_it_and_its_sockets_are(host: Host) -> None:
    ours = {name: info for name, info in host.object_info().items() if name.startswith("LongVie")}
    for name, info in ours.items():
        assert info["display_name"].startswith("LongVie "), name
        assert info["category"].partition("/")[0] == "LongVie", name
        assert len(info["description"]) > 20, name
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [key for key, (_, options) in inputs.items() if not options.get("tooltip")] == [], name
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name
    displayed = [info["display_name"] for info in ours.values()]
    assert len(set(displayed)) == len(displayed)


def test_files_that_come_while_the_host_runs_are_offered(tiny_host: Host) -> None:
    # The shared host was started on empty folders.
    def offered(node: str, name: str) -> list[str]:
        return tiny_host.object_info(node)["input"]["required"][name][1]["options"]

    assert Path(RANDOM_CONTROL).name in offered("LongVieLoadControl", "file")
    assert Path(RANDOM_BACKBONE).name in offered("LongVieAttentionOverlay", "file")
    assert SCENE in offered("LongVieLoadClips", "folder")
    copy_scene(tiny_host, "added later")
    assert "added later" in offered("LongVieLoadClips", "folder")


# ---- plan, clips, prompts, sigmas


def show(host: Host, prompt: Prompt, **values: list) -> dict:
    """Add a TestShow for each link, run, and return what they show."""
    for key, link in values.items():
        add(prompt, key, "TestShow", value=link)
    result = run(host, prompt)
    return {key: shown(result, key) for key in values}


def clip_plan(prompt: Prompt, **changes: object) -> list:
    """Add a LongVie Clip Plan at the tests' size."""
    inputs = {"width": WIDTH, "height": HEIGHT, "frames_per_clip": FRAMES, "fps": 16.0, "overlap": 1, "tail": "drop"}
    return add(prompt, "plan", "LongVieClipPlan", **{**inputs, "source_frames": 0, **changes})


def test_clip_plan_gives_its_settings_on(host: Host) -> None:
    prompt: Prompt = {}
    plan = clip_plan(prompt, width=640, height=352, frames_per_clip=81, fps=29.97, overlap=5, tail="pad", source_frames=400)
    assert show(host, prompt, text=plan)["text"] == {
        "width": 640,
        "height": 352,
        "frames": 81,
        "fps": "2997/100",
        "overlap": 5,
        "tail": "pad",
        "source_frames": 400,
    }


def load_clips(prompt: Prompt, **changes: object) -> str:
    """Add a LongVie Load Clips of the shared folder; returns its id."""
    inputs = {"folder": SCENE, "width": WIDTH, "height": HEIGHT, "fps": 16.0, "max_clips": 0, **changes}
    return add(prompt, "clips", "LongVieLoadClips", **inputs)[0]


def test_load_clips_gives_plan_controls_prompts_and_first_frame(tiny_host: Host) -> None:
    folder = copy_scene(tiny_host, "with texts")
    entries = json.loads((folder / "cond.json").read_text(encoding="utf-8"))
    for entry, text in zip(entries, ["eins", 'zwei "quoted"\nlines', "drei 三"], strict=True):
        # The authors' files name their own folders.
        entry.update(text=text, depth=f"./example/ours/{entry['depth']}", track=f"C:\\clips\\{entry['track']}")
    (folder / "cond.json").write_text(json.dumps(entries), encoding="utf-8")
    prompt: Prompt = {}
    clips = load_clips(prompt, folder="with texts", max_clips=2)
    add(prompt, "first", "SaveImage", images=[clips, 4], filename_prefix="first")
    add(prompt, "schedule", "LongViePromptSchedule", prompts=[clips, 3], negative=NEGATIVE)
    links = {name: [clips, index] for index, name in enumerate(["plan", "dense", "sparse", "prompts"])}
    found = show(tiny_host, prompt, **links, texts=["schedule", 0])
    assert found["plan"] == {
        "width": WIDTH,
        "height": HEIGHT,
        "frames": FRAMES,
        "fps": "16",
        "overlap": 1,
        "tail": "drop",
        "source_frames": stitched(2),
    }
    for name, kind in (("dense", "depth"), ("sparse", "track")):
        control = found[name]
        assert (control["modality"], control["per_clip"], control["frames"]) == (name, True, FRAMES)
        assert control["paths"] == [str(folder / f"{kind}_{clip:02d}.mp4") for clip in range(CLIPS)]
    assert json.loads(found["prompts"]) == ["eins", 'zwei "quoted"\nlines']
    assert [clip["text"] for clip in found["texts"]["prompts"]] == ["eins", 'zwei "quoted"\nlines']


def test_load_clips_notices_that_a_file_of_the_folder_has_changed(tiny_host: Host) -> None:
    folder = copy_scene(tiny_host, "rewritten")
    prompt: Prompt = {}
    clips = load_clips(prompt, folder="rewritten")
    assert show(tiny_host, prompt, prompts=[clips, 3])["prompts"] == '["", "", ""]'
    entries = json.loads((folder / "cond.json").read_text(encoding="utf-8"))
    (folder / "cond.json").write_text(json.dumps([{**entries[0], "text": "new"}]), encoding="utf-8")
    assert show(tiny_host, prompt, prompts=[clips, 3])["prompts"] == '["new"]'


def test_prompt_schedule_reads_lines_and_json(host: Host) -> None:
    def parsed(text: str) -> dict:
        prompt: Prompt = {}
        add(prompt, "schedule", "LongViePromptSchedule", prompts=text, negative=NEGATIVE)
        return show(host, prompt, text=["schedule", 0])["text"]

    one = {"negative": None, "seed_offset": 0, "strengths": {"dense": None, "sparse": None}}
    assert parsed("first\n\n second ")["prompts"] == [{"text": "first", **one}, {"text": "second", **one}]
    assert parsed("")["prompts"] == [{"text": "", **one}]
    found = parsed('["plain", {"prompt": "two\\nlines", "negative": "dull", "seed_offset": 7, "sparse_strength": 0.5}]')
    two = {"text": "two\nlines", "negative": "dull", "seed_offset": 7, "strengths": {"dense": None, "sparse": 0.5}}
    assert found["prompts"] == [{"text": "plain", **one}, two]
    assert (found["negative"], found["clip"]) == (NEGATIVE, None)


@pytest.mark.parametrize(("steps", "shift"), [(4, 5.0), (50, 5.0), (3, 1.0)])
def test_sigmas_are_the_shifted_line_from_one_to_zero(host: Host, steps: int, shift: float) -> None:
    prompt: Prompt = {}
    sigmas = show(host, prompt, text=add(prompt, "sigmas", "LongVieSigmas", steps=steps, shift=shift))["text"]
    line = np.linspace(1, 0, steps + 1)
    np.testing.assert_allclose(sigmas, shift * line / (1 + (shift - 1) * line), atol=1e-6)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1, 0, steps + 1)


# ---- controls


@dataclass(frozen=True)
class Depth:
    """Raw depth of a procedural scene: z [frames, H, W] in float32, infinite in the sky."""

    z: np.ndarray

    @property
    def disparity(self) -> np.ndarray:
        return 1 / self.z


@pytest.fixture(scope="module")
def depth() -> Depth:
    frames = render_frames(make_scene(4), 21, Fraction(4), WIDTH, HEIGHT, supersample=1)
    return Depth(np.stack([frame.depth for frame in frames]))


def raw_depth(host: Host, prompt: Prompt, values: np.ndarray, kind: str) -> list:
    """Put raw depth into the input folder and add the node that gives it as LONGVIE_SIGNAL."""
    name = f"{kind}_{values.size}.npy"
    np.save(host.base / "input" / name, values.astype("<f4"))
    frames, height, width = values.shape
    return add(prompt, "signal", "TestSignal", file=name, kind=kind, frames=frames, height=height, width=width)


@pytest.mark.parametrize("kind", ["disparity", "depth"])
def test_global_normalize_takes_percentiles_of_the_frames_that_the_clips_use(tiny_host: Host, depth: Depth, kind: str) -> None:
    # 21 frames hold 2 clips of 9 with one frame shared: 17. The other four must not count.
    raw = depth.disparity if kind == "disparity" else depth.z
    raw = raw.copy()
    raw[17:] = 1e3 if kind == "disparity" else 1e-3
    prompt: Prompt = {}
    plan = clip_plan(prompt)
    given = {"low_percentile": 5.0, "high_percentile": 95.0}
    link = raw_depth(tiny_host, prompt, raw, kind)
    dense = add(prompt, "dense", "LongVieGlobalNormalize", signal=link, plan=plan, **given)
    preview(prompt, dense, plan, 2)
    result = run(tiny_host, prompt)
    used = depth.disparity[:17].astype(np.float64)
    low, high = np.percentile(used.astype(np.float32), [5, 95]).astype(np.float64)
    expected = ((high - np.clip(used, low, high)) / (high - low) * 255).astype(np.uint8)
    found = pictures(tiny_host, result, "preview")
    # One grey level: 1/z of float32 and the percentile's own rounding may fall on either side of a step.
    np.testing.assert_allclose(found[..., 0].astype(int), expected[8:17].astype(int), atol=1)
    assert (found[..., 0] != expected[8:17]).mean() < 1e-3
    assert (found == found[..., :1]).all()
    near, far = used[8:17] >= high, used[8:17] <= low
    assert near.any() and far.any()
    assert (found[near] == 0).all() and (found[far] == 255).all()


def test_other_percentiles_make_another_control(tiny_host: Host, depth: Depth) -> None:
    prompt: Prompt = {}
    plan = clip_plan(prompt)
    link = raw_depth(tiny_host, prompt, depth.disparity, "disparity")
    for key, high in (("usual", 95.0), ("narrow", 80.0)):
        percentiles = {"low_percentile": 5.0, "high_percentile": high}
        dense = add(prompt, f"dense {key}", "LongVieGlobalNormalize", signal=link, plan=plan, **percentiles)
        preview(prompt, dense, plan, 1, key=key)
    result = run(tiny_host, prompt)
    # The narrower range has more that is as near as black can show.
    black = {key: (pictures(tiny_host, result, key) == 0).mean() for key in ("usual", "narrow")}
    assert black["narrow"] > black["usual"] + 0.05


@pytest.fixture(scope="module")
def control_video(tiny_host: Host) -> np.ndarray:
    """17 frames of noise, losslessly in the input folder as noise.mkv."""
    frames = np.random.default_rng(1).integers(0, 256, (17, HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = tiny_host.base / "input" / "noise.mkv"
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for frame in frames:
            writer.write(frame)
    np.testing.assert_array_equal(decode(path), frames)
    return frames


@pytest.mark.parametrize("source", ["video", "images", "trimmed video"])
def test_control_from_video_is_the_video_with_near_black(tiny_host: Host, control_video: np.ndarray, source: str) -> None:
    prompt: Prompt = {}
    plan = clip_plan(prompt)
    given, skipped = {"video": add(prompt, "video", "LoadVideo", file="noise.mkv")}, 0
    if source == "images":
        # Through a preview, since the host's own decoder is up to one grey level off.
        settings = {"modality": "sparse", "polarity": "near = black"}
        control = add(prompt, "exact control", "LongVieControlFromVideo", **settings, **given)
        given = {"images": add(prompt, "exact", "LongVieControlPreview", control=control, plan=plan, clip=1, frames=FRAMES)}
    if source == "trimmed video":
        trim = {"start_time": 0.5, "duration": 0.0, "strict_duration": False}
        given, skipped = {"video": add(prompt, "trim", "Video Slice", video=given["video"], **trim)}, 8
    for modality in ("dense", "sparse"):
        for end in ("black", "white"):
            settings = {"modality": modality, "polarity": f"near = {end}"}
            key = f"{modality} {end}"
            control = add(prompt, f"control {key}", "LongVieControlFromVideo", **settings, **given)
            preview(prompt, control, plan, 1, key=key)
    result = run(tiny_host, prompt)
    expected = control_video[skipped : skipped + FRAMES]
    np.testing.assert_array_equal(pictures(tiny_host, result, "dense black"), expected)
    np.testing.assert_array_equal(pictures(tiny_host, result, "dense white"), 255 - expected)
    np.testing.assert_array_equal(pictures(tiny_host, result, "sparse black"), expected)
    np.testing.assert_array_equal(pictures(tiny_host, result, "sparse white"), expected)  # polarity has no meaning here


@pytest.mark.parametrize(
    ("clip", "frames", "numbers"),
    [(1, 9, range(9)), (2, 9, range(8, 17)), (2, 3, [8, 12, 16]), (1, 1, [0]), (1, 100, range(9))],
)
def test_control_preview_spreads_its_frames_over_the_clip(
    tiny_host: Host, control_video: np.ndarray, clip: int, frames: int, numbers: list[int]
) -> None:
    prompt: Prompt = {}
    plan = clip_plan(prompt)
    video = add(prompt, "video", "LoadVideo", file="noise.mkv")
    control = add(prompt, "control", "LongVieControlFromVideo", modality="dense", polarity="near = black", video=video)
    preview(prompt, control, plan, clip, frames)
    result = run(tiny_host, prompt)
    np.testing.assert_array_equal(pictures(tiny_host, result, "preview"), control_video[list(numbers)])


# ---- one clip with the host's own samplers


def add_models(prompt: Prompt) -> dict[str, list]:
    """Loaders of the tiny weights, and the texts of clip 1 by the test pack's encoder."""
    unet = add(prompt, "unet", "UNETLoader", unet_name=Path(RANDOM_BACKBONE).name, weight_dtype="default")
    clip = add(prompt, "text encoder", "TestTextEncoder", log="encoded.txt")
    return {
        "model": add(prompt, "shifted", "ModelSamplingSD3", model=unet, shift=5.0),
        "control": add(prompt, "control", "LongVieLoadControl", file=Path(RANDOM_CONTROL).name),
        "vae": add(prompt, "vae", "VAELoader", vae_name=Path(RANDOM_VAE).name),
        "positive": add(prompt, "positive", "CLIPTextEncode", text=PROMPTS[0], clip=clip),
        "negative": add(prompt, "negative", "CLIPTextEncode", text=NEGATIVE, clip=clip),
    }


def add_controlled(prompt: Prompt, clip: int = 1, key: str = "apply", **changes: object) -> str:
    """Load everything and add a LongVie Apply Control; returns its id."""
    clips = load_clips(prompt)
    given = {"plan": [clips, 0], "dense": [clips, 1], "sparse": [clips, 2], "start_image": [clips, 4], "clip": clip}
    strengths = {f"{name}_{part}": value for name in ("dense", "sparse") for part, value in RANGE.items()}
    given |= {**strengths, "first_frame_sigma": 0.925926, **add_models(prompt), **changes}
    return add(prompt, key, "LongVieApplyControl", **given)[0]


RANGE = {"strength": 1.0, "start": 0.0, "end": 1.0}


def add_ksampler(prompt: Prompt, apply: str, key: str, cfg: float = 2.0) -> list:
    """The host's KSampler behind Apply Control, and its latents saved under `key`."""
    settings = {"seed": SEED, "steps": STEPS, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sockets = dict(zip(("model", "positive", "negative", "latent_image"), ([apply, slot] for slot in range(4)), strict=True))
    link = add(prompt, f"{key} sampler", "KSampler", **sockets, **settings)
    add(prompt, key, "SaveLatent", samples=link, filename_prefix="latents/test")
    return link


@dataclass(frozen=True)
class Looped:
    """A run of the loop with texts, guidance and a seed of its own: what the single nodes are compared with."""

    folder: RunFolder
    encoded: list[str]


def looped_workflow(run_name: str, **changes: dict) -> Prompt:
    schedule = {"prompts": json.dumps(PROMPTS), "negative": NEGATIVE, "clip": ["encoder", 0]}
    prompt = tiny_workflow(
        run_name,
        **{
            "PromptSchedule": schedule,
            "UnifiedNoise": {"seed": SEED},
            "Sigmas": {"steps": STEPS},
            "MultimodalSampler": {"cfg": 2.0},
            **changes,
        },
    )
    add(prompt, "encoder", "TestTextEncoder", log="loop.txt")
    return prompt


@pytest.fixture(scope="module")
def looped(tiny_host: Host) -> Looped:
    run(tiny_host, looped_workflow("looped"))
    encoded = (tiny_host.base / "output" / "loop.txt").read_text(encoding="utf-8").splitlines()
    return Looped(RunFolder.of(tiny_host, "looped"), encoded)


def test_apply_control_with_the_hosts_ksampler_is_the_first_clip_of_the_loop(tiny_host: Host, looped: Looped) -> None:
    prompt: Prompt = {}
    samples = add_ksampler(prompt, add_controlled(prompt), "latents")
    images = add(prompt, "decode", "VAEDecode", samples=samples, vae=["vae", 0])
    add(prompt, "images", "SaveImage", images=images, filename_prefix="decoded")
    result = run(tiny_host, prompt)
    clip = looped.folder.tensors(1)
    np.testing.assert_array_equal(latent(tiny_host, result, "latents"), clip["latent"])
    # Both cut off to 8 bits, from -1 .. 1 and from 0 .. 1: a rounding apart, so at most one level.
    np.testing.assert_allclose(pictures(tiny_host, result, "images").astype(int), clip["tail"].astype(int), atol=1)


def test_apply_control_with_history_is_the_second_clip_of_the_loop(tiny_host: Host, looped: Looped) -> None:
    prompt: Prompt = {}
    first = add_sample_clip(prompt, "first")
    start = add(prompt, "start", "ImageFromBatch", image=[first, 1], batch_index=FRAMES - 1, length=1)
    past = add(prompt, "past", "ImageFromBatch", image=[first, 1], batch_index=1, length=8)
    for key, history in (("with", {"history": past}), ("without", {})):
        apply = add_controlled(prompt, 2, f"apply {key}", start_image=start, **history)
        prompt["positive"]["inputs"]["text"] = PROMPTS[1]
        add_ksampler(prompt, apply, key)
    result = run(tiny_host, prompt)
    expected = looped.folder.tensors(2)["latent"]
    np.testing.assert_array_equal(latent(tiny_host, result, "with"), expected)
    assert np.abs(latent(tiny_host, result, "without") - expected).max() > 0.01


def test_strengths_and_controls_matter_and_both_off_is_the_plain_backbone(tiny_host: Host) -> None:
    prompt: Prompt = {}
    off = {"dense_strength": 0.0, "sparse_strength": 0.0}
    for key, changes in {
        "full": {},
        "no dense": {"dense_strength": 0.0},
        "dense unconnected": {"dense": None},
        "off": off,
        "never": {"dense_end": 0.0, "sparse_start": 1.0},
        "first half": {"dense_end": 0.5, "sparse_end": 0.5},
    }.items():
        add_ksampler(prompt, add_controlled(prompt, key=f"apply {key}", **changes), key, cfg=1.0)
        given = prompt[f"apply {key}"]["inputs"]
        prompt[f"apply {key}"]["inputs"] = {name: value for name, value in given.items() if value is not None}
    # The same conditioning on the model from before: what the host does with keys that nobody reads.
    add_ksampler(prompt, "apply off", "plain", cfg=1.0)
    prompt["plain sampler"]["inputs"]["model"] = ["shifted", 0]
    result = run(tiny_host, prompt)
    found = {key: latent(tiny_host, result, key) for key in prompt if f"{key} sampler" in prompt}
    np.testing.assert_array_equal(found["off"], found["plain"])
    np.testing.assert_array_equal(found["no dense"], found["dense unconnected"])
    different = ["full", "no dense", "off", "first half"]
    for number, one in enumerate(different):
        for other in different[number + 1 :]:
            assert np.abs(found[one] - found[other]).max() > 1e-3, (one, other)


def test_unified_noise_in_the_hosts_custom_sampler_equals_random_noise(tiny_host: Host) -> None:
    prompt: Prompt = {}
    apply = add_controlled(prompt)
    guider = add(prompt, "guider", "BasicGuider", model=[apply, 0], conditioning=[apply, 1])
    sampler = add(prompt, "euler", "KSamplerSelect", sampler_name="euler")
    sigmas = add(prompt, "sigmas", "LongVieSigmas", steps=STEPS, shift=5.0)
    ours = {"alpha": 0.05, "mode": "unified"}
    noises = {
        "host": add(prompt, "host noise", "RandomNoise", noise_seed=2**64 - 1),
        "ours": add(prompt, "our noise", "LongVieUnifiedNoise", seed=2**64 - 1, **ours),
        "other seed": add(prompt, "other noise", "LongVieUnifiedNoise", seed=SEED, **ours),
        "per clip": add(prompt, "clip noise", "LongVieUnifiedNoise", seed=SEED, **{**ours, "mode": "per clip"}),
        "mixed": add(prompt, "mix", "LongVieUnifiedNoise", seed=SEED, **{**ours, "mode": "global + alpha * N(0,1)"}),
    }
    for key, noise in noises.items():
        link = add(
            prompt, f"{key} sampler", "SamplerCustomAdvanced",
            noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=[apply, 3],
        )  # fmt: skip
        add(prompt, key, "SaveLatent", samples=link, filename_prefix="latents/noise")
    result = run(tiny_host, prompt)
    found = {key: latent(tiny_host, result, key) for key in noises}
    np.testing.assert_array_equal(found["ours"], found["host"])
    others = ["host", "other seed", "per clip", "mixed"]
    for number, one in enumerate(others):
        for other in others[number + 1 :]:
            assert np.abs(found[one] - found[other]).max() > 1e-3, (one, other)


@pytest.fixture(scope="module")
def overlay(tiny_host: Host) -> Iterator[None]:
    """dit.safetensors for the tiny backbone, and the backbone with those tensors in place of its own, merged by hand."""
    folder = tiny_host.base / "models" / "diffusion_models"
    backbone = load_file(tiny_host.base / "models" / RANDOM_BACKBONE)
    rng = np.random.default_rng(2)
    own = {key: value for key, value in backbone.items() if ".self_attn." in key}
    assert len(own) == 10 * TINY_BACKBONE.num_layers
    theirs = {key: (value + rng.normal(0, 0.02, value.shape)).astype(value.dtype) for key, value in own.items()}
    save_file(theirs, folder / "dit.safetensors")
    save_file({**backbone, **theirs}, folder / "merged.safetensors")


def test_attention_overlay_equals_a_merged_checkpoint(tiny_host: Host, overlay: None) -> None:
    prompt: Prompt = {}
    plain = add_controlled(prompt, key="apply plain")
    laid = add(prompt, "overlay", "LongVieAttentionOverlay", model=["shifted", 0], file="dit.safetensors")
    merged = add(prompt, "merged unet", "UNETLoader", unet_name="merged.safetensors", weight_dtype="default")
    merged = add(prompt, "merged shifted", "ModelSamplingSD3", model=merged, shift=5.0)
    add_ksampler(prompt, plain, "plain", cfg=1.0)
    for key, model in (("overlaid", laid), ("merged", merged)):
        add_ksampler(prompt, add_controlled(prompt, key=f"apply {key}", model=model), key, cfg=1.0)
    # Once more without it: nothing of the overlay may stay on the shared model.
    add_ksampler(prompt, add_controlled(prompt, key="apply again", dense_end=0.999), "again", cfg=1.0)
    result = run(tiny_host, prompt)
    found = {key: latent(tiny_host, result, key) for key in ("plain", "overlaid", "merged", "again")}
    np.testing.assert_array_equal(found["overlaid"], found["merged"])
    np.testing.assert_array_equal(found["again"], found["plain"])
    assert np.abs(found["overlaid"] - found["plain"]).max() > 1e-3


# ---- one clip with ours


def add_sample_clip(prompt: Prompt, key: str, state: list | None = None, **changes: object) -> str:
    """Add a LongVie Sample Clip, and what it needs if that is not there; returns its id."""
    if "sampler" not in prompt:
        clips, models = load_clips(prompt), add_models(prompt)
        select = add(prompt, "select", "KSamplerSelect", sampler_name="euler")
        sigmas = add(prompt, "sigmas", "LongVieSigmas", steps=STEPS, shift=5.0)
        strengths = {f"{name}_{part}": value for name in ("dense", "sparse") for part, value in RANGE.items()}
        add(
            prompt, "sampler", "LongVieMultimodalSampler",
            **{name: models[name] for name in ("model", "control", "vae")}, **strengths,
            sampler=select, sigmas=sigmas, cfg=2.0, history_frames=8, first_frame_sigma=0.925926,
        )  # fmt: skip
        texts = {"prompts": json.dumps(PROMPTS), "negative": NEGATIVE, "clip": ["text encoder", 0]}
        add(prompt, "schedule", "LongViePromptSchedule", **texts)
        add(prompt, "noise", "LongVieUnifiedNoise", seed=SEED, mode="unified", alpha=0.05)
        assert clips == "clips"
    given = {name: [name, 0] for name in ("sampler", "noise")} | {"prompts": ["schedule", 0]}
    given |= {"plan": ["clips", 0], "dense": ["clips", 1], "sparse": ["clips", 2], "first_frame": ["clips", 4]}
    return add(prompt, key, "LongVieSampleClip", **given, **({} if state is None else {"state": state}), **changes)[0]


def sampled(host: Host, result: RunResult, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Latents and pictures of a clip."""
    return latent(host, result, f"{key} latents"), pictures(host, result, f"{key} images")


def test_sample_clip_chained_by_its_state_makes_the_clips_of_the_loop(tiny_host: Host, looped: Looped) -> None:
    prompt: Prompt = {}
    state = None
    for key in ("first", "second"):
        clip = add_sample_clip(prompt, key, state)
        add(prompt, f"{key} images", "SaveImage", images=[clip, 1], filename_prefix=key)
        add(prompt, f"{key} latents", "SaveLatent", samples=[clip, 2], filename_prefix=f"latents/{key}")
        state = [clip, 0]
    result = run(tiny_host, prompt)
    for number, key in enumerate(("first", "second"), start=1):
        latents, images = sampled(tiny_host, result, key)
        np.testing.assert_array_equal(latents, looped.folder.tensors(number)["latent"])
        np.testing.assert_array_equal(images, looped.folder.tensors(number)["tail"])


def test_sample_clip_reports_progress_and_previews(tiny_host: Host) -> None:
    prompt: Prompt = {}
    clip = add_sample_clip(prompt, "clip")
    prompt["noise"]["inputs"]["seed"] = 77
    add(prompt, "latents", "SaveLatent", samples=[clip, 2], filename_prefix="latents/progress")
    result = run(tiny_host, prompt)
    progress = [(data["value"], data["max"]) for data in result.messages("progress") if data["node"] == clip]
    assert progress[-1] == (STEPS, STEPS)
    assert result.messages("preview")


# ---- texts


def test_each_text_is_encoded_once_and_only_what_changed_is_rendered(tiny_host: Host, looped: Looped) -> None:
    assert sorted(looped.encoded) == sorted({*PROMPTS, NEGATIVE})
    folder = looped.folder.copy("other text")
    before = folder.state(1, 2)
    changed = json.dumps([*PROMPTS[:2], "a blue cone"])
    schedule = {"prompts": changed, "negative": NEGATIVE, "clip": ["encoder", 0]}
    prompt = looped_workflow("other text", PromptSchedule=schedule)
    assert rendered_clips(prompt, run(tiny_host, prompt)) == 1
    assert folder.state(1, 2) == before
    assert np.abs(folder.tensors(3)["latent"] - looped.folder.tensors(3)["latent"]).max() > 1e-3
    log = (tiny_host.base / "output" / "loop.txt").read_text(encoding="utf-8").splitlines()
    assert log[len(looped.encoded) :] == ["a blue cone"]


def test_a_negative_prompt_of_its_own_changes_a_clip(tiny_host: Host, looped: Looped) -> None:
    folder = looped.folder.copy("other negative")
    prompts = [*PROMPTS[:2], {"prompt": PROMPTS[2], "negative": "colourful"}]
    schedule = {"prompts": json.dumps(prompts), "negative": NEGATIVE, "clip": ["encoder", 0]}
    prompt = looped_workflow("other negative", PromptSchedule=schedule)
    assert rendered_clips(prompt, run(tiny_host, prompt)) == 1
    assert np.abs(folder.tensors(3)["latent"] - looped.folder.tensors(3)["latent"]).max() > 1e-3


# ---- the sampler's settings


@pytest.mark.parametrize(
    "change",
    [
        {"cfg": 1.0},
        {"dense_strength": 0.5},
        {"sparse_end": 0.5},
    ],
    ids=str,
)
def test_a_setting_of_the_multimodal_sampler_changes_the_clip(tiny_host: Host, looped: Looped, change: dict) -> None:
    name = f"setting {next(iter(change))}"
    prompt = looped_workflow(name, ClipLoop={"clips": "1"}, MultimodalSampler={"cfg": 2.0, **change})
    run(tiny_host, prompt)
    ours, theirs = (folder.tensors(1)["latent"] for folder in (RunFolder.of(tiny_host, name), looped.folder))
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize("change", [{"history_frames": 0}, {"first_frame_sigma": 1.0}], ids=str)
def test_history_acts_from_the_second_clip_on(tiny_host: Host, looped: Looped, change: dict) -> None:
    name = "history " + " ".join(f"{key} {value}" for key, value in change.items())
    prompt = looped_workflow(name, ClipLoop={"clips": "1-2"}, MultimodalSampler={"cfg": 2.0, **change})
    run(tiny_host, prompt)
    ours, theirs = RunFolder.of(tiny_host, name), looped.folder
    np.testing.assert_array_equal(ours.tensors(1)["latent"], theirs.tensors(1)["latent"])
    assert np.abs(ours.tensors(2)["latent"] - theirs.tensors(2)["latent"]).max() > 1e-3


def test_the_loop_runs_without_a_text_encoder_on_one_modality(tiny_host: Host) -> None:
    latents = []
    for name, change in (("dense only", {"sparse": None}), ("sparse only", {"dense": None})):
        prompt = tiny_workflow(name, ClipLoop={"clips": "1", **change})
        assert rendered_clips(prompt, run(tiny_host, prompt)) == 1
        latents.append(RunFolder.of(tiny_host, name).tensors(1)["latent"])
    assert np.abs(latents[0] - latents[1]).max() > 1e-3
